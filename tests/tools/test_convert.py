"""Models converted from one layout to the other: bits stay bits; what is refused; nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import bare
import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.config import files
from limner.config.tools import Tools, the_section
from limner.errors import StopRequested, UserError
from limner.formats.base import recognise
from limner.formats.known import FAMILIES
from limner.formats.original import UNET
from limner.tools import convert
from original_layout import as_file, as_single_file, in_folder


def section(**given: Any) -> Any:
    raw = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    return the_section(files.build_as(Tools, {"convert": raw}, {}))[1]


def quiet(*_: object) -> None: ...


def converted(**given: Any) -> Path:
    report = convert.run(asked := section(**given), quiet)
    assert list(report.files) == [asked.output] and not report.remarks
    return report.files[0]


def refused(**given: Any) -> str:
    with pytest.raises(UserError) as caught:
        convert.look(section(**given))
    with pytest.raises(UserError):
        convert.run(section(**given), quiet)
    return str(caught.value)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.fixture(params=list(FAMILIES))
def folder(request: pytest.FixtureRequest) -> Path:
    return bare.model(request.param)


def single_file(folder: Path, path: Path) -> Path:
    save_file(as_single_file(folder, folder.name), path, {"modelspec.title": "it"})
    return path


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_a_folder_becomes_the_file_that_people_have(folder: Path, tmp_path: Path):
    family = folder.name
    out = converted(file=folder, output=tmp_path / "x.safetensors", layout="original")
    # Flux's file is the transformer alone, under names without a prefix
    expected = as_single_file(folder, family)
    if family == "flux":
        expected = as_file(family, {"transformer": in_folder(folder, family)["transformer"]}, {"transformer": ""})
    found = load_file(out)
    extra = found.keys() - expected.keys()
    assert all(".resblocks.2." in name for name in extra) and bool(extra) == (family == "sd2")
    same({n: t for n, t in found.items() if n not in extra}, expected)
    with safe_open(out, "pt") as opened:
        assert opened.metadata()["modelspec.architecture"].startswith({"flux": "flux-1"}.get(family, "stable-diffusion"))


def test_a_file_becomes_the_folder_that_diffusers_reads(folder: Path, tmp_path: Path):
    file = single_file(folder, tmp_path / "one.safetensors")
    out = converted(file=file, output=tmp_path / "out", layout="diffusers", config=folder)
    there, here = in_folder(out, folder.name), in_folder(folder, folder.name)
    for part, tensors in here.items():
        level = "text_model." if part.startswith("text_encoder") and "shared.weight" not in tensors else ""
        named = {n if n.startswith(("text_model.", "text_projection.")) else level + n: t for n, t in tensors.items()}
        same(there[part], named)
    pipe = diffusers.DiffusionPipeline.from_pretrained(out, torch_dtype=torch.float32)
    assert type(pipe).__name__ == json.loads((folder / "model_index.json").read_text("utf-8"))["_class_name"]
    for part, tensors in here.items():
        own = {n.removeprefix("text_model."): t for n, t in getattr(pipe, part).state_dict().items()}
        assert all(torch.equal(own[n.removeprefix("text_model.")], t) for n, t in tensors.items())
    back = recognise(str(out))
    assert (back.family, back.prediction, back.layout) == (folder.name, recognise(str(folder)).prediction, "folder")


def test_there_and_back(folder: Path, tmp_path: Path):
    """In half precision, all parts in one file."""
    file = single_file(folder, tmp_path / "one.safetensors")
    there = converted(file=file, output=tmp_path / "there", layout="diffusers", config=folder, dtype="fp16")
    back = converted(file=there, output=tmp_path / "back.safetensors", layout="original")
    expected = {n: t.half() for n, t in load_file(file).items()}
    if folder.name == "flux":
        expected = {n.removeprefix(UNET): t for n, t in expected.items() if n.startswith(UNET)}
    found = load_file(back)
    same({n: found[n] for n in expected}, expected)


def test_one_part_alone(folder: Path, tmp_path: Path):
    family, file = folder.name, single_file(folder, tmp_path / "one.safetensors")
    states, transformer = in_folder(folder, family), "transformer" in in_folder(folder, family)
    named = {"vae": "", "unet": UNET, "transformer": ""}
    for part, name in (("vae", "vae"), ("denoiser", "transformer" if transformer else "unet")):
        expected = as_file(family, {name: states[name]}, named)
        given = {"part": part, "config": folder}
        same(load_file(converted(file=file, output=tmp_path / f"{part}.safetensors", **given)), expected)
        given["layout"] = "original"
        del given["config"]
        same(load_file(converted(file=folder, output=tmp_path / f"{part} 2.safetensors", **given)), expected)
        out = converted(file=file, output=tmp_path / part, part=part, config=folder, layout="diffusers")
        copied = converted(file=folder, output=tmp_path / f"{part} copied", part=part)
        kinds: Any = {"vae": diffusers.AutoencoderKL, "unet": diffusers.UNet2DConditionModel}
        kind = kinds.get(name) or getattr(diffusers, json.loads((out / "config.json").read_text())["_class_name"])
        for made in (out, copied):
            same(kind.from_pretrained(made).state_dict(), states[name])


def test_another_precision_of_a_folder(folder: Path, tmp_path: Path):
    out = converted(file=folder, output=tmp_path / "out", dtype="bf16")
    for part, tensors in in_folder(folder, folder.name).items():
        same(in_folder(out, folder.name)[part], {n: t.bfloat16() for n, t in tensors.items()})
    for file in folder.rglob("*.json"):
        copy, was = (json.loads((f / file.relative_to(folder)).read_text("utf-8")) for f in (out, folder))
        assert {k: v for k, v in copy.items() if k != "dtype"} == {k: v for k, v in was.items() if k != "dtype"}
        assert copy.get("dtype", "bfloat16") == "bfloat16"


# --- pickles, averages, numbers ---------------------------------------------------------------------------------------


def test_a_checkpoint_and_its_averages(tmp_path: Path):
    state = as_single_file(bare.model("sd1"), "sd1")
    unet = [n for n in state if n.startswith(UNET)]
    averages = {"model_ema." + n.removeprefix("model.").replace(".", ""): state[n] + 1 for n in unet}
    rest = {"betas": torch.linspace(0, 1, 7, dtype=torch.float64), "model_ema.num_updates": torch.tensor(3)}
    torch.save({"state_dict": state | averages | rest, "optimizer_states": [torch.zeros(9)]}, file := tmp_path / "x.ckpt")
    betas = {"betas": rest["betas"]}
    same(load_file(converted(file=file, output=tmp_path / "a.safetensors")), state | betas)
    kept = load_file(converted(file=file, output=tmp_path / "b.safetensors", ema="keep"))
    same(kept, state | averages | rest)
    used = state | {n: state[n] + 1 for n in unet} | betas
    same(load_file(converted(file=file, output=tmp_path / "c.safetensors", ema="use")), used)
    out = converted(file=file, output=tmp_path / "out", ema="use", layout="diffusers", config=bare.model("sd1"))
    own = in_folder(bare.model("sd1"), "sd1")
    same(in_folder(out, "sd1")["unet"], {n: t + 1 for n, t in own["unet"].items()})
    same(in_folder(out, "sd1")["vae"], own["vae"])
    half = load_file(converted(file=file, output=tmp_path / "d.safetensors", dtype="fp16"))
    same(half, {n: t.half() for n, t in (state | betas).items()})


def test_numbers_in_8_bits_become_whole(tmp_path: Path):
    scaled = torch.tensor([[1.0, -2.0], [448.0, 0.5]]).to(torch.float8_e4m3fn)
    state = {"a.weight": scaled, "a.scale_weight": torch.tensor(0.25), "a.bias": torch.ones(2).half(), "n": torch.tensor([1])}
    save_file(state, file := tmp_path / "x.safetensors")
    found = load_file(converted(file=file, output=tmp_path / "y.safetensors", dtype="bf16"))
    expected = torch.tensor([[0.25, -0.5], [112.0, 0.125]]).bfloat16()
    same(found, {"a.weight": expected, "a.bias": torch.ones(2).bfloat16(), "n": torch.tensor([1])})
    same(load_file(converted(file=file, output=tmp_path / "z.safetensors")), state)


def test_what_fp16_has_no_room_for_is_said(tmp_path: Path):
    save_file({"a": torch.tensor([1e30, 1.0]), "b": torch.tensor([float("inf")])}, file := tmp_path / "x.safetensors")
    (remark,) = convert.run(section(file=file, output=tmp_path / "y.safetensors", dtype="fp16"), quiet).remarks
    assert remark.severity == "warning" and "of 1 tensors" in remark.message and "the first in a" in remark.message


# --- what is refused, and half-written files ----------------------------------------------------------------------------


def test_nothing_is_written_over_unasked(tmp_path: Path):
    (out := tmp_path / "x.safetensors").write_bytes(b"mine")
    assert "exists already" in refused(file=bare.model("sd1"), output=out, layout="original")
    assert out.read_bytes() == b"mine"
    converted(file=bare.model("sd1"), output=out, layout="original", overwrite=True)
    assert recognise(str(out), config=bare.model("sd1")).family == "sd1"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a.txt").write_text("mine")
    assert "was not made by Limner" in refused(file=bare.model("sd1"), output=tmp_path / "theirs", overwrite=True)
    assert "written over or into" in refused(file=bare.model("sd1"), output=bare.model("sd1") / "x", overwrite=True)
    assert "written over or into" in refused(file=out, output=out, overwrite=True)
    assert "does not end in .safetensors" in refused(file=bare.model("sd1"), output=tmp_path / "y.ckpt", layout="original")
    assert "a folder will be made" in refused(file=bare.model("sd1"), output=tmp_path / "y.safetensors")


def test_a_damaged_model_is_refused_before_anything_is_written(tmp_path: Path):
    state = as_single_file(bare.model("sd1"), "sd1")
    name = f"{UNET}middle_block.0.in_layers.2.weight"
    for change, said in ({}, "1 tensors are missing"), ({name: state[name][:1].clone()}, "numbers are needed"):
        save_file({n: t for n, t in state.items() if n != name} | change, file := tmp_path / "x.safetensors")
        assert said in refused(file=file, output=tmp_path / "out", layout="diffusers", config=bare.model("sd1"))
    del state[name]
    file.write_bytes(file.read_bytes()[:-1])
    assert "not a whole safetensors file" in refused(file=file, output=tmp_path / "out.safetensors")
    assert "does not exist" in refused(file=tmp_path / "no", output=tmp_path / "out.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_hostile_pickle_runs_nothing(tmp_path: Path):
    class Call:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'gone'}",)

    torch.save({"state_dict": {"a": torch.zeros(2)}, "x": Call()}, file := tmp_path / "x.ckpt")
    assert "system, which weights have no need of" in refused(file=file, output=tmp_path / "y.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_stopped_half_way_nothing_is_there(tmp_path: Path, layout: str):
    file = tmp_path / "one.safetensors"
    save_file(as_single_file(bare.model("sd1"), "sd1"), file)
    out = tmp_path / ("y.safetensors" if layout == "original" else "out")
    if layout == "original":
        out.write_bytes(b"before")

    def stop(done: int, total: int, words: str = "") -> None:
        if done > total / 2:
            raise StopRequested

    with pytest.raises(StopRequested):
        convert.run(section(file=file, output=out, layout=layout, config=bare.model("sd1"), overwrite=True), stop)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == sorted(
        ["one.safetensors", *([out.name] if layout == "original" else [])]
    )
    assert layout == "diffusers" or out.read_bytes() == b"before"
