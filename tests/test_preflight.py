"""Everything that can be known before the start is said at once, each thing with its field and what to do."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tiny
from limner import runs
from limner.config import files
from limner.errors import Finding
from limner.machine import Device, Machine
from limner.preflight import Records, examine
from limner.space import needs

CPU = Machine("2.13.0", "cpu", (Device("cpu", "x86", 16_000, True),), 2, 16_000, "")
GPU = Machine("2.13.0", "12.8", (*CPU.devices, Device("cuda", "GTX 1080", 8_000, False)), 8, 16_000, "")
NEW_GPU = Machine("2.13.0", "12.8", (*CPU.devices, Device("cuda", "H200", 140_000, True)), 8, 16_000, "")
UNUSED_GPU = Machine("2.13.0", "cpu", CPU.devices, 2, 16_000, "RTX 4090")


@pytest.fixture
def good(tiny_model: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A configuration without fault, as nested dicts."""
    pictures = tiny.pictures(tmp_path / "pics")
    return {"model": {"base": str(tiny_model)}, "data": {"path": str(pictures)}, "train": {"steps": 5}}


def look(
    raw: dict[str, dict[str, Any]], machine: Machine = CPU, deep: bool = False, **sections: dict
) -> tuple[list[Finding], Records]:
    merged = {k: {**raw.get(k, {}), **sections.get(k, {})} for k in {*raw, *sections}}
    findings, records = examine(files.build(merged, {}), machine, deep=deep)
    for f in findings:
        assert f.field and f.message.endswith("."), f
        assert f.remedy or f.severity != "error", f
        assert str(f).isprintable()
    assert [f.severity for f in findings] == sorted((f.severity for f in findings), key=("error", "warning", "note").index)
    return findings, records


def test_a_good_configuration_has_no_findings_and_leaves_what_was_learnt(good: dict) -> None:
    findings, records = look(good, deep=True)
    assert findings == []
    assert records.base is not None and records.base.resolution_px == 32
    assert records.scan is not None and len(records.scan.pictures) == 4
    assert records.dataset is not None and records.dataset.total_steps == 5


