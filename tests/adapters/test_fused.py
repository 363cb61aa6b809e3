"""LoRA in one step of autograd is the formula y = W x + b + s B A x: in float64 by its gradients, in bf16 within rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limner.adapters import fused
from limner.adapters.lora import LoraLayer
from limner.models.quantized import QuantizedLinear

LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(6, 5),
    "no bias": lambda: nn.Linear(6, 5, bias=False),
    "1x1": lambda: nn.Conv2d(6, 5, 1),
}


def pieces(base: nn.Module) -> Any:
    """An input, down and up."""
    ones = (1, 1) if isinstance(base, nn.Conv2d) else ()
    return torch.randn(2, 6, 3, 4) if ones else torch.randn(2, 3, 6), torch.randn(2, 6, *ones), torch.randn(5, 2, *ones)


def formula(base: Any, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    change = scale * up.flatten(1) @ down.flatten(1)
    if not isinstance(base, nn.Conv2d):
        y = torch.einsum("...i,oi->...o", x, base.weight + change)
        return y if base.bias is None else y + base.bias
    return torch.einsum("bihw,oi->bohw", x, base.weight.flatten(1) + change) + base.bias[:, None, None]  # type: ignore[index]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_values_and_gradients_are_the_formulas(kind: str, channels_last: bool) -> None:
    torch.manual_seed(0)
    base = LAYERS[kind]().double().requires_grad_(False)
    x, down, up = (t.double() for t in pieces(base))
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    given: Any = [t.requires_grad_() for t in (x, down, up)]
    assert fused.fits(base)
    y = fused.adapted(base, *given, scale=0.7)
    torch.testing.assert_close(y, formula(base, *given, scale=0.7), rtol=1e-12, atol=1e-12)
    assert y.is_contiguous() or channels_last
    assert torch.autograd.gradcheck(lambda *t: fused.adapted(base, *t, scale=0.7), given)


@pytest.mark.parametrize("kind", LAYERS)
def test_in_autocast_it_is_within_bf16s_rounding(kind: str) -> None:
    torch.manual_seed(0)
    base = LAYERS[kind]().requires_grad_(False)
    given: Any = [t.requires_grad_() for t in pieces(base)]
    with torch.autocast("cpu", torch.bfloat16):
        y = fused.adapted(base, *given, scale=0.7)
    grad = torch.randn(y.shape)
    found = torch.autograd.grad(y, given, grad.bfloat16())
    exact: Any = [t.detach().double().requires_grad_() for t in given]
    wanted = torch.autograd.grad(formula(base.double(), *exact, scale=0.7), exact, grad.double())
    assert y.dtype == torch.bfloat16
    for ours, true, own in zip(found, wanted, given, strict=True):
        assert ours.dtype == own.dtype and ours.shape == own.shape
        assert (ours.double() - true).norm() / true.norm() < 0.01


def test_a_quantised_base_and_checkpointing_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    whole = torch.randn(5, 6)
    with torch.device("meta"):
        base = QuantizedLinear(6, 5, False, "int8")
    base.take(whole)
    x, down, up = (t.requires_grad_() for t in (torch.randn(4, 6), torch.randn(2, 6), torch.randn(5, 2)))
    y: Any = checkpoint(lambda *t: fused.adapted(base, *t, scale=0.5), x, down, up, use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), (x, down, up))
    exact = [t.detach().double().requires_grad_() for t in (x, down, up)]
    weight = base.whole(torch.float64)
    wanted = torch.autograd.grad((exact[0] @ (weight + 0.5 * exact[2] @ exact[1]).T).square().sum(), exact)
    for ours, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=1e-5)


def test_what_is_left_out_or_compiled_takes_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """And agrees with the other where nothing is left out."""
    torch.manual_seed(0)
    base = nn.Linear(6, 5).requires_grad_(False)
    tensors = {"lora_down.weight": torch.randn(2, 6), "lora_up.weight": torch.randn(5, 2)}
    layer, x = LoraLayer(base, tensors, 0.5, "cpu"), torch.randn(3, 6)
    layer.strength = 0.8
    fast = layer(x)
    layer.rank_mask = torch.tensor([2.0, 0.0])
    masked = layer.plain(x) + 0.4 * (x @ layer.lora_down[:1].T * 2) @ layer.lora_up[:, :1].T
    torch.testing.assert_close(layer(x), masked)
    layer.rank_mask = None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fused.fits(base)
    torch.testing.assert_close(layer(x), fast)


def test_a_layer_that_is_trained_or_looks_wider_is_not_fused() -> None:
    assert not fused.fits(nn.Linear(6, 5))
    for conv in (nn.Conv2d(6, 5, 3), nn.Conv2d(6, 5, 1, stride=2), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(6, 5, 1, padding=1)):
        assert not fused.fits(conv.requires_grad_(False))
