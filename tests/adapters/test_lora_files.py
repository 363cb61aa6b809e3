"""LoRA files: kohya's names, shapes and alphas, and the weights that other programs compute from them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from limner.adapters.layered import LayerAdapter
from limner.config import Lora
from limner.formats.base import Base
from limner.models import family as families
from limner.models.family import Family
from limner.models.parts import CONFIGS

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent.parent / "golden" / "lora_keys_sd1.txt"


def full_size(name: str) -> Family:
    """A family's UNet and text encoders at their full size, without memory."""
    family = families.make(Base(name, CONFIGS / name, "folder", name, "epsilon", 512, 64))
    parts = family.empty()
    family.denoiser, _ = parts.pop("unet"), parts.pop("vae")
    family.text_encoders |= parts
    return family


def keys_of(section: Lora, family: str = "sd1") -> dict[str, tuple[int, ...]]:
    adapter = LayerAdapter(section)
    adapter.attach(full_size(family), 0)
    return {k: tuple(v.shape) for k, v in adapter.state_dict().items()}


def attached(folder: Path, section: Lora) -> tuple:
    family, adapter = tiny.loaded(folder), LayerAdapter(section)
    adapter.attach(family, 1)
    return family, tiny.moved(adapter)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_keys_of_the_full_model_are_kohyas():
    found = keys_of(Lora(rank=8, text_encoder=True))
    lines = [f"{k} {list(shape)}" for k, shape in sorted(found.items())]
    assert lines == GOLDEN.read_text(encoding="utf-8").splitlines()
    modules = {k.partition(".")[0] for k in found}
    assert sum(m.startswith("lora_unet_") for m in modules) == 192
    assert sum(m.startswith("lora_te_text_model_encoder_layers_") for m in modules) == 72
    assert len(found) == 3 * 264
    for name, shape in {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": (8, 320),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (8, 768),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj.lora_up.weight": (2560, 8),
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (8, 320, 1, 1),
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": (320, 8, 1, 1),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (8, 768),
        "lora_te_text_model_encoder_layers_11_mlp_fc1.lora_up.weight": (3072, 8),
        "lora_te_text_model_encoder_layers_11_mlp_fc2.alpha": (),
    }.items():
        assert found[name] == shape, name


@pytest.mark.slow
def test_convolutions_of_the_full_model():
    found = keys_of(Lora(rank=8, conv_rank=4))
    modules = {k.partition(".")[0] for k in found}
    # beside the 192: 22 ResNet blocks with 2 convolutions and a time projection, 14 shortcuts, 3 + 3 resamplers
    assert len(modules) == 192 + 22 * 3 + 14 + 6
    assert found["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"] == (4, 320, 3, 3)
    assert found["lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight"] == (320, 4, 1, 1)
    assert found["lora_unet_down_blocks_1_resnets_0_conv_shortcut.lora_down.weight"] == (8, 320, 1, 1)
    assert found["lora_unet_down_blocks_0_resnets_0_time_emb_proj.lora_down.weight"] == (8, 1280)
    assert found["lora_unet_down_blocks_0_downsamplers_0_conv.lora_down.weight"] == (4, 320, 3, 3)


# --- numbers ----------------------------------------------------------------------------------------------------------


def kohya_weight(state: dict[str, Tensor], name: str, base: Tensor) -> Tensor:
    """W + up down alpha / rank, in float64 (kohya.md 2.2); convolutions as matrices over (in, kernel)."""
    down, up = state[f"{name}.lora_down.weight"].double(), state[f"{name}.lora_up.weight"].double()
    scale = state[f"{name}.alpha"].double() / down.shape[0]
    return base.double() + scale * (up.flatten(1) @ down.flatten(1)).view(base.shape)


def comfy_dora_weight(weight: Tensor, changed: Tensor, magnitude: Tensor) -> Tensor:
    """ComfyUI's and Forge's `weight_decompose`: by outputs the norm is the *base* weight's, by inputs the changed one's."""
    ones = [1] * (weight.ndim - 2)
    if magnitude.shape[0] == weight.shape[0]:
        norm = weight.flatten(1).norm(dim=1).view(-1, 1, *ones)
    else:
        norm = changed.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *ones)
    return changed * (magnitude / (norm + torch.finfo(torch.float32).eps))


