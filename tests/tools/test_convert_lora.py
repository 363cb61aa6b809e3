"""LoRAs converted between kohya's names and diffusers': the same change of each layer, the same prediction there."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import bare
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from limner.adapters.layered import LayerAdapter
from limner.config import Loha, Lora, files
from limner.config.tools import Tools, the_section
from limner.errors import UserError
from limner.formats.known import FAMILIES
from limner.tools import convert


def section(**given: Any) -> Any:
    raw = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    return the_section(files.build_as(Tools, {"convert": raw}, {}))[1]


def quiet(*_: object) -> None: ...


def converted(**given: Any) -> Path:
    report = convert.run(section(**given), quiet)
    assert not report.remarks
    return report.files[0]


def refused(**given: Any) -> str:
    with pytest.raises(UserError) as caught:
        convert.run(section(**given), quiet)
    return str(caught.value)


def words(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as opened:
        return opened.metadata() or {}


@pytest.fixture(params=list(FAMILIES))
def folder(request: pytest.FixtureRequest) -> Path:
    return bare.model(request.param)


def lora(folder: Path, path: Path, kind: Any = None) -> tuple[Any, LayerAdapter, Path]:
    """(model, adapter attached to it, the file of it in kohya's names)."""
    family = tiny.fresh(folder)
    conv = {"conv_rank": 2, "conv_alpha": 3.0} if family.denoiser_folder == "unet" else {}
    adapter = LayerAdapter(kind or Lora(rank=3, alpha=2.0, text_encoder=True, **conv))
    adapter.attach(family, 1)
    tiny.moved(adapter)
    state = {k: v.contiguous().clone() for k, v in adapter.exported("kohya").items()}
    save_file(state, path, {"ss_output_name": "it", "sshs_model_hash": "stale"})
    return family, adapter, path


def changes(path: Path) -> dict[str, Tensor]:
    """What a file in diffusers' names changes: B A, alpha / rank times that if the metadata note an alpha."""
    state, noted, out = load_file(path), json.loads(words(path).get("lora_adapter_metadata", "{}")), {}
    for name in state:
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            part, _, module = layer.partition(".")
            rank = len(state[name])
            usual = noted.get(f"{part}.lora_alpha", rank)
            alpha = noted.get(f"{part}.alpha_pattern", {}).get(module, usual)
            assert noted.get(f"{part}.rank_pattern", {}).get(module, noted.get(f"{part}.r", rank)) == rank
            a, b = state[name].double(), state[f"{layer}.lora_B.weight"].double()
            out[layer] = alpha / rank * (b.flatten(1) @ a.flatten(1))
    return out


@torch.no_grad()
def predicted(family: Any, plain: Any) -> Tensor:
    """With the text as a plain model reads it."""
    rng = torch.Generator().manual_seed(5)
    noisy, t = torch.randn(1, family.base.latent_channels, 8, 8, generator=rng), torch.tensor([300])
    cond = plain.encode_captions(["a cat"])
    cond |= {"geometry": torch.tensor([[16.0, 16, 0, 0, 16, 16]]), "guidance": torch.tensor([3.5])}
    return family.predict(noisy, t, cond)


def in_diffusers(folder: Path, path: Path) -> Tensor:
    """The prediction with the denoiser's part of a file, loaded by diffusers."""
    family, plain = tiny.fresh(folder), tiny.fresh(folder)
    prefix, noted = family.denoiser_folder, words(path).get("lora_adapter_metadata")
    state = {k: v for k, v in load_file(path).items() if k.startswith(prefix)}
    family.denoiser.load_lora_adapter(state, prefix=prefix, metadata=json.loads(noted) if noted else None)
    after = predicted(family, plain)
    assert (after - predicted(plain, plain)).abs().max() > 1e-3
    return after


@torch.no_grad()
def test_kohyas_names_become_diffusers_and_back(folder: Path, tmp_path: Path):
    family, adapter, file = lora(folder, tmp_path / "k.safetensors")
    expected = {t.in_diffusers: layer.delta().double().flatten(1) for t, layer in adapter.layers.values()}
    wanted, first = predicted(family, tiny.fresh(folder)), load_file(file)
    given = {"config": folder, "family": folder.name}
    for alpha in ("fold", "keep"):
        out = converted(file=file, output=tmp_path / f"{alpha}.safetensors", layout="diffusers", alpha=alpha, **given)
        found = changes(out)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[n], expected[n], atol=1e-6) for n in expected)
        assert (words(out).keys() == {"ss_output_name", "format"}) == (alpha == "fold")
        assert (in_diffusers(folder, out) - wanted).abs().max() < 1e-5
        back = converted(file=out, output=tmp_path / f"{alpha} back.safetensors", layout="original", **given)
        again = load_file(back)
        assert again.keys() == first.keys()
        for layer in {n.partition(".")[0] for n in first}:
            assert torch.allclose(product(again, layer), product(first, layer), atol=1e-6), layer
        if alpha == "keep":  # nothing was computed
            assert all(torch.equal(again[n], first[n]) for n in first)
            b = load_file(out)
            assert all(torch.equal(b[f"{t.in_diffusers}.lora_B.weight"], x.lora_up) for t, x in adapter.layers.values())
        with back.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            opened.seek(8 + length)
            assert words(back)["sshs_model_hash"] == hashlib.sha256(opened.read()).hexdigest()


