"""The operations of a micro-batch, counted while it is computed, against those that its layers' sizes come to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import tiny
from limner.adapters import adapter as adapters
from limner.adapters.layers import Layer
from limner.config import Embedding, Lora
from limner.engine import flops
from limner.engine.runtime import Runtime
from limner.formats.base import recognise
from limner.models import family as families
from limner.models.again import sparsely
from limner.models.parts import CONFIGS

CPU = torch.device("cpu")


class Attention(TorchFunctionMode):
    """Sees every call of scaled_dot_product_attention: `forward` is the sum of 2 B H S T (D + E)."""

    forward = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            (batch, heads, rows, size), (*_, width) = given["query"].shape, given["value"].shape
            self.forward += 2 * batch * heads * rows * given["key"].shape[-2] * (size + width)
        return func(*args, **(kwargs or {}))


class ByHand:
    """The operations of a model's layers from their sizes: of each product the result, and a gradient for each factor that
    needs one."""

    def __init__(self, model: nn.Module, adapted: list[Layer]) -> None:
        self.linear = self.convolution = self.lora = 0
        self.hooks = [m.register_forward_hook(self.seen) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)] + [
            layer.register_forward_hook(self.adapted) for layer in adapted
        ]

    def seen(self, module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        times = 1 + inputs[0].requires_grad + module.weight.requires_grad
        if isinstance(module, nn.Linear):
            self.linear += times * 2 * output.numel() * module.in_features
        else:
            size = math.prod(module.kernel_size) * module.in_channels // module.groups
            self.convolution += times * 2 * output.numel() * size

    def adapted(self, layer: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        inner, places = layer.lora_down[0].numel(), output.numel() // layer.sizes.outputs
        down = 2 * places * layer.rank * inner * (2 + inputs[0].requires_grad)
        self.lora += down + 3 * 2 * places * layer.rank * layer.sizes.outputs

    @property
    def total(self) -> int:
        return self.linear + self.convolution + self.lora


def tiny_job(tmp_path: Any, family: str, **sections: Any) -> Any:
    from limner import jobs
    from limner.config import files
    from limner.engine.journal import Journal
    from limner.engine.prepare import prepare

    given = {
        "model": {"base": str(tiny.build(tmp_path / family, family=family))},
        "data": {"path": str(tiny.pictures(tmp_path / "3_cat")), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8},
        "adapter": {"rank": 3},
        "train": {"steps": 10, "batch_size": 2},
        "launch": {"device": "cpu"},
    }
    config = files.build({**given, **sections}, {})
    run = jobs.prepare(config)
    return prepare(run, config, Runtime(CPU, "fp32"), Journal(run, is_main=True), lambda: False)


def counted(job: Any, step: int = 1) -> int:
    from limner.engine.train import accumulate_gradients

    job.meter.counted.clear()
    accumulate_gradients(job, step)
    (found,) = job.meter.counted.values()
    return found


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_a_models_own_sizes(tmp_path: Any, family: str) -> None:
    job = tiny_job(tmp_path, family)
    by_hand = ByHand(job.family.denoiser, [layer for _, layer in job.adapter.layers.values()])
    with Attention() as attention:
        found = counted(job)
    for hook in by_hand.hooks:
        hook.remove()
    assert by_hand.linear > 0 and attention.forward > 0 and by_hand.lora > 0
    assert (by_hand.convolution > 0) == (family in ("sd1", "sdxl", "sd3"))
    # each of attention's two products has two gradients
    assert found == pytest.approx(by_hand.total + 3 * attention.forward, rel=2e-3)


class OneOfTwo(Runtime):
    """The first of two processes, which never hears from the other."""

    def barrier(self) -> None:
        pass

    def any(self, flag: bool) -> bool:
        return flag

    def sum_gradients(self, params: Any) -> None:
        pass

    def sum_scalar(self, value: torch.Tensor) -> torch.Tensor:
        return value


def test_the_main_process_tells_of_all_pictures_and_of_its_own_operations(tmp_path: Any) -> None:
    from limner.engine.train import accumulate_gradients

    job = tiny_job(tmp_path, "sd1", train={"steps": 10, "batch_size": 2, "accumulation": 2})
    job.runtime = OneOfTwo(CPU, "fp32", rank=0, world=2)
    accumulate_gradients(job, 1)
    mine, others = job.dataset.order.step(1)
    assert job.meter._images == len(mine) + len(others)
    assert [job.meter._flops] == list(job.meter.counted.values())


def test_what_is_computed_again_is_not_counted(tmp_path: Any) -> None:
    plain = counted(tiny_job(tmp_path, "sd1"))
    assert counted(tiny_job(tmp_path, "sd1", memory={"checkpointing": True})) == plain


@pytest.mark.parametrize("every", [1, 2])
def test_a_layer_is_counted_once(every: int) -> None:
    layer = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU()).requires_grad_(False)
    x = torch.randn(4, 8, requires_grad=True)
    call = sparsely(every)
    with flops.counting() as counter:
        call(layer, x).sum().backward()
    assert counter.total == 2 * (2 * 4 * 8 * 16)


def test_frozen_weights_have_no_gradient_and_trained_ones_have() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    for trains, times in ((False, 2), (True, 3)):
        convolution = nn.Conv2d(3, 5, 3, stride=2, padding=1).requires_grad_(trains)
        with flops.counting() as counter:
            convolution(x).sum().backward()
        assert counter.total == times * 2 * (2 * 5 * 4 * 4) * 27


class Fused(torch.autograd.Function):
    """x W' + (x A') B' with its gradients written out."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, down: Any, up: Any) -> Any:
        hidden = x @ down.T
        ctx.save_for_backward(x, weight, down, up, hidden)
        return torch.addmm(x @ weight.T, hidden, up.T)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), (x, weight, down, up, hidden) = grads, ctx.saved_tensors
        inner = grad @ up
        return torch.addmm(grad @ weight, inner, down), None, inner.T @ x, grad.T @ hidden