CASES: list[tuple[str, str, str, dict[str, dict[str, Any]]]] = [
    ("embedding.token", "error", "no word is given", {"adapter": {"kind": "embedding"}}),
    ("embedding.token", "error", "cannot be a word", {"embedding": {"token": "my cat"}}),
    ("embedding.token", "error", "cannot be a word", {"embedding": {"token": "(cat"}}),
    ("embedding.token", "error", "cannot be a word", {"embedding": {"token": ""}}),
    ("embedding.token", "error", "no caption contains 'pict'", {"embedding": {"token": "pict"}}),
    ("embedding.initial", "error", "is empty", {"embedding": {"token": "picture", "initial": " "}}),
    ("embedding.lr", "warning", "no effect unless embedding.token is set", {"embedding": {"lr": 1e-3}}),
    ("memory.cache_text", "note", "while a word is learnt", {"embedding": {"token": "Picture"}}),
    (
        "output.name",
        "note",
        "call an embedding by its file's name",
        {"embedding": {"token": "picture"}, "adapter": {"kind": "embedding"}},
    ),
    (
        "optimizer.lr",
        "warning",
        "no effect unless adapter.kind is not",
        {"embedding": {"token": "picture"}, "adapter": {"kind": "embedding"}, "optimizer": {"lr": 1e-3}},
    ),
    (
        "output.lora_names",
        "warning",
        "no effect unless",
        {"embedding": {"token": "picture"}, "adapter": {"kind": "embedding"}, "output": {"lora_names": "diffusers"}},
    ),
    (
        "objective.preserve",
        "error",
        "a word changes nothing",
        {
            "embedding": {"token": "picture"},
            "adapter": {"kind": "embedding"},
            "objective": {"preserve": 1.0},
            "data": {"trigger": "picture", "class_words": ["cat"]},
        },
    ),
    (
        "data.trigger",
        "warning",
        "stays in the captions with class words",
        {
            "embedding": {"token": "picture"},
            "objective": {"preserve": 1.0},
            "data": {"trigger": "number", "class_words": ["cat"]},
        },
    ),
    ("logging.project", "warning", "no effect unless logging.trackers", {"logging": {"project": "cats"}}),
    ("logging.run_name", "warning", "no effect unless logging.trackers", {"logging": {"run_name": "cats"}}),
    ("model.base", "error", "neither a folder", {"model": {"base": "no such/thing at all"}}),
    ("model.base", "error", "neither a folder", {"model": {"base": "owner/two--dashes"}}),
    ("model.base", "error", "neither a folder", {"model": {"base": "~nobody-of-this-name/x"}}),
    ("model.base", "note", "will be fetched", {"model": {"base": "nobody/nothing-of-this-name"}}),
    ("model.config", "error", "is not a folder", {"model": {"config": "/no/such/folder"}}),
    ("model.config", "warning", "no effect on a diffusers folder", {"model": {"config": "/"}}),
    ("objective.prediction", "warning", "v_prediction is asked for", {"objective": {"prediction": "v_prediction"}}),
    ("data.path", "error", "no folder of pictures is given", {"data": {"path": None}}),
    ("data.path", "error", "does not exist", {"data": {"path": "/no/such/folder"}}),
    ("data.trigger", "warning", "missing in 4 of 4", {"data": {"trigger": "zwx"}}),
    ("data.resolution", "error", "less than a bucket step", {"data": {"resolution": 32, "bucket_step_px": 64}}),
    ("data.resolution", "warning", "will be blurred", {"data": {"resolution": 512}}),
    ("data.bucket_step_px", "error", "not a multiple of 2", {"data": {"bucket_step_px": 9}}),
    ("data.bucket_step_px", "warning", "not a multiple of 4", {"data": {"bucket_step_px": 10}}),
    ("data.bucket_min_px", "error", "lies outside", {"data": {"bucket_min_px": 100, "resolution": 64}}),
    ("data.bucket_min_px", "error", "lies outside", {"data": {"bucket_max_px": 32, "resolution": 64}}),
    (
        "data.bucket_min_px",
        "warning",
        "no effect unless data.buckets is set",
        {"data": {"bucket_min_px": 16, "buckets": False}},
    ),
    (
        "data.bucket_max_px",
        "warning",
        "no effect unless data.buckets is set",
        {"data": {"bucket_max_px": 64, "buckets": False}},
    ),
    (
        "data.bucket_step_px",
        "warning",
        "no effect unless data.buckets is set",
        {"data": {"bucket_step_px": 8, "buckets": False}},
    ),
    ("data.bucket_min_px", "warning", "and data.upscale is set", {"data": {"bucket_min_px": 16, "upscale": False}}),
    ("data.upscale", "warning", "no effect unless data.buckets is set", {"data": {"upscale": False, "buckets": False}}),
    ("train.epochs", "error", "both steps and epochs", {"train": {"epochs": 3}}),
    ("optimizer.warmup_steps", "error", "as long as the whole training of 5", {"optimizer": {"warmup_steps": 5}}),
    ("output.save_every_steps", "warning", "it never happens", {"output": {"save_every_steps": 6}}),
    ("sample.every_steps", "warning", "it never happens", {"sample": {"every_steps": 6, "prompts": ["a"]}}),
    ("sample.prompts", "warning", "there is no prompt", {"sample": {"every_steps": 2}}),
    ("sample.prompts[1]", "error", "--w 'x'", {"sample": {"prompts": ["a", "b --w x"]}}),
    ("sample.prompt_file", "error", "not a file", {"sample": {"prompt_file": "/no/such.txt"}}),
    ("adapter.denoiser", "error", "nothing is trained", {"adapter": {"denoiser": False}}),
    ("adapter.conv_alpha", "warning", "unless adapter.conv_rank is set", {"adapter": {"conv_alpha": 4.0}}),
    ("adapter.rules", "error", "no pattern", {"adapter": {"rules": ["off"]}}),
    ("adapter.rules", "error", "have no rank", {"adapter": {"kind": "none", "rules": ["*: rank=4"]}}),
    ("adapter.start", "error", "not a file", {"adapter": {"start": "/no/such.safetensors"}}),
    ("adapter.start", "error", "not a whole safetensors file", {"adapter": {"start": __file__}}),
    ("adapter.rank", "error", "does not divide into units of 5", {"adapter": {"kind": "dylora", "unit": 5}}),
    ("adapter.conv_rank", "error", "does not divide", {"adapter": {"kind": "dylora", "conv_rank": 6}}),
    ("adapter.rules", "error", "3 does not divide", {"adapter": {"kind": "dylora", "rules": ["*: rank=3"]}}),
    ("adapter.dropout", "error", "builds each weight whole", {"adapter": {"dora": True, "dropout": 0.1}}),
    ("output.lora_names", "error", "magnitudes", {"adapter": {"dora": True}, "output": {"lora_names": "diffusers"}}),
    ("output.lora_names", "error", "no names", {"adapter": {"kind": "lokr"}, "output": {"lora_names": "diffusers"}}),
    ("model.merge", "error", "strength", {"model": {"merge": ["a.safetensors @ x"]}}),
    ("model.merge", "error", "not a file", {"model": {"merge": ["/no/such.safetensors @ 2"]}}),
    ("memory.quantize", "error", "merged", {"model": {"merge": ["/no/such"]}, "memory": {"quantize": "nf4"}}),
    ("optimizer.text_encoder_lr", "warning", "unless adapter.text_encoder is set", {"optimizer": {"text_encoder_lr": 1e-4}}),
    ("memory.cache_text", "note", "not cached", {"adapter": {"text_encoder": True}}),
    ("output.keep_last", "warning", "unless output.save_every_steps is set or", {"output": {"keep_last": 2}}),
    (
        "output.author",
        "warning",
        'unless adapter.kind is not "none"',
        {"adapter": {"kind": "none"}, "output": {"author": "me", "layout": "diffusers"}},
    ),
    ("data.class_words", "warning", "unless objective.preserve is set", {"data": {"class_words": ["dog"]}}),
    ("data.class_words", "error", "are needed", {"objective": {"preserve": 1.0}}),
    ("objective.preserve", "error", "base model", {"objective": {"preserve": 1.0}, "adapter": {"kind": "none"}}),
    ("objective.preserve", "error", "text encoder", {"objective": {"preserve": 1.0}, "adapter": {"text_encoder": True}}),
    ("launch.device", "error", "has no cuda", {"launch": {"device": "cuda"}}),
    ("launch.num_processes", "error", "3 processes on 2 cores", {"launch": {"num_processes": 3}}),
    ("train.precision", "error", "hundreds of times slower", {"train": {"precision": "fp16"}}),
    ("output.name", "error", "cannot be a file name", {"output": {"name": ".."}}),
    ("output.path", "error", "cannot be written", {"output": {"path": "/proc/none"}}),
    ("memory.cache_path", "error", "cannot be written", {"memory": {"cache_path": "/dev/null/x"}}),
]