def a1111_dora_weight(changed: Tensor, magnitude: Tensor) -> Tensor:
    """A1111's `apply_weight_decompose`: by inputs, whatever the magnitude's shape."""
    norm = changed.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *[1] * (changed.ndim - 2))
    return changed * (magnitude / norm)


def outputs_of(base: torch.nn.Module, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(what the adapted layer computes, what a plain layer of `weight` computes in float64)."""
    rng = torch.Generator().manual_seed(4)
    shape = (3, weight.shape[1]) if weight.ndim == 2 else (2, weight.shape[1], 6, 6)
    x = torch.randn(shape, generator=rng)
    plain = torch.nn.utils.skip_init(type(base), **_sizes(base)).double()
    plain.weight.data = weight
    if base.bias is not None:
        plain.bias.data = base.bias.detach().double()
    with torch.no_grad():
        return base(x), plain(x.double())


def _sizes(base: torch.nn.Module) -> dict:
    if isinstance(base, torch.nn.Linear):
        return {"in_features": base.in_features, "out_features": base.out_features, "bias": base.bias is not None}
    assert isinstance(base, torch.nn.Conv2d)
    return {
        "in_channels": base.in_channels, "out_channels": base.out_channels, "kernel_size": base.kernel_size,
        "stride": base.stride, "padding": base.padding, "bias": base.bias is not None,
    }  # fmt: skip


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_files_weights_are_what_the_layers_compute(tiny_model, rank_stabilized):
    section = Lora(rank=5, alpha=2.0, conv_rank=3, conv_alpha=4.0, text_encoder=True, rank_stabilized=rank_stabilized)
    _, adapter = attached(tiny_model, section)
    state = adapter.state_dict()
    for name, (target, layer) in adapter.layers.items():
        rank, alpha = (3, 4.0) if target.is_spatial else (5, 2.0)
        scale = alpha / math.sqrt(rank) if rank_stabilized else alpha / rank
        assert float(state[f"{name}.alpha"]) / rank == pytest.approx(scale, rel=1e-6)
        assert layer.scale == scale
        ours, theirs = outputs_of(target.module, kohya_weight(state, name, target.module.weight))
        assert (ours - theirs).abs().max() / theirs.abs().max() < 3e-6, name


def test_doras_weights_are_what_other_programs_compute(tiny_model):
    _, adapter = attached(tiny_model, Lora(rank=5, alpha=2.0, conv_rank=3, text_encoder=True, dora=True))
    state = adapter.state_dict()
    assert any(target.is_spatial for target, _ in adapter.layers.values())
    for name, (target, _) in adapter.layers.items():
        weight = target.module.weight.detach().double()
        magnitude = state[f"{name}.dora_scale"].double()
        assert magnitude.shape == (1, *weight.shape[1:2], *[1] * (weight.ndim - 2)), name
        changed = kohya_weight(state, name, target.module.weight.detach())
        for theirs in (comfy_dora_weight(weight, changed, magnitude), a1111_dora_weight(changed, magnitude)):
            ours, expected = outputs_of(target.module, theirs)
            assert (ours - expected).abs().max() / expected.abs().max() < 3e-6, name


def test_dora_of_a_layer_with_dead_inputs(tiny_model):
    family, adapter = attached(tiny_model, Lora(rank=2))
    adapter.detach()
    layer = family.denoiser.mid_block.attentions[0].proj_in
    with torch.no_grad():
        layer.weight.zero_()
    x = torch.randn(1, layer.weight.shape[1], 3, 3)
    before = layer(x)
    dora = LayerAdapter(Lora(rank=2, dora=True))
    dora.attach(family, 0)
    assert torch.equal(layer(x), before)
    layer(x).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for _, owner in dora.layers.values() for p in owner.parameters())