def test_gradients_written_out_count_as_autograds_own() -> None:
    x, down, up = (torch.randn(*s, requires_grad=True) for s in ((6, 8), (2, 8), (10, 2)))
    weight = torch.randn(10, 8)
    with flops.counting() as counter:
        Fused.apply(x, weight, down, up).sum().backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert counter.total == 2 * 6 * (2 * 8 * 10 + 3 * 2 * (8 + 10))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN here")
def test_weights_laid_out_beforehand() -> None:
    """As a strided convolution and its input's gradient: with mkldnn's own operations instead of aten's."""
    ops: Any = torch.ops.mkldnn
    x, weight = torch.randn(2, 16, 8, 8, requires_grad=True), torch.randn(32, 16, 3, 3)
    y = F.conv2d(x, weight, stride=2, padding=1)
    y.sum().backward()
    where = [1, 1], [2, 2], [1, 1], 1
    there = ops._reorder_convolution_weight(weight, *where)
    back = ops._reorder_convolution_transpose_weight(weight, [1, 1], [1, 1], [2, 2], [1, 1], 1)
    with flops.counting() as counter, torch.no_grad():
        forward = ops._convolution_pointwise(x, there, None, *where, "none", [], "")
        once = counter.total
        backward = ops._convolution_transpose_pointwise(
            torch.ones_like(y), back, None, [1, 1], [1, 1], [2, 2], [1, 1], 1, "none", [], ""
        )
    torch.testing.assert_close(forward, y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(backward, x.grad, rtol=1e-4, atol=1e-4)
    assert (once, counter.total) == (2 * y.numel() * 16 * 9, 2 * 2 * y.numel() * 16 * 9)


def test_compiled_layers_are_counted_and_go_on_compiled() -> None:
    layer, x = nn.Linear(8, 16).requires_grad_(False), torch.randn(4, 8, requires_grad=True)
    calls = []

    def backend(graph: Any, _: Any) -> Any:
        calls.append(1)
        return graph.forward

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for _ in range(2):
        with flops.counting() as counter:
            compiled(x).sum().backward()
        assert counter.total == 2 * 2 * 4 * 8 * 16
    assert not calls
    compiled(x)
    assert calls == [1]


def test_stable_diffusion_at_full_size() -> None:
    """256 px, batch 1, rank 16 on 192 layers: 344.7 GF without attention, as torch's own counter found on the real model."""
    base = replace(recognise("pocket"), path=CONFIGS / "sd1", family="sd1")
    family: Any = families.make(base)
    family.denoiser = family.empty()[family.denoiser_folder].requires_grad_(False)
    adapter = adapters.make(Lora(rank=16), Embedding())
    family.device = torch.device("meta")
    adapter.attach(family, 0)
    assert len(adapter.layers) == 192  # pyright: ignore[reportAttributeAccessIssue]
    meta = torch.device("meta")
    for _, layer in adapter.layers.values():  # pyright: ignore[reportAttributeAccessIssue]
        layer.to(meta)
    noisy, cond = torch.empty(1, 4, 32, 32, device=meta), torch.empty(1, 77, 768, device=meta)
    with Attention() as attention, flops.counting() as counter:
        family.denoiser(noisy, torch.zeros(1, device=meta), cond).sample.sum().backward()
    assert (counter.total - 3 * attention.forward) / 1e9 == pytest.approx(344.7, abs=0.05)
