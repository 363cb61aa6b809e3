"""A base model is recognised from headers; whatever else it is gets its name, never a traceback."""

from __future__ import annotations

import json
import shutil
import struct
from math import prod
from pathlib import Path
from typing import Any

import pytest

from limner.errors import UserError
from limner.formats.base import Base, recognise
from limner.pocket import MODEL

UNET = "model.diffusion_model."
TO_K = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FIRST = f"{UNET}input_blocks.0.0.weight"
VAE = "first_stage_model.encoder.conv_in.weight"
TEXT = "cond_stage_model.transformer.text_model.embeddings.position_ids"
SD1 = {FIRST: (320, 4, 3, 3), TO_K: (320, 768), VAE: (4,), TEXT: (1, 77)}


def single_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file with these tensors; their bytes are a hole in the file."""
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path


def refused(source: object, config: Path | None = None, field: str = "model.base") -> str:
    with pytest.raises(UserError) as caught:
        recognise(str(source), config=config)
    [finding] = caught.value.findings
    assert finding.field == field and finding.remedy
    return finding.message


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be broken."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_diffusers_folder(tiny_model: Path) -> None:
    source = str(tiny_model)
    assert recognise(source) == Base(source, tiny_model, "folder", "sd1", "epsilon", 32, 4, 2)
    assert not recognise(source).is_pocket


@pytest.mark.skipif(not (MODEL / "model_index.json").exists(), reason="the pocket model is not in this checkout")
def test_the_pocket_model() -> None:
    assert recognise("pocket").is_pocket


def test_a_folder_that_predicts_v(model: Path) -> None:
    change(model / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert recognise(str(model)).prediction == "v_prediction"
    change(model / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert "predicts 'sample'" in refused(model)
    (model / "scheduler" / "scheduler_config.json").write_text("[1]")
    assert recognise(str(model)).prediction == "epsilon"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_without_a_part(model: Path, part: str) -> None:
    [weights] = (model / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    assert part in refused(model) and "holds no .safetensors file" in refused(model)
    weights.write_bytes(b"half a file")
    assert "not a whole safetensors file" in refused(model)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "vae/config.json"])
@pytest.mark.parametrize("content", [None, "", "{", "[]", "3"])
def test_a_folder_with_a_damaged_configuration(model: Path, file: str, content: str | None) -> None:
    (model / file).unlink() if content is None else (model / file).write_text(content)
    assert "is missing or is not JSON" in refused(model) or "cannot train" in refused(model)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("unet", {"block_out_channels": 5}),
        ("unet", {"block_out_channels": []}),
        ("vae", {"block_out_channels": "ab"}),
        ("vae", {"block_out_channels": [1] * 99}),
        ("unet", {"sample_size": "x"}),
        ("unet", {"sample_size": []}),
        ("unet", {"sample_size": -3}),
        ("unet", {"sample_size": [64, "x"]}),
        ("unet", {"sample_size": 1e9}),
    ],
)
def test_a_folder_with_an_impossible_configuration(model: Path, file: str, values: dict[str, Any]) -> None:
    change(model / file / "config.json", **values)
    message = refused(model) if values.get("sample_size") != [] else "damaged"
    assert "damaged" in message


def test_folders_of_other_models(model: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    change(model / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    change(model / "unet" / "config.json", addition_embed_type="text_time")
    assert "text_encoder_2 holds no .safetensors file" in refused(model)
    refiner = {k: v for k, v in index.items() if k != "text_encoder"} | {"text_encoder_2": ["transformers", "x"]}
    (model / "model_index.json").write_text(json.dumps(refiner))
    assert "refiner" in refused(model)
    (model / "model_index.json").write_text(json.dumps(index))
    change(model / "unet" / "config.json", in_channels=9, addition_embed_type=None)
    assert "inpainting" in refused(model)
    (model / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", "transformer": ["diffusers", "x"]}))
    assert "FluxPipeline" in refused(model)


def test_a_whole_single_file(tmp_path: Path) -> None:
    path = single_file(tmp_path / "sd.safetensors", SD1)
    assert recognise(str(path)) == Base(str(path), path, "file", "sd1", "epsilon", 512, 64, 8)


OTHERS = {
    "a LoRA": {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 320)},
    "a LoRA of diffusers": {"unet.mid_block.attentions.0.proj_in.lora_A.weight": (4, 320)},
    "a Flux model": {"model.diffusion_model.double_blocks.0.img_mod.lin.weight": (9, 9)},
    "an SD 3 model": {"model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": (9, 9)},
    "a Stable Diffusion XL model without its text encoder and its text encoder 2": {**SD1, TO_K: (320, 2048)},
    "SDXL's refiner": {**SD1, TO_K: (320, 1280)},
    "a Stable Diffusion 2 model without its text encoder": {**SD1, TO_K: (320, 1024)},
    "a model with text width 1000": {**SD1, TO_K: (320, 1000)},
    "an inpainting": {**SD1, FIRST: (320, 9, 3, 3)},
    "an inpainting or damaged": {k: v for k, v in SD1.items() if k != FIRST},
    "without its VAE": {k: v for k, v in SD1.items() if k != VAE},
    "without its text encoder": {k: v for k, v in SD1.items() if k != TEXT},
    "no checkpoint that Limner recognises": {"x": (1,)},
    "no checkpoint": {},
    "no checkpoint that": {**SD1, TO_K: (320,)},
}


@pytest.mark.parametrize("said", OTHERS)
def test_other_single_files_are_named(said: str, tmp_path: Path) -> None:
    message = refused(single_file(tmp_path / "x.safetensors", OTHERS[said]))
    assert said.removesuffix(" of diffusers") in message


def test_a_single_file_with_a_configuration_beside_it(tiny_model: Path, tmp_path: Path) -> None:
    path = single_file(tmp_path / "x.safetensors", {**SD1, TO_K: (8, 16)})
    assert "text width 16" in refused(path)
    expected = Base(str(path), path, "file", "sd1", "epsilon", 32, 4, 2, config=tiny_model)
    assert recognise(str(path), config=tiny_model) == expected
    assert "a LoRA" in refused(single_file(tmp_path / "l.safetensors", OTHERS["a LoRA"]), tiny_model)
    assert "config.json is missing" in refused(path, tmp_path, "model.config")


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model"])
def test_pickles_are_never_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    assert "is not a .safetensors file" in refused(tmp_path / name)


SOURCES = [
    "",
    "no/such/place/at all",
    "../../etc",
    "/dev/zero",
    "x" * 300,
    "a" * 5000,
    "~nobody-of-this-name/x",
    "http://x/y",
    "a/b/c",
    "$(id)",
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s[:12])
def test_what_is_no_model(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(source)


def test_a_hub_name_that_is_not_here_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = recognise("nobody/nothing-of-this-name")
    assert base.path is None and base.family == "sd1"
