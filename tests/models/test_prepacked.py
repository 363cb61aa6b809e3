"""Convolutions laid out once compute what torch's own do, for every size of picture and batch, and give their weight back."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from limner import launch
from limner.config import Config
from limner.models import prepacked

pytestmark = pytest.mark.skipif(not prepacked._is_supported(), reason="this processor's kernels are not oneDNN's own")

SIZES = [(1, 8, 8), (3, 9, 12), (2, 7, 6)]
"""Batch, height, width: one layer meets them all."""
KERNELS = [(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 0, 1), (5, 1, 2, 1), (3, 1, 2, 2), (3, 2, 0, 1)]
"""Side, stride, padding, dilation."""


def reference(layer: nn.Conv2d, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of the input, in float64."""
    x = x.double().requires_grad_()
    bias = None if layer.bias is None else layer.bias.double()
    y = F.conv2d(x, layer.weight.double(), bias, layer.stride, layer.padding, layer.dilation)
    return y.detach(), torch.autograd.grad(y, x, grad.double())[0]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted).norm() / wanted.norm())


def require_what_it_did(layer: nn.Conv2d, kind: type[nn.Conv2d], limit: float) -> None:
    """Packed, it is of this kind, and computes the same."""
    whole, dtype = copy.deepcopy(layer), layer.weight.dtype
    assert prepacked.pack(nn.Sequential(layer)) == 1 and type(layer) is kind
    for n, h, w in SIZES:
        ours = torch.randn(n, 16, h, w).to(dtype).requires_grad_()
        y = layer(ours)
        grad = torch.randn_like(y)
        (of_x,) = torch.autograd.grad(y, ours, grad)
        wanted, wanted_of_x = reference(whole, ours.detach(), grad)
        assert y.shape == wanted.shape and of_x.shape == ours.shape and y.dtype == of_x.dtype == dtype
        assert error(y, wanted) < limit and error(of_x, wanted_of_x) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_packed_layer_computes_what_it_did(kernel: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bf16 here")
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 40, *kernel).to(dtype).requires_grad_(False)
    kind = prepacked.PointConv2d if kernel[0] == 1 else prepacked.PackedConv2d
    require_what_it_did(layer, kind, 1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("few", [0, 100, 10_000])  # products for none of the sizes, for some and for all
@pytest.mark.parametrize("kernel", KERNELS[1:], ids=str)
def test_a_large_layer_computes_what_it_did(
    kernel: tuple[int, int, int, int], few: int, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepacked, "_FEW_POINTS", few)
    monkeypatch.setattr(prepacked, "_LARGE_BYTES", 0)
    torch.manual_seed(0)
    require_what_it_did(nn.Conv2d(16, 40, *kernel, bias=has_bias).requires_grad_(False), prepacked.LargeConv2d, 1e-6)


def test_only_what_is_large_in_fp32_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    large, other = (nn.Conv2d(n, 16, 3).requires_grad_(False) for n in (16, 8))
    monkeypatch.setattr(prepacked, "_LARGE_BYTES", other.weight.nbytes)
    assert prepacked.num_bytes(nn.Sequential(large, other)) == other.weight.nbytes
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # whose kernels are faster at all sizes
        monkeypatch.setattr(prepacked, "_LARGE_BYTES", 0)
        assert prepacked.num_bytes(large.bfloat16()) == large.weight.nbytes


def test_the_weight_can_be_had_saved_and_replaced() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
    model, weight = nn.Sequential(layer), layer.weight.clone()
    before = model.state_dict()
    prepacked.pack(model)
    assert torch.equal(layer.weight, weight)
    after = model.state_dict()
    copied = copy.deepcopy(model)[0]
    assert type(copied) is nn.Conv2d and torch.equal(copied.weight, weight) and copied.padding == (1, 1)
    assert after.keys() == before.keys() and torch.equal(after["0.weight"], weight)
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    layer(x).sum().backward()
    packed: Any = layer
    packed.take(weight * 2)
    other = torch.randn(1, 8, 4, 4, requires_grad=True)
    (of_x,) = torch.autograd.grad(layer(other).sum(), other)
    assert x.grad is not None and error(of_x, 2 * x.grad.double()) < 1e-6
    wanted = F.conv2d(other.detach().double(), 2 * weight.double(), packed.bias.double(), padding=1)
    assert error(layer(other), wanted) < 1e-6


def test_packing_is_done_beside_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False) for _ in range(4)]
    x, plain = torch.randn(1, 8, 4, 4), copy.deepcopy(layers[-1])
    go_on, lay_out = threading.Event(), prepacked.PackedConv2d.lay_out
    monkeypatch.setattr(prepacked.PackedConv2d, "lay_out", lambda layer, weight: go_on.wait(60) and lay_out(layer, weight))
    model = nn.Sequential(*layers)
    assert prepacked.pack(model) == 4 and not layers[0].laid_out.done()  # type: ignore[attr-defined, operator]
    threading.Timer(0.2, go_on.set).start()
    assert error(layers[-1](x), plain(x).double()) < 1e-6 and go_on.is_set()