def product(state: dict[str, Tensor], layer: str) -> Tensor:
    down, up = (state[f"{layer}.lora_{n}.weight"].double().flatten(1) for n in ("down", "up"))
    return float(state[f"{layer}.alpha"]) / len(down) * up @ down


# --- other spellings --------------------------------------------------------------------------------------------------


def respelt(state: dict[str, Tensor], layers: dict[str, str], down: str, up: str) -> dict[str, Tensor]:
    """Layers under other names and without alpha; `layers`: kohya's name -> the path of the module."""
    out = {}
    for layer, path in layers.items():
        scale = float(state[f"{layer}.alpha"]) / len(state[f"{layer}.lora_down.weight"])
        out[path + down] = state[f"{layer}.lora_down.weight"]
        out[path + up] = state[f"{layer}.lora_up.weight"] * scale
    return out


@torch.no_grad()
def test_what_other_trainers_call_layers(tmp_path: Path):
    folder = bare.model("sdxl")
    _, adapter, file = lora(folder, tmp_path / "k.safetensors", Lora(rank=3, alpha=2.0, text_encoder=True))
    first = load_file(file)
    paths = {name: target.in_diffusers for name, (target, _) in adapter.layers.items()}
    old = {n: p.replace(".to_out.0", ".to_out") for n, p in paths.items()}
    attends = {n: p for n, p in old.items() if ".to_" in p}
    processors = {n: p.replace(".to_", ".processor.to_") for n, p in attends.items()}
    others = {n: p for n, p in old.items() if n not in attends}
    unet = {n: p for n, p in others.items() if p.startswith("unet.")}
    text = {n: p for n, p in others.items() if not p.startswith("unet.")}
    spellings = {
        "diffusers before 0.24": respelt(first, processors, "_lora.down.weight", "_lora.up.weight")
        | respelt(first, unet, ".lora.down.weight", ".lora.up.weight")
        | respelt(first, text, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        "PEFT": respelt(
            first, {n: f"base_model.model.{p}" for n, p in paths.items()}, ".lora_A.default.weight", ".lora_B.default.weight"
        ),
        "kohya's for other UNets": {
            f"lora_unet_{paths[n].partition('.')[2].replace('.', '_')}.{k}" if paths[n].startswith("unet.") else f"{n}.{k}": t
            for name, t in first.items()
            for n, _, k in [name.partition(".")]
        },
    }
    for name, state in spellings.items():
        save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "o.safetensors")
        given = {"config": folder, "family": "sdxl", "overwrite": True, "layout": "original"}
        again = load_file(converted(file=tmp_path / "o.safetensors", output=tmp_path / "b.safetensors", **given))
        assert again.keys() == first.keys(), name
        assert all(torch.allclose(product(again, layer), product(first, layer), atol=1e-6) for layer in paths), name