@pytest.mark.parametrize(("field", "severity", "words", "change"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])
@pytest.mark.skipif(os.name == "nt", reason="the paths are POSIX")
def test_each_finding(good: dict, field: str, severity: str, words: str, change: dict) -> None:
    if change.get("data", {}).get("path", "") is None:
        good, change = {**good, "data": {}}, {}
    findings, _ = look(good, **change)
    matching = [f for f in findings if f.field == field and words in f.message]
    assert [f.severity for f in matching] == [severity], findings


def test_all_are_found_at_once(good: dict) -> None:
    good["data"]["path"] = "/no/such/folder"
    findings, _ = look(
        good,
        model={"base": "no such/thing at all"},
        train={"epochs": 3, "precision": "fp16"},
        adapter={"denoiser": False},
        sample={"prompts": ["--x", "--w 1"]},
        output={"name": ""},
        launch={"num_processes": 99},
    )
    expected = {"model.base", "data.path", "train.epochs", "train.precision", "adapter.denoiser", "sample.prompts[0]"}
    expected |= {"sample.prompts[1]", "output.name", "launch.num_processes"}
    assert {f.field for f in findings if f.severity == "error"} == expected


@pytest.mark.parametrize(
    ("machine", "sections", "found"),
    [
        (GPU, {}, []),
        (GPU, {"train": {"precision": "fp16"}}, []),
        (GPU, {"train": {"precision": "bf16"}}, [("train.precision", "error")]),
        (NEW_GPU, {"train": {"precision": "bf16"}}, []),
        (NEW_GPU, {"launch": {"num_processes": 2}}, [("launch.num_processes", "error")]),
        (NEW_GPU, {"launch": {"device": "cpu", "num_processes": 2}}, []),
        (NEW_GPU, {"launch": {"device": "mps"}}, [("launch.device", "error")]),
        (UNUSED_GPU, {}, [("launch.device", "warning")]),
        (UNUSED_GPU, {"launch": {"device": "cpu"}}, []),
    ],
)
def test_machines(good: dict, machine: Machine, sections: dict, found: list[tuple[str, str]]) -> None:
    assert [(f.field, f.severity) for f in look(good, machine, **sections)[0]] == found


