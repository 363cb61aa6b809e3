"""What is said before the start of optimisers and schedules that are not there, or do not go together."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from limner.config import defaults, files
from limner.errors import Finding
from limner.machine import Device, Machine
from limner.preflight import examine

CPU = Machine("2.13.0", "cpu", (Device("cpu", "x86", 16_000, True),), 2, 16_000, "")
EIGHT_BIT = importlib.util.find_spec("bitsandbytes") is not None
WHOLE = {"kind": "none", "weights": "bf16"}


def look(model: Path, pictures: Path, sections: dict[str, dict[str, Any]], machine: Machine | None = CPU) -> list[Finding]:
    data = {"path": str(pictures)} | sections.get("data", {})
    train = {"steps": 20} | sections.get("train", {})
    config = files.build({**sections, "model": {"base": str(model)}, "data": data, "train": train}, {})
    return examine(config, machine)[0]


def other(path: str, **values: Any) -> dict[str, dict[str, Any]]:
    return {"optimizer": {"kind": "other", "class_path": path, **values}}


@pytest.mark.parametrize(
    ("field", "severity", "words", "sections"),
    [
        ("optimizer.class_path", "error", "is needed", {"optimizer": {"kind": "other"}}),
        ("optimizer.class_path", "error", "none of the packages", other("os.system")),
        ("optimizer.class_path", "error", "none of the packages", other("torch.optimizers.Adam")),
        ("optimizer.class_path", "error", "none of the packages", other("torch.optim.__import__('os').X")),
        ("optimizer.class_path", "error", "none of the packages", other("torch.optim")),
        ("optimizer.class_path", "error", "which is not installed", other("prodigyopt.Prodigy")),
        ("optimizer.class_path", "warning", "has no effect unless", {"optimizer": {"class_path": "torch.optim.Adam"}}),
        ("optimizer.arguments", "error", "not of the form", {"optimizer": {"arguments": ["d_coef"]}}),
        ("optimizer.arguments", "error", "is not a value", {"optimizer": {"arguments": ["amsgrad=__import__('os')"]}}),
        ("optimizer.arguments", "error", "is not a value", {"optimizer": {"arguments": ["amsgrad=" + "(" * 9000]}}),
        ("optimizer.arguments", "error", "is not a value", {"optimizer": {"arguments": ["amsgrad=" + "-" * 9000 + "1"]}}),
        ("optimizer.arguments", "error", "given twice", {"optimizer": {"arguments": ["amsgrad=True", "amsgrad=False"]}}),
        ("optimizer.arguments", "error", "decided by optimizer.beta1", {"optimizer": {"arguments": ["betas=(0.9, 0.9)"]}}),
        ("optimizer.arguments", "error", "decided by optimizer.lr", {"optimizer": {"arguments": ["lr=1"]}}),
        ("optimizer.lr", "error", "no usual learning rate", {"optimizer": {"kind": "sgd"}}),
        ("optimizer.lr", "warning", "would multiply it", {"optimizer": {"kind": "prodigy", "lr": 1e-4}}),
        ("optimizer.lr", "warning", "would multiply it", other("prodigyplus.ProdigyPlusScheduleFree", lr=1e-4)),
        (
            "optimizer.text_encoder_lr",
            "error",
            "one learning rate for all",
            {"optimizer": {"kind": "dadapt_adam", "text_encoder_lr": 0.5}, "adapter": {"text_encoder": True}},
        ),
        (
            "adapter.rules",
            "error",
            "lr_factor",
            {"optimizer": {"kind": "prodigy"}, "adapter": {"rules": ["denoiser.*: lr_factor=0.5"]}},
        ),
        ("adapter.up_lr_ratio", "error", "one learning", {"optimizer": {"kind": "prodigy"}, "adapter": {"up_lr_ratio": 4.0}}),
        ("optimizer.schedule", "error", "keeps an average", {"optimizer": {"kind": "schedule_free"}}),
        (
            "train.ema",
            "error",
            "already",
            {"optimizer": {"kind": "schedule_free", "schedule": "constant"}, "train": {"ema": 0.9}},
        ),
        ("optimizer.in_backward", "error", "all gradients at once", {"optimizer": {"kind": "muon", "in_backward": True}}),
        ("optimizer.in_backward", "error", "not known", other("torch.optim.Adam", in_backward=True)),
        ("optimizer.in_backward", "error", "length of all", {"optimizer": {"in_backward": True}}),
        (
            "optimizer.in_backward",
            "error",
            "added up",
            {"optimizer": {"in_backward": True}, "train": {"accumulation": 2, "clip_norm": "off"}},
        ),
        (
            "optimizer.in_backward",
            "error",
            "several processes",
            {"optimizer": {"in_backward": True}, "launch": {"num_processes": 2}, "train": {"clip_norm": "off"}},
        ),
        (
            "optimizer.in_backward",
            "error",
            "fp16",
            {"optimizer": {"in_backward": True}, "train": {"precision": "fp16", "clip_norm": "off"}},
        ),
        ("adapter.weights", "error", "arithmetic is in fp32", {"adapter": WHOLE}),
        (
            "adapter.weights",
            "error",
            "cannot move",
            {"adapter": WHOLE, "optimizer": {"kind": "prodigy"}, "train": {"precision": "bf16"}},
        ),
        ("optimizer.warmup_share", "error", "both", {"optimizer": {"warmup_steps": 2, "warmup_share": 0.1}}),
        ("optimizer.warmup_share", "warning", "less than one step", {"optimizer": {"warmup_share": 0.01}}),
        ("optimizer.warmup_steps", "error", "as long as the whole", {"optimizer": {"warmup_steps": 20}}),
        ("optimizer.pieces", "error", "there are none", {"optimizer": {"schedule": "piecewise"}}),
        ("optimizer.pieces", "error", "do not rise", {"optimizer": {"schedule": "piecewise", "pieces": ["5:1", "4:1", "0.1"]}}),
        ("optimizer.pieces", "warning", "never reached", {"optimizer": {"schedule": "piecewise", "pieces": ["50:1", "0.1"]}}),
        ("optimizer.pieces", "warning", "has no effect unless", {"optimizer": {"pieces": ["50:1", "0.1"]}}),
        (
            "optimizer.decay_share",
            "warning",
            "leaves only",
            {"optimizer": {"schedule": "warmup_stable_decay", "warmup_steps": 10, "decay_share": 0.6}},
        ),
        ("optimizer.schedule_floor", "warning", "no effect", {"optimizer": {"schedule": "constant", "schedule_floor": 0.1}}),
        ("optimizer.eps", "warning", "no effect", {"optimizer": {"kind": "came", "eps": 1e-6}}),
        ("optimizer.beta2", "warning", "no effect", {"optimizer": {"kind": "muon", "beta2": 0.99}}),
        ("optimizer.momentum", "warning", "no effect", {"optimizer": {"momentum": 0.8}}),
        ("train.ema_device", "warning", "no effect", {"train": {"ema_device": "cpu"}}),
    ],
)
def test_each_finding(tiny_model: Path, tmp_path: Path, field: str, severity: str, words: str, sections: dict) -> None:
    findings = look(tiny_model, tiny.pictures(tmp_path / "pics"), sections)
    matching = [f for f in findings if f.field == field and words in f.message]
    assert [f.severity for f in matching] == [severity], findings


@pytest.mark.skipif(EIGHT_BIT, reason="bitsandbytes is installed")
@pytest.mark.parametrize("kind", ["adamw_8bit", "paged_adamw_8bit", "lion_8bit"])
def test_8_bit_needs_its_extra(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    (finding,) = look(tiny_model, tiny.pictures(tmp_path / "pics"), {"optimizer": {"kind": kind}})
    assert (finding.field, finding.remedy) == ("optimizer.kind", "pip install limner[8bit]")


@pytest.mark.parametrize(
    "sections",
    [
        {"optimizer": {"kind": "prodigy"}},
        {"optimizer": {"kind": "dadapt_lion", "lr": 1.0}, "adapter": {"text_encoder": True}},
        {"optimizer": {"kind": "schedule_free", "schedule": "constant", "warmup_steps": 2}},
        {"optimizer": {"in_backward": True}, "train": {"clip_norm": "off"}},
        {"optimizer": {"kind": "adafactor", "schedule": "adafactor", "warmup_share": 0.1}},
        {"optimizer": {"kind": "came"}, "adapter": WHOLE, "train": {"precision": "bf16"}},
        {"optimizer": {"schedule": "piecewise", "pieces": ["5:1", "0.1"]}},
        other("pytorch_optimizer.SOAP", arguments=["precondition_frequency=2"]),
    ],
)
def test_what_goes_together(tiny_model: Path, tmp_path: Path, sections: dict) -> None:
    findings = look(tiny_model, tiny.pictures(tmp_path / "pics"), sections)
    assert [f for f in findings if f.severity != "note"] == []


def test_packages_are_looked_for_without_importing_any(tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from limner.preflight import examine; from limner.config import files\n"
        "for p in ('torch.optim.Adam', 'pytorch_optimizer.SOAP', 'transformers.optimization.Adafactor'):\n"
        "    examine(files.build({'optimizer': {'kind': 'other', 'class_path': p}}, {}), None)\n"
        "examine(files.build({'optimizer': {'kind': 'lion'}}, {}), None)\n"
        "assert not {'torch', 'transformers', 'pytorch_optimizer'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("optimizer", "rate", "text"),
    [
        ({}, 1e-4, 5e-5),
        ({"kind": "lion"}, 1e-4 / 3, 1e-4 / 6),
        ({"kind": "lion_8bit", "lr": 3e-4}, 3e-4, 1.5e-4),
        ({"kind": "prodigy"}, 1.0, 1.0),
        ({"kind": "dadapt_adam", "lr": 0.5}, 0.5, 0.5),
        ({"kind": "other", "class_path": "prodigyopt.Prodigy"}, 1.0, 1.0),
        ({"kind": "other", "class_path": "torch.optim.Adam"}, 1e-4, 5e-5),
    ],
)
def test_learning_rates_when_not_given(optimizer: dict, rate: float, text: float) -> None:
    config = files.build({"optimizer": optimizer}, {})
    found = defaults.learning_rate(config, is_pocket=False)
    assert found == pytest.approx(rate) and defaults.text_encoder_rate(config.optimizer, found) == pytest.approx(text)
