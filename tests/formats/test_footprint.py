"""What weights weigh, against models that are really built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from headers import parts_beside, published, single_file
from limner.adapters import adapter as adapters
from limner.config import Config, files
from limner.formats.base import recognise
from limner.formats.footprint import footprint, num_trained, tensors_of
from limner.models import family as families
from limner.models.family import FAMILIES, Keep


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_have_as_many_numbers(name: str, tmp_path: Path) -> None:
    base = recognise(str(tiny.build(tmp_path / "m", family=name)))
    family = families.make(base, Keep())
    for part in ("text", "denoiser", "vae"):
        family.load(part, torch.float32, torch.device("cpu"))
    models = {"vae": family.vae, **family.text_encoders}  # type: ignore[attr-defined]
    models[("unet", "transformer")[base.prediction == "flow"]] = family.denoiser
    for part, model in models.items():
        own = {id(t): t.numel() for t in model.state_dict(keep_vars=True).values()}  # T5's embedding counts once
        assert sum(torch.Size(i.shape).numel() for i in tensors_of(base, part).values()) == sum(own.values()), part


def weighed(path: Path, precision: str = "bf16", **sections: dict) -> tuple[int, int, int, int]:
    config: Config = files.build({"model": {"base": str(path)}, **sections}, {})
    found = footprint(config, recognise(str(path)), precision)
    return found.text_mib, found.vae_mib, found.denoiser_mib, found.trained_mib


def test_flux_at_its_size(tmp_path: Path) -> None:
    """12 thousand million numbers: 22.2 GiB in bf16. (The parts beside it are told by one tensor here.)"""
    parts_beside(tmp_path, 16)
    path = single_file(tmp_path / "dev.safetensors", published("flux"))
    _, _, whole, trained = weighed(path, adapter={"rank": 16})
    assert 22_600 < whole < 22_800 and 1000 < trained < 5000
    assert weighed(path, adapter={"rank": 32})[3] == pytest.approx(2 * trained, abs=2)
    _, _, eight, _ = weighed(path, memory={"quantize": "fp8"})
    _, _, four, _ = weighed(path, memory={"quantize": "nf4"})
    assert 0.5 * whole < eight < 0.52 * whole and 0.28 * whole < four < 0.31 * whole


def test_a_model_that_is_trained_itself(tmp_path: Path) -> None:
    path = single_file(tmp_path / "sd.safetensors", published("sd1"))
    text, vae, denoiser, trained = weighed(path, "fp32", adapter={"kind": "none"})
    assert (denoiser, trained) == (0, round(859_520_964 * 16 / 2**20))  # SD 1's UNet
    shares = {
        1: {"adapter": {"kind": "none"}, "optimizer": {"kind": "adamw"}, "train": {"ema": 0.9, "ema_device": "cpu"}},
        20 / 16: {"adapter": {"kind": "none"}, "train": {"ema": 0.9}},
        12 / 16: {"adapter": {"kind": "none"}, "optimizer": {"in_backward": True}},
        10 / 16: {"adapter": {"kind": "none"}, "optimizer": {"kind": "adamw_8bit"}},
        24 / 16: {"adapter": {"kind": "none"}, "optimizer": {"kind": "prodigy"}},
        2.1 / 16: {"adapter": {"kind": "none", "weights": "bf16"}, "optimizer": {"kind": "adafactor", "in_backward": True}},
    }
    for share, sections in shares.items():
        assert weighed(path, "bf16", **sections)[3] == pytest.approx(share * trained, abs=1)
    assert text == round(123_060_480 * 4 / 2**20) and vae == round(83_653_863 * 4 / 2**20)


@pytest.mark.parametrize(
    "adapter",
    [
        {"rank": 3, "conv_rank": 3}, {"rank": 3, "conv_rank": 3, "dora": True},
        {"rank": 2, "conv_rank": 2, "rules": ["*: rank=5"]},
        {"kind": "loha", "rank": 3, "conv_rank": 3}, {"kind": "lokr", "rank": 1, "conv_rank": 1}, {"kind": "lokr", "rank": 99},
        {"kind": "lokr", "rank": 2, "conv_rank": 2, "factor": 2}, {"kind": "oft", "convolutions": True},
        {"kind": "oft", "butterfly": True, "convolutions": True}, {"kind": "ia3"}, {"kind": "glora", "rank": 3, "conv_rank": 3},
        {"kind": "dylora", "rank": 4, "conv_rank": 4}, {"kind": "full", "convolutions": True},
    ],
    ids=str,
)  # fmt: skip
def test_what_an_adapter_holds_is_known_before(tiny_model: Path, adapter: dict) -> None:
    """An upper bound, and not a wild one: embeddings and the denoiser's ends are counted, and not adapted."""
    config, base = files.build({"adapter": adapter}, {}), recognise(str(tiny_model))
    family = families.make(base)
    family.load("denoiser", torch.float32, torch.device("cpu"))
    made = adapters.make(config.adapter)
    made.attach(family, 0)
    held = sum(len(t.flatten()) for name, t in made.state_dict().items() if not name.endswith(("alpha", "on_input")))
    assert held <= num_trained(config, base) < 10 * held