BAD_NAMES = [
    "",
    " ",
    ".",
    "..",
    "a/b",
    "a\\b",
    "a:b",
    'a"b',
    "a|b",
    "$(x)",
    "`x`",
    "a\nb",
    "CON",
    "nul.txt",
    "com1",
    "lpt\u00b2.x",
    "-x",
    ".hidden",
    "a.",
    " a",
    "a ",
    "ü" * 101,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_no_file_names_everywhere(good: dict, name: str) -> None:
    assert [(f.field, f.severity) for f in look(good, output={"name": name})[0]] == [("output.name", "error")]


@pytest.mark.parametrize("name", ["cat", "my cat v1.5", "猫", "x" * 200, "console", "a-b_c"])
def test_names_that_are(good: dict, name: str) -> None:
    assert look(good, output={"name": name})[0] == []


def test_broken_pictures_stop_the_start_or_are_skipped(good: dict, tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / "pics" / f"bad{i:02}.png").write_bytes(b"")
    findings, _ = look(good)
    assert len(findings) == 51 and {f.severity for f in findings} == {"error"}
    assert findings[0].field.endswith("bad00.png") and "10 more" in findings[-1].message
    findings, records = look(good, data={"skip_broken": True})
    assert {f.severity for f in findings} == {"warning"}
    assert records.dataset is not None and len(records.dataset.pictures) == 4


def test_no_usable_picture(good: dict, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "pics")
    (tmp_path / "pics").mkdir()
    assert [(f.field, f.severity) for f in look(good)[0]] == [("data.path", "error")]


def test_a_deep_look_decodes_every_picture(good: dict, tmp_path: Path) -> None:
    path = tmp_path / "pics" / "half.jpg"
    noise = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3))
    noise.save(path)
    path.write_bytes(path.read_bytes()[:2000])
    path.with_suffix(".txt").write_text("a caption")
    assert look(good)[0] == []
    [finding] = look(good, deep=True)[0]
    assert (finding.field, finding.severity) == (str(path), "error") and "does not open" in finding.message
    assert [f.severity for f in look(good, deep=True, data={"skip_broken": True})[0]] == ["warning"]