@torch.no_grad()
def test_original_paths_of_a_stacked_layer(tmp_path: Path):
    """As ai-toolkit and ComfyUI's own name Flux's layers: one pair of matrices for query, key and value."""
    folder = bare.model("flux")
    rng = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=rng), torch.randn(96, 2, generator=rng)
    name = "diffusion_model.double_blocks.1.img_attn.qkv"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, file := tmp_path / "o.safetensors")
    given = {"file": file, "config": folder, "family": "flux"}
    out = load_file(converted(output=tmp_path / "k.safetensors", layout="original", **given))
    assert torch.allclose(product(out, "lora_unet_double_blocks_1_img_attn_qkv").float(), up @ down, atol=1e-6)
    found = changes(converted(output=tmp_path / "d.safetensors", layout="diffusers", **given))
    for i, which in enumerate("qkv"):
        part = found[f"transformer.transformer_blocks.1.attn.to_{which}"]
        assert torch.allclose(part.float(), (up @ down)[32 * i : 32 * i + 32], atol=1e-6)


# --- precision, and what is refused -----------------------------------------------------------------------------------


def test_another_precision_leaves_alpha(tmp_path: Path):
    _, _, file = lora(bare.model("sd1"), tmp_path / "k.safetensors")
    first, out = load_file(file), load_file(converted(file=file, output=tmp_path / "h.safetensors", dtype="bf16"))
    assert out.keys() == first.keys()
    for name, tensor in first.items():
        expected = tensor if name.endswith(".alpha") else tensor.bfloat16()
        assert out[name].dtype == expected.dtype and torch.equal(out[name], expected)
    torch.save(first, tmp_path / "k.pt")
    same = load_file(converted(file=tmp_path / "k.pt", output=tmp_path / "p.safetensors"))
    assert all(torch.equal(same[n], first[n]) for n in first)


def test_what_has_no_names_in_diffusers(tmp_path: Path):
    given = {"output": tmp_path / "x.safetensors", "layout": "diffusers", "config": bare.model("sd1"), "family": "sd1"}
    for kind in (Loha(rank=2), Lora(rank=2, dora=True)):
        _, _, file = lora(bare.model("sd1"), tmp_path / "k.safetensors", kind)
        assert "are no plain LoRA" in refused(file=file, **given)
    save_file({"lora_unet_nowhere\n.lora_down.weight": torch.ones(2, 3)}, file)
    said = refused(file=file, **given)
    assert "1 of its layers have no place in this model" in said and "\n" not in said
    del given["family"]
    assert "error: convert.family: cannot be told" in refused(file=file, **given)
    noted = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": "much"})}
    name = "unet.mid_block.attentions.0.proj_in"
    save_file({f"{name}.lora_A.weight": torch.ones(2, 16, 1, 1), f"{name}.lora_B.weight": torch.ones(16, 2, 1, 1)}, file, noted)
    assert "give 'much' for an alpha" in refused(file=file, **(given | {"layout": "original", "family": "sd1"}))
    assert not (tmp_path / "x.safetensors").exists()


def test_layers_of_published_models_are_known_without_a_config(tmp_path: Path):
    """By widths that tell Stable Diffusion 3 and 3.5 large apart."""
    for width, block in ((1536, 23), (2432, 37)):
        name = f"lora_unet_joint_blocks_{block}_x_block_attn_qkv"
        state = {
            "lora_down.weight": torch.ones(2, width),
            "lora_up.weight": torch.ones(3 * width, 2),
            "alpha": torch.tensor(1.0),
        }
        save_file({f"{name}.{k}": t for k, t in state.items()}, file := tmp_path / "k.safetensors")
        out = load_file(converted(file=file, output=tmp_path / "x.safetensors", layout="diffusers", overwrite=True))
        assert {n.partition(".lora_")[0] for n in out} == {f"transformer.transformer_blocks.{block}.attn.to_{w}" for w in "qkv"}
