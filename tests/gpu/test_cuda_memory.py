"""Swapped blocks and quantized layers on a GPU: the numbers of those that stay, and of the CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tiny
from limner.adapters.layered import LayerAdapter
from limner.config import Lora
from limner.formats.base import recognise
from limner.models import family as families
from limner.models.family import Keep
from limner.models.quantized import QuantizedLinear
from limner.models.swapping import BlockSwap

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SWAPPED = ("sd1", "sdxl", "sd3", "flux")


def steps(folder: Path, keep: Keep, device: torch.device, *, checkpointing: bool, count: int = 3) -> list[list[Tensor]]:
    """Of each training step the prediction and the LoRA's gradients, and at last the LoRA; all on the CPU."""
    family = tiny.loaded(folder, keep, device)
    adapter = LayerAdapter(Lora(rank=2))
    adapter.attach(family, 1)
    params = [p for _, layer in tiny.moved(adapter).layers.values() for p in layer.parameters()]
    if checkpointing:
        family.enable_checkpointing(text=False)
    told = {"geometry": torch.tensor([[40.0, 60, 0, 6, 24, 32]] * 2), "guidance": torch.tensor([1.0, 3.5])}
    with torch.no_grad():
        cond = family.encode_captions(["a cat", "two dogs"]) | {k: v.to(device) for k, v in told.items()}
    optimizer, found, rng = torch.optim.AdamW(params, lr=1e-2), [], torch.Generator().manual_seed(3)
    for _ in range(count):
        noisy = torch.randn(2, family.base.latent_channels, 12, 16, generator=rng).to(device)
        pred = family.predict(noisy, torch.tensor([450, 801], device=device), cond)
        pred.square().mean().backward()
        found.append([t.detach().clone().cpu() for t in (pred, *(p.grad for p in params if p.grad is not None))])
        optimizer.step()
        optimizer.zero_grad()
    return [*found, [p.detach().cpu() for p in params]]


def num_blocks(folder: Path) -> int:
    family: Any = families.make(recognise(str(folder)))
    return len(family.blocks_of(family.empty()[family.denoiser_folder]))


def difference(found: list[list[Tensor]], wanted: list[list[Tensor]]) -> float:
    """The largest, as a share of the largest number of each tensor."""
    shares = []
    for some, others in zip(found, wanted, strict=True):
        for a, b in zip(some, others, strict=True):
            assert a.isfinite().all()
            shares.append(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)))
    return max(shares)