def test_a_full_disk(good: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.disk.free_bytes", lambda _: 10 << 20)
    [finding] = look(good)[0]
    assert finding.field == "output.path" and finding.message.startswith("10 MiB are free, about 57 MiB are needed")
    assert finding.message.endswith(f"on the disk of {runs.home()}.")
    assert "MiB are needed" in look(good, adapter={"kind": "none"})[0][0].message


def test_each_disk_is_asked_for_what_goes_there(good: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches, runs and finished files may lie on three disks, and checkpoints on the way take space as well."""
    folders = {name: tmp_path / name for name in ("cache", "out")}
    monkeypatch.setattr("limner.disk.disk_of", lambda p: [*folders.values(), p].index(p))
    monkeypatch.setattr("limner.disk.free_bytes", lambda p: (p not in folders.values()) << 40)
    kept = {"memory": {"cache_path": str(folders["cache"])}, "adapter": {"kind": "none"}}
    found, records = look(good, output={"path": str(folders["out"]), "save_every_steps": 1, "dtype": "fp32"}, **kept)
    said = {f.field: int(f.message.split("about ")[1].split()[0]) for f in found}
    assert said.keys() == {"memory.cache_path", "output.path"}
    assert records.base is not None and records.scan is not None
    weighs = sum(f.stat().st_size for f in records.base.path.rglob("*.safetensors"))  # type: ignore[union-attr]
    assert said["output.path"] == 6 * -(-weighs // 2**20) >= 6  # of 5 steps each, and the last
    found, _ = look(good, output={"path": str(folders["out"]), "save_every_steps": 1, "keep_last": 2, "dtype": "fp32"}, **kept)
    assert [f.message.split("about ")[1].split()[0] for f in found if f.field == "output.path"] == [
        str(3 * -(-weighs // 2**20))
    ]
    kept["memory"] |= {"cache_latents": False, "cache_text": False}  # type: ignore[arg-type]
    found, _ = look(good, output={"path": str(folders["out"])}, **kept)
    assert [f.field for f in found if "MiB" in f.message] == ["output.path"]


def test_mirrored_pictures_take_their_space(good: dict) -> None:
    records = look(good)[1]
    assert records.scan is not None and records.base is not None
    records.scan.pictures *= 100_000
    plain, mirrored = (
        needs(files.build({**good, "data": {"flip": flip}}, {}), records.base, records.scan.pictures).caches
        for flip in (False, True)
    )
    latents = 2 * records.base.latent_channels * (32 // records.base.latent_factor) ** 2  # mean and deviation
    assert mirrored - plain == pytest.approx(400_000 * latents * 4 / 2**20, abs=1) and mirrored - plain > 1000


def test_a_thousand_pictures_take_under_two_seconds(good: dict, tmp_path: Path) -> None:
    content = (tmp_path / "pics" / "p0.png").read_bytes()
    for i in range(1000):
        (tmp_path / "pics" / f"{i}.png").write_bytes(content)
        (tmp_path / "pics" / f"{i}.txt").write_text("a caption")
    start = time.process_time()
    findings, records = look(good)
    assert time.process_time() - start < 2
    assert findings == [] and records.dataset is not None and len(records.dataset.pictures) == 1004


def test_nothing_is_left_behind(good: dict, tmp_path: Path, home: Path) -> None:
    look(good, output={"path": str(tmp_path / "out")}, memory={"cache_path": str(tmp_path / "cache")})
    for folder in (home, tmp_path / "out", tmp_path / "cache"):
        assert not folder.exists() or os.listdir(folder) == []


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """wandb and trackio as empty packages; no key anywhere."""
    for name in ("wandb", "trackio"):
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_a_tracker_that_is_not_installed(good: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    [first, second] = look(good, logging={"trackers": ["wandb", "trackio"]})[0]
    assert str(first) == 'error: logging.trackers: wandb is not installed. Run: pip install "limner[wandb]"'
    assert str(second) == 'error: logging.trackers: trackio is not installed. Run: pip install "limner[trackio]"'


def test_wandb_needs_a_key_or_to_be_offline(
    good: dict, installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = {"trackers": ["wandb", "trackio"]}
    [finding] = look(good, logging=asked)[0]
    assert finding.message == "wandb has no key and is not offline." and "WANDB_API_KEY" in finding.remedy
    for name, value in (("WANDB_API_KEY", "k"), ("WANDB_MODE", "offline"), ("WANDB_IDENTITY_TOKEN_FILE", "f")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert look(good, logging=asked)[0] == []
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password k\n")
    assert look(good, logging=asked)[0] == []
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert [f.field for f in look(good, logging=asked)[0]] == ["logging.trackers"]


@pytest.mark.parametrize("project", ["", "  ", "a/b", "a?b", "x" * 129])
def test_a_name_that_is_no_project(good: dict, installed: None, project: str) -> None:
    [finding] = look(good, logging={"trackers": ["trackio"], "project": project})[0]
    assert finding.field == "logging.project"


def without(folder: str, part: str, tmp_path: Path) -> Path:
    """A copy of a model that lacks a part."""
    return Path(shutil.copytree(folder, tmp_path / f"without {part}", ignore=shutil.ignore_patterns(part)))


def test_what_a_flow_cannot_or_ignores(good: dict, tmp_path: Path) -> None:
    model = {"base": str(tiny.build(tmp_path / "sd3", family="sd3"))}
    cases = [
        ("objective.prediction", "error", {"objective": {"prediction": "epsilon"}}),
        ("objective.weighting", "error", {"objective": {"weighting": "min_snr"}}),
        ("objective.guidance", "warning", {"objective": {"guidance": 1.0}}),
        ("sample.prompts[1]", "error", {"sample": {"prompts": ["a cat --ss k_euler --fs 2", "a cat --ss ddim"]}}),
        ("sample.prompts[0]", "error", {"sample": {"prompts": ["a cat --ss dpmsolver++"]}}),
        ("sample.prompts[0]", "error", {"sample": {"prompts": ["a cat --g 3.5"]}}),
        ("data.bucket_step_px", "error", {"data": {"bucket_step_px": 10}}),
        ("model.family", "error", {"model": {**model, "family": "flux"}}),
        *(("sample.solver", "error", {"sample": {"solver": s, "prompts": ["a"]}}) for s in ("ddim", "k_euler_a", "dpmpp_2m")),
        ("model.clip_skip", "warning", {"model": {**model, "clip_skip": 2}}),
        ("model.text_chunks", "warning", {"model": {**model, "text_chunks": 3}}),
        ("adapter.conv_rank", "warning", {"adapter": {"conv_rank": 4}}),
        ("adapter.convolutions", "warning", {"adapter": {"kind": "full", "convolutions": True}}),
        ("adapter.text_encoder", "note", {"adapter": {"kind": "oft", "text_encoder": True}}),
        ("model.clip_g", "warning", {"model": {"base": str(without(model["base"], "text_encoder_2", tmp_path))}}),
        ("model.t5", "note", {"model": {"base": str(without(model["base"], "text_encoder_3", tmp_path))}}),
    ]
    assert not [f for f in look(good, model=model)[0] if f.severity == "error"]
    for field, severity, change in cases:
        findings, _ = look(good, **{"model": model, **change})
        assert [f.severity for f in findings if f.field == field] == [severity], (field, findings)
        assert not [f for f in findings if f.field.startswith("sample.") and f.field != field], findings


def test_what_prompts_ask_in_vain(good: dict, tmp_path: Path) -> None:
    """A model that is told the guidance takes --g, and a negative prompt only with --l on top; no other has a use for these."""
    told = {"base": str(tiny.build(tmp_path / "flux", family="flux"))}
    (file := tmp_path / "p.toml").write_text('[prompt]\nprompt = "a"\n[[prompt.subset]]\n[[prompt.subset]]\nflow_shift = 3\n')

    def said(model: dict, **sample: Any) -> list[tuple[str, str]]:
        found = look(good, model=model, sample=sample)[0]
        return [(f.field, f.severity) for f in found if f.field.startswith(("sample.", "p.toml"))]

    assert said(told, prompts=["a --g 2", "b --g 2 --l 3 --fs 1"], prompt_file=str(file), negative="x", solver="euler") == []
    assert said(told, prompts=["a --l 3", "b --g 2"], negative="x") == [("sample.negative", "warning")]
    assert said(told, negative="x") == [("sample.negative", "warning")]
    plain = {"base": good["model"]["base"]}
    asked = ["a --ss k_euler_a", "b --g 3", "c --fs 3 --g 1"]
    fields = ["sample.prompts[1]", "sample.prompts[2]", "sample.prompts[2]", "p.toml, prompt 2"]
    assert said(plain, prompts=asked, prompt_file=str(file), negative="x") == [(f, "error") for f in fields]
    assert len(said(plain, prompts=["a --g 3"] * 30)) == 20
    # of a model that is not here yet nothing is known
    coming = {"base": "nobody/nothing-of-this-name"}
    assert said(coming, prompts=["a --g 3 --fs 3"]) == []


def test_which_layers_and_how_long_captions(good: dict, tmp_path: Path) -> None:
    asked = {"clip_skip": 2, "text_chunks": 3}
    xl = {"base": str(tiny.build(tmp_path / "sdxl", family="sdxl"))}
    for model, expected in (({}, []), (xl, [("model.clip_skip", "warning")])):
        findings, _ = look(good, model={**good["model"], **model, **asked})
        assert [(f.field, f.severity) for f in findings if f.field.startswith("model.")] == expected


def test_flows_that_are_not_whole_or_plain(good: dict, tmp_path: Path) -> None:
    model = tiny.build(tmp_path / "flux", family="flux")

    def said() -> list[str]:
        return [f.message for f in look(good, model={"base": str(model)})[0] if f.field == "model.base"]

    assert said() == []
    config = model / "transformer" / "config.json"
    plain = config.read_text()
    config.write_text(plain.replace('"in_channels": 64', '"in_channels": 128'))
    assert "takes more than noisy pictures" in said()[0]
    config.write_text(plain)
    (model / "tokenizer_2" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    findings = look(good, model={"base": str(model)})[0]
    [finding] = [f for f in findings if f.field == "model.t5_tokenizer"]
    assert finding.severity == "note" and "will be fetched" in finding.message
    findings = look(good, model={"base": str(model), "t5_tokenizer": str(tmp_path)})[0]
    assert not [f for f in findings if f.field == "model.t5_tokenizer"]
    (model / "scheduler" / "scheduler_config.json").write_text("{}")
    assert "not that of a flow" in said()[0]


def test_t5_that_stays_is_warned_of(good: dict, tmp_path: Path) -> None:
    model = {"base": str(tiny.build(tmp_path / "flux", family="flux"))}
    for change in ({"adapter": {"text_encoder": True}}, {"memory": {"cache_text": False}}):
        findings = look(good, model=model, **change)[0]
        said = [f for f in findings if f.field == "memory.cache_text" and f.severity == "warning"]
        assert len(said) == 1 and "T5 among them" in said[0].message and said[0].remedy
    assert not [f for f in look(good, model=model)[0] if f.field == "memory.cache_text"]


def test_a_single_file_that_would_leave_out_what_is_trained(good: dict, tmp_path: Path) -> None:
    """Flux's files hold the transformer alone; Stable Diffusion 3's, made from a folder, everything."""
    for family, expected in (("flux", ["error"]), ("sd3", [])):
        model = {"base": str(tiny.build(tmp_path / family, family=family))}
        for layout, found in (("original", expected), ("diffusers", [])):
            sections = {"adapter": {"kind": "none", "text_encoder": True}, "output": {"layout": layout}}
            findings = look(good, model=model, **sections)[0]
            assert [f.severity for f in findings if f.field == "output.layout"] == found, (family, layout)


def test_a_word_beside_others_names_both_files_that_it_replaces(good: dict, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("cat.safetensors", "cat_embedding.safetensors"):
        (tmp_path / "out" / name).touch()
    given = {"output": {"path": str(tmp_path / "out"), "name": "cat"}}
    findings, _ = look(good, **given, embedding={"token": "picture"})
    assert [f.message.split("/")[-1] for f in findings if f.field == "output.name"] == [
        "cat.safetensors exists and will be replaced.",
        "cat_embedding.safetensors exists and will be replaced.",
    ]
    findings, _ = look(good, **given)
    assert [f.field for f in findings] == ["output.name"]


def test_a_word_may_come_from_what_is_put_around_captions(good: dict) -> None:
    findings, _ = look(good, embedding={"token": "zibbo"}, data={**good["data"], "caption_prefix": "a Zibbo,"})
    assert not [f for f in findings if f.field == "embedding.token"]


def test_a_flow_learns_no_words(tmp_path: Path, good: dict) -> None:
    model = tiny.build(tmp_path / "flow", family="sd3")
    findings, _ = look(good, model={"base": str(model)}, embedding={"token": "picture"})
    assert any(f.field == "embedding.token" and f.severity == "error" and "only for Stable" in f.message for f in findings)
