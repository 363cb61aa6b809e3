"""Families other than Stable Diffusion 1 through the whole trainer; what one family proves of the engine is not tried again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
from limner.formats.base import recognise
from limner.formats.header import read_header
from limner.formats.known import FAMILIES
from limner.models import family as families
from limner.runs import Run
from original_layout import as_file, in_folder
from trainer import Moment, config, new_run, tensors_hash, train

OTHERS = tuple(name for name in families.FAMILIES if name != "sd1")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=OTHERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / request.param, family=request.param)


def trained(model: Path, pictures: Path, /, **sections: dict) -> Run:
    run = new_run(config(model, pictures, **{"train": {"steps": 4}, **sections}))
    assert train(run) == 0, run.tail()
    return run


def test_a_lora_with_and_without_caches(model: Path, pictures: Path) -> None:
    sample = {"prompts": ["a cat --w 40 --h 24 --s 2"]}
    run = trained(model, pictures, adapter={"rank": 3}, sample=sample)
    plain = trained(model, pictures, adapter={"rank": 3}, memory={"cache_latents": False, "cache_text": False})
    file = run.checkpoints / "cat.safetensors"
    assert tensors_hash(file) == tensors_hash(plain.checkpoints / "cat.safetensors")
    assert all(t.abs().max() > 0 for k, t in load_file(file).items() if k.endswith("lora_up.weight"))
    with Image.open(run.samples / "step-00000004_00.png") as picture:
        assert picture.size == (40, 24)
    said = read_header(file).metadata
    expected = {
        "sd2": ("True", "sd_v2", "stable-diffusion-v2-512/lora"),
        "sdxl": ("False", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
        "sd3": ("False", "sd3", "stable-diffusion-3/lora"),
        "flux": ("False", "flux1", "flux-1-dev/lora"),
    }
    found = said["ss_v2"], said["ss_base_model_version"], said["modelspec.architecture"]
    assert found == expected[model.name]


def test_the_text_encoders_are_trained_too(model: Path, pictures: Path) -> None:
    run = trained(model, pictures, adapter={"rank": 3, "text_encoder": True}, memory={"cache_text": False})
    state = load_file(run.checkpoints / "cat.safetensors")
    prefixes = {
        "sd2": ["lora_te_"],
        "sdxl": ["lora_te1_", "lora_te2_"],
        "sd3": ["lora_te1_", "lora_te2_"],
        "flux": ["lora_te1_"],
    }
    for prefix in prefixes[model.name]:
        # the last layer of SDXL's encoders is not looked at
        assert any(t.abs().max() > 0 for k, t in state.items() if k.startswith(prefix) and k.endswith("lora_up.weight")), prefix


def test_the_model_itself(model: Path, pictures: Path) -> None:
    run = trained(model, pictures, adapter={"kind": "none"})
    out, folder = run.checkpoints / "cat", FAMILIES[model.name].denoiser
    before, after = (load_file(next((f / folder).glob("*.safetensors"))) for f in (model, out))
    assert before.keys() == after.keys() and any((before[k] - after[k]).abs().max() > 1e-4 for k in before)
    family = families.make(recognise(str(out)))
    for part in ("text", "denoiser", "vae"):
        family.load(part, torch.float32, torch.device("cpu"))
    assert family.base.family == model.name


def test_a_flow_in_files_of_their_own(model: Path, pictures: Path, tmp_path: Path) -> None:
    """The transformer here, the rest there: the same LoRA to the bit as from a folder; and a whole model as one file."""
    if not (model / "transformer").exists():
        pytest.skip("a UNet, whose files are whole")
    options = {"vae": "vae", "text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5"}
    options |= {"text_encoder_2": "t5"} if model.name == "flux" else {}
    files = {"config": str(model)}
    for part, state in in_folder(model, model.name).items():
        path = tmp_path / f"{part}.safetensors"
        save_file(as_file(model.name, {part: state}, {part: ""}), path)
        files[options.get(part, "base")] = str(path)
    run = trained(Path(files["base"]), pictures, adapter={"rank": 3}, model=files)
    plain = trained(model, pictures, adapter={"rank": 3})
    assert tensors_hash(run.checkpoints / "cat.safetensors") == tensors_hash(plain.checkpoints / "cat.safetensors")
    whole = trained(Path(files["base"]), pictures, adapter={"kind": "none"}, model=files, output={"layout": "original"})
    before, after = load_file(files["base"]), load_file(whole.checkpoints / "cat.safetensors")
    assert before.keys() == after.keys() and any((before[k] - after[k]).abs().max() > 1e-4 for k in before)
    assert read_header(whole.checkpoints / "cat.safetensors").metadata["modelspec.architecture"].startswith(("stable", "flux"))


def test_long_captions_in_chunks(model: Path, pictures: Path, tmp_path: Path) -> None:
    """Three chunks with and without cached text give the same LoRA to the bit, another than one; and the file says so."""
    if (model / "transformer").exists():
        pytest.skip("a flow, whose captions have one length")
    folder = Path(shutil.copytree(pictures, tmp_path / "long"))
    for i, file in enumerate(sorted(folder.glob("*.txt"))):
        file.write_text(f"picture {i} " + "cat, mat " * 20 + f"wow {i}" * 20, encoding="utf-8")
    chosen = {"adapter": {"rank": 3}, "model": {"base": str(model), "text_chunks": 3, "clip_skip": 2}}
    sample = {"prompts": ["a (cat:1.3) --w 16 --h 16 --s 1 --n [b]", "cat " * 90 + "--w 16 --h 16 --s 1"]}
    run = trained(model, folder, **chosen, sample=sample)
    plain = trained(model, folder, **chosen, memory={"cache_text": False})
    short = trained(model, folder, **{**chosen, "model": {**chosen["model"], "text_chunks": 1}})
    three, again, one = (tensors_hash(r.checkpoints / "cat.safetensors") for r in (run, plain, short))
    assert three == again != one
    assert [any("too long" in e.get("message", "") for e in r.history()) for r in (run, short)] == [False, True]
    assert len(list(run.samples.iterdir())) == 2
    said = read_header(run.checkpoints / "cat.safetensors").metadata
    assert said["ss_max_token_length"] == "225" and said["ss_clip_skip"] == ("None" if model.name == "sdxl" else "2")


@pytest.mark.parametrize("quantize", ["fp8", "nf4"])
def test_memory_options_through_the_whole_trainer(tmp_path: Path, pictures: Path, quantize: str) -> None:
    """And a run with them that was stopped goes on to the same bits."""
    model = tiny.build(tmp_path / "m", family="flux")
    memory = {"quantize": quantize, "checkpointing": True, "checkpoint_every": 2, "vae_dtype": "bf16", "vae_tiling": True}
    sections = {"adapter": {"rank": 3}, "memory": memory, "sample": {"prompts": ["a cat --w 40 --h 24 --s 2"]}}
    run = trained(model, pictures, **sections, output={"lora_names": "diffusers"})
    file = run.checkpoints / "cat.safetensors"
    assert all(name.startswith("transformer.") and ".lora_" in name for name in load_file(file))
    assert (run.samples / "step-00000004_00.png").exists()
    again = new_run(config(model, pictures, train={"steps": 4}, **sections, output={"lora_names": "diffusers"}))
    assert train(again, Moment("stop", "step", 2)) == 0 and train(again) == 0, again.tail()
    assert tensors_hash(again.checkpoints / "cat.safetensors") == tensors_hash(file)
