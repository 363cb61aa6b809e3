"""What is no base model, or not the one that was asked for, is refused in words before anything is written."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tiny
from headers import parts_beside, published, single_file
from limner import runs
from test_cli import limner, refused


def truncated(path: Path) -> Path:
    single_file(path, published("sd1"))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    return path


def huge_header(path: Path) -> Path:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2 << 30) + b"{")
        file.truncate(3 << 30)
    return path


class Runs:
    """Would leave a mark if it were ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def pickle_with_code(path: Path) -> Path:
    path = path.with_suffix(".ckpt")
    torch.save({"state_dict": {"a": torch.zeros(2)}}, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Runs(path.with_name("mark"))}, protocol=2))
    return path


def lacking(path: Path) -> Path:
    shapes = published("sdxl")
    shapes.pop("model.diffusion_model.out.2.bias")
    return single_file(path, shapes)


def lacking_flux(path: Path) -> Path:
    parts_beside(path.parent, 16)
    shapes = published("flux")
    shapes.pop("double_blocks.7.txt_mlp.2.weight")
    return single_file(path, shapes)


def a_lora(path: Path) -> Path:
    return single_file(path, {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 1280)})


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (truncated, "is not a whole safetensors file"),
    "header of 2 GB": (huge_header, "its header claims 2147483648 bytes"),
    "pickle with code": (pickle_with_code, "it can run code when opened"),
    "missing tensor": (lacking, "1 of the 1680 tensors of the UNet are missing"),
    "missing tensor of a transformer": (lacking_flux, "1 tensors of double_blocks.7 are missing"),
    "a LoRA": (a_lora, "is a LoRA, which Limner cannot use as a base model"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_base_model_that_is_none(case: str, tmp_path: Path) -> None:
    make, said = CASES[case]
    path, pictures = make(tmp_path / "model.safetensors"), tiny.pictures(tmp_path / "pics")
    refused(limner("train", "--model.base", path, "--data.path", pictures, "--data.trigger", "sks"), "model.base", said)
    assert not runs.all_runs() and not (tmp_path / "mark").exists()


def test_another_family_than_was_asked_for(tmp_path: Path) -> None:
    path, pictures = single_file(tmp_path / "xl.safetensors", published("sdxl")), tiny.pictures(tmp_path / "pics")
    words = ("--data.path", pictures, "--data.trigger", "sks", "--model.family", "flux")
    refused(limner("train", "--model.base", path, *words), "model.family", "'flux' was asked for", "is 'sdxl'")
    assert not runs.all_runs()


@pytest.mark.slow
def test_a_lora_of_another_family(tmp_path: Path, tiny_model: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    lora = {f"{name}.lora_down.weight": torch.zeros(4, 3072), f"{name}.lora_up.weight": torch.zeros(9216, 4)}
    save_file(lora, tmp_path / "cat.safetensors")
    done = limner("sample", "a cat", "--lora", tmp_path / "cat.safetensors", "--model", tiny_model, "--out", tmp_path / "x.png")
    refused(done, "cat.safetensors is a LoRA for Flux.1, the base model is Stable Diffusion 1.")
    assert not (tmp_path / "x.png").exists()