def test_a_model_that_is_forgotten_is_packed_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory ran out, and the model is loaded anew."""
    layers = [nn.Conv2d(8, 8, 3).requires_grad_(False) for _ in range(4)]
    is_begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(prepacked.PackedConv2d, "lay_out", lambda *_: is_begun.set() or go_on.wait(60))
    model = nn.Sequential(*layers)
    prepacked.pack(model)
    futures: list[Any] = [layer.laid_out for layer in layers]
    assert is_begun.wait(60)
    del model
    gc.collect()
    go_on.set()
    assert futures[-1].cancelled() and not futures[0].cancelled()


def test_the_middle_is_laid_out_before_the_way_up() -> None:
    """As it is used, and not as diffusers' classes have it."""
    model = nn.ModuleDict(
        {name: nn.Conv2d(8, 8, 3).requires_grad_(False) for name in ("down_blocks", "up_blocks", "mid_block")}
    )
    assert prepacked.packable(model) == [model["down_blocks"], model["mid_block"], model["up_blocks"]]


def test_what_goes_wrong_meanwhile_is_told_whoever_needs_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(layer: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(prepacked.PackedConv2d, "lay_out", fail)
    layer = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
    model = nn.Sequential(layer)
    prepacked.pack(model)
    with pytest.raises(RuntimeError, match="allocate"):
        layer(torch.randn(1, 8, 4, 4))


READ_AND_PACKED = """
import pathlib, sys, psutil, torch
from torch import nn
from limner.models import prepacked
from limner.models.weights import Weights
weights, layers = Weights([pathlib.Path(sys.argv[1])]), []
for name in weights:
    layers.append(nn.Conv2d(256, 256, 3, bias=False, device="meta").requires_grad_(False))
    layers[-1].weight, beside = nn.Parameter(weights[name], False), torch.ones(2000)
    layers[-1].beside = beside
held, before = sum(layer.weight.nbytes for layer in layers), psutil.Process().memory_info().rss
model = nn.Sequential(*layers)
prepacked.pack(model)
[layer.back for layer in layers]
print((psutil.Process().memory_info().rss - before) / held)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory as glibc gives it")
def test_layers_are_laid_out_where_others_have_been(tmp_path: Path) -> None:
    """In a process that keeps what is free, only the layouts for the gradients take more memory than there was."""
    path = tmp_path / "w.safetensors"
    save_file({f"{n:02}": torch.ones(256, 256, 3, 3) for n in range(50)}, path)
    environment = {**os.environ, **launch.environment(Config(), "cpu")}
    words = [sys.executable, "-c", READ_AND_PACKED, str(path)]
    told = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert 0.9 < float(told.stdout) < 1.3  # 2 where none fits into the place of another


def test_only_frozen_convolutions_of_the_usual_kind_are_packed() -> None:
    frozen, trained = nn.Conv2d(8, 8, 3).requires_grad_(False), nn.Conv2d(8, 8, 3)
    others = [nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, padding="same"), nn.Linear(8, 8)]
    others += [nn.Conv2d(8, 8, 3, padding_mode="reflect"), nn.Conv2d(8, 8, 3).half(), nn.Conv2d(8, 8, 3, padding=3)]
    model = nn.ModuleList([frozen, trained, *(o.requires_grad_(False) for o in others)])
    assert prepacked.pack(model) == 1
    assert type(frozen) is prepacked.PackedConv2d and type(trained) is nn.Conv2d
    assert "weight" not in frozen._parameters  # it is not kept twice


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k[0] < 5], ids=str)
def test_a_call_as_it_is_where_layers_are_packed(kernel: tuple[int, int, int, int]) -> None:
    """What the planner times in the place of torch's own operations gives what they give."""
    torch.manual_seed(0)
    side, stride, padding, dilation = kernel
    x, weight, bias = torch.randn(2, 16, 9, 12), torch.randn(24, 16, side, side), torch.randn(24)
    places = [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], 1
    aten = torch.ops.aten
    forward = prepacked.packed_form(aten.convolution.default, [x, weight, bias, *places])
    out = aten.convolution(x, weight, bias, *places)
    assert forward is not None
    torch.testing.assert_close(forward(), out, atol=1e-4, rtol=1e-4)
    arguments = [torch.randn_like(out), x, weight, [24], *places]
    backward = prepacked.packed_form(aten.convolution_backward.default, [*arguments, [True, False, False]])
    assert backward is not None
    wanted = aten.convolution_backward(*arguments, [True, False, False])[0]
    torch.testing.assert_close(backward()[0], wanted, atol=1e-4, rtol=1e-4)
    # what is trained stays as it is, and so does what is no such layer
    assert prepacked.packed_form(aten.convolution_backward.default, [*arguments, [True, True, False]]) is None
    assert prepacked.packed_form(aten.mm.default, [weight[:, :, 0, 0], x[0, :, 0]]) is None
    assert prepacked.packed_form(aten.convolution.default, [x, weight[:, :8], bias, *places[:-1], 2]) is None
