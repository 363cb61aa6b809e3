"""LoRA files that tools write and read, at their worst: full disks, names of what is read, tensors that make no sense."""

from __future__ import annotations

import hashlib
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from limner.config import files
from limner.config.tools import Tools, the_section
from limner.errors import UserError
from limner.pocket import MODELS
from limner.tools import using
from limner.tools.lora_output import write

SELF = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CROSS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
WHOLE = {f"{CROSS}.lora_down.weight": torch.ones(4, 768), f"{CROSS}.lora_up.weight": torch.ones(320, 4)}
"""A layer by which the file is told to be for Stable Diffusion 1."""


def run(tool: str, **options: Any) -> Any:
    texts = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    section = the_section(files.build_as(Tools, {tool: texts}, {}))[1]
    return using.module_of(section).run(section, lambda *_: None)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files may not grow over 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_told_of_and_leaves_the_old_file(tmp_path: Path, full_disk: None):
    (tmp_path / "a.safetensors").write_bytes(b"old")
    with pytest.raises(UserError, match=r"resize\.output: .* cannot be written .* Make room"):
        write(tmp_path / "a.safetensors", {"x": torch.zeros(1 << 17)}, {}, "resize.output")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.safetensors": b"old"}


def test_the_hashes_are_of_the_file_with_kohyas_keys_alone(tmp_path: Path):
    state = {f"{SELF}.lora_down.weight": torch.arange(600_000.0).view(4, -1), f"{SELF}.lora_up.weight": torch.ones(8, 4)}
    save_file(state, tmp_path / "a.safetensors", {"ss_seed": "1", "modelspec.title": "a cat"})
    run("convert", file=tmp_path / "a.safetensors", output=tmp_path / "b.safetensors")
    save_file(state, tmp_path / "c.safetensors", {"ss_seed": "1"})
    expected = hashlib.sha256((tmp_path / "c.safetensors").read_bytes()[0x100000:0x110000]).hexdigest()[:8]
    with safe_open(tmp_path / "b.safetensors", "pt") as opened:
        assert opened.metadata()["sshs_legacy_hash"] == expected and opened.metadata()["modelspec.title"] == "a cat"


def test_a_model_is_never_written_into_though_overwrite_is_set(tmp_path: Path):
    shutil.copytree(MODELS["pocket"], tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    unet = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    before = unet.read_bytes()
    for output in (unet, tmp_path / "link" / "unet" / unet.name):
        with pytest.raises(UserError, match=r"extract\.output"):
            run("extract", base=tmp_path / "model", tuned="pocket", output=output, overwrite=True)
        with pytest.raises(UserError, match=r"convert\.output"):
            run("convert", file=tmp_path / "model", layout="original", output=output, overwrite=True)
    assert unet.read_bytes() == before


@pytest.mark.parametrize(
    "tensors",
    [
        {"lora_down.weight": torch.tensor(1.0), "lora_up.weight": torch.tensor(1.0)},
        {"lora_down.weight": torch.ones(4, 320), "lora_up.weight": torch.ones(320, 8)},
        {"lora_down.weight": torch.ones(0, 320), "lora_up.weight": torch.ones(320, 0)},
        {"lora_down.weight": torch.ones(4, 320), "lora_up.weight": torch.ones(320, 4), "alpha": torch.ones(2)},
    ],
    ids=["scalars", "ranks", "rank 0", "alphas"],
)
def test_tensors_that_make_no_product_are_refused_in_words(tensors: dict[str, Tensor], tmp_path: Path):
    path, output = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(WHOLE | {f"{SELF}.{name}": tensor for name, tensor in tensors.items()}, path)
    with pytest.raises(UserError, match=r"convert\.file: .*do not make a product"):
        run("convert", file=path, output=output, layout="diffusers")
    with pytest.raises(UserError, match=r"merge_loras\.loras: .*makes no change"):
        run("merge_loras", loras=[str(path), f"{path} @ 0.5"], output=output)
    assert not output.exists()
    assert any("makes no change" in remark.message for remark in run("inspect", file=path).remarks)


def test_whole_numbers_are_no_lora(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    down, up = torch.ones(4, 320, dtype=torch.int8), torch.ones(320, 4, dtype=torch.int8)
    save_file(WHOLE | {f"{SELF}.lora_down.weight": down, f"{SELF}.lora_up.weight": up}, path)
    with pytest.raises(UserError, match="whole numbers"):
        run("merge_loras", loras=[str(path), f"{path} @ 0.5"], output=tmp_path / "b.safetensors")
    assert any("whole numbers" in remark.message for remark in run("inspect", file=path).remarks)


def test_eight_bits_become_sixteen(tmp_path: Path):
    values = torch.tensor([[1.5, -448.0, 0.0625, 0.0]])
    state = {f"{SELF}.lora_down.weight": values.to(torch.float8_e4m3fn), f"{SELF}.lora_up.weight": torch.ones(2, 1)}
    save_file(state, tmp_path / "a.safetensors")
    report = run("convert", file=tmp_path / "a.safetensors", output=tmp_path / "b.safetensors", dtype="fp16")
    written = load_file(tmp_path / "b.safetensors")[f"{SELF}.lora_down.weight"]
    assert written.dtype == torch.float16 and written.tolist() == values.tolist() and not report.remarks