@pytest.mark.parametrize("family", SWAPPED)
@pytest.mark.parametrize("kind", ["off", "fp8", "nf4"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_swapped_blocks_train_the_same(models: dict[str, Path], family: str, kind: Any, checkpointing: bool):
    """A GPU adds up in any order in backward passes, so that no step is repeated to the bit; what is wrong is further off."""
    folder = models[family]
    plain = steps(folder, Keep(quantize=kind), GPU, checkpointing=False)
    count = num_blocks(folder)
    for number in (1, count - 1, count):
        swapped = steps(folder, Keep(quantize=kind, swap_blocks=number), GPU, checkpointing=checkpointing)
        assert difference(swapped, plain) < 1e-4


@pytest.mark.parametrize("family", SWAPPED)
@pytest.mark.parametrize("keep", [Keep(), Keep(quantize="fp8"), Keep(quantize="int8"), Keep(quantize="nf4")], ids=str)
def test_the_same_as_on_the_cpu(models: dict[str, Path], family: str, keep: Keep):
    """The first steps' predictions and gradients; what is learnt, divided by its own size, grows apart sooner."""
    here, there = (steps(models[family], keep, d, checkpointing=True, count=1)[:1] for d in (GPU, CPU))
    assert difference(here, there) < 2e-3


@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4"])
def test_a_layer_is_stored_alike(kind: Any):
    torch.manual_seed(0)
    weight, x = torch.randn(96, 160), torch.randn(5, 160)
    made = []
    for device in (CPU, GPU):
        layer = QuantizedLinear(160, 96, False, kind).to(device)
        layer.take(weight.to(device))
        made.append(layer)
    here, there = made
    # a GPU divides by a number by multiplying, so that a scale may differ in its last bit, and what lies between two steps fall
    assert torch.allclose(here.scale, there.scale.cpu(), rtol=1e-6)
    assert (here.weight.view(torch.uint8) != there.weight.cpu().view(torch.uint8)).float().mean() < 1e-3
    given = x.to(GPU).requires_grad_()
    assert torch.allclose(there(given).cpu(), F.linear(x, there.whole(torch.float32).cpu()), rtol=1e-4, atol=1e-4)
    moved = copy.deepcopy(here).to(GPU)
    assert torch.allclose(moved(given).cpu(), here(x), rtol=1e-4, atol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        y = there(given)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
    assert given.grad is not None and given.grad.isfinite().all()


# --- where copies take as long as computing ---------------------------------------------------------------------------


def wide() -> Any:
    """A Flux of 3 + 6 blocks, together near 2 GiB: each takes longer to come than to be used."""
    torch.manual_seed(0)
    with GPU:
        model = FluxTransformer2DModel(
            in_channels=64, num_layers=3, num_single_layers=6, attention_head_dim=128, num_attention_heads=12,
            joint_attention_dim=256, pooled_projection_dim=64, guidance_embeds=False,
        )  # fmt: skip
    return model.requires_grad_(False)


def blocks(model: Any) -> list[nn.Module]:
    return [*model.transformer_blocks, *model.single_transformer_blocks]


def trained(model: Any) -> tuple[list[Tensor], int]:
    """(outputs and gradients by the pictures of a few passes on the GPU, the most bytes in use beyond those before)."""
    model.enable_gradient_checkpointing(lambda layer, *a: checkpoint(layer, *a, use_reentrant=False))
    model.train()
    before, found = active("current"), list[Tensor]()
    torch.cuda.reset_peak_memory_stats()
    for number in range(3):
        rng = torch.Generator().manual_seed(number)
        tokens = torch.randn(1, 1024, 64, generator=rng).to(GPU).requires_grad_()
        text, pooled = torch.randn(1, 128, 256, generator=rng).to(GPU), torch.randn(1, 64, generator=rng).to(GPU)
        given = tokens, text, pooled, torch.tensor([0.5], device=GPU), *(torch.zeros(n, 3, device=GPU) for n in (1024, 128))
        out = model(*given, return_dict=False)[0]
        out.square().mean().backward()
        with torch.no_grad():  # a pass without a backward one, as in painting
            again = model(*given, return_dict=False)[0]
        assert tokens.grad is not None
        found += [t.detach().cpu() for t in (out, tokens.grad, again)]
    return found, active("peak") - before


def active(what: str) -> int:
    """Bytes on the GPU, those too that are let go but that it may still read."""
    return torch.cuda.memory_stats()[f"active_bytes.all.{what}"]


def onto_gpu(model: nn.Module, but: list[nn.Module]) -> None:
    """All of a model but these of its modules."""
    stay = {id(m) for module in but for m in module.modules()}
    for module in model.modules():
        if id(module) not in stay:
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        here = tensor.detach().to(GPU)
                        table[name] = nn.Parameter(here, False) if isinstance(tensor, nn.Parameter) else here


@pytest.mark.parametrize("number", [9, 6])
def test_blocks_that_come_late_are_waited_for(number: int):
    """Every pass gives what the unswapped model gives; a copy that is used before it has come would not. And few are there."""
    model = wide()
    twin = copy.deepcopy(model).cpu()
    expected, most = trained(model)
    del model
    gone = blocks(twin)[9 - number :]
    onto_gpu(twin, gone)
    swap = BlockSwap(gone, GPU)
    assert all(t.is_pinned() for block in swap._home for t in block if t.numel())
    found, peak = trained(twin)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    # at most three are there at once: one is used, one comes, one is not let go yet
    sizes = [sum(t.nbytes for t in block) for block in swap._home]
    assert peak < most + 3.2 * max(sizes) and 3.2 * max(sizes) < sum(sizes)
