"""Frozen convolutions on a CPU whose weights lie as its kernels want them.

torch hands oneDNN a weight as files have it, and oneDNN lays it out anew in every call: at small feature maps that takes longer
than the products. Laid out once, twice over: for the output, and for the gradient of the input, which is a transposed
convolution of the output's gradient. In float32 with stride 1 a plain one is faster: that of the gradient turned round, whose
result is turned round again. What was laid out before is not kept. A layout fits every size of picture and batch.

The largest weights in float32, most of what a UNet has, stay as they are: where maps are small a product of matrices needs no
layout, and where they are not laying out takes a small part of the time. Layouts for their gradients would take half as much
memory as the denoiser has. Everywhere the numbers are the same; sums may be taken in another order.

It is done beside what follows, as far as the first step, which waits for a layer where it must.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from weakref import finalize

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.models.given_back import give_holes_back
from limner.models.weights import is_roomy

_OPS = torch.ops.mkldnn
_PACKERS = 2
_LARGE_BYTES = 48 << 20
"""In SD 1, 2 and XL more than this have the layers with 1280 channels or more at both ends, and no others."""
_FEW_POINTS = 128
"""In a batch of maps, that a product of matrices is faster for."""
_ROWS = 32
"""Of a weight, turned round at a time: few enough to stay in the processor's cache."""


class PackedConv2d(nn.Conv2d):
    """A frozen convolution that `pack` has changed. Its `weight` is made whole for whoever asks for it."""

    laid_out: Future[tuple[Tensor, Tensor]]
    """The weight as it lies for the output, and for the input's gradient."""

    @property
    def there(self) -> Tensor:
        return self.laid_out.result()[0]

    @property
    def back(self) -> Tensor:
        return self.laid_out.result()[1]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.whole(self.there.dtype)

    def take(self, weight: Tensor) -> None:
        """Have another weight."""
        self.laid_out = Future()
        self.laid_out.set_result(self.lay_out(weight))

    def lay_out(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What is to be `laid_out` of a whole weight."""
        stride, dilation = self.stride, self.dilation
        there = _OPS._reorder_convolution_weight(weight, self.padding, stride, dilation, 1)
        if _is_turned(weight.dtype, stride):
            back = _OPS._reorder_convolution_weight(_turned(weight), self._padding_back(), stride, dilation, 1)
        else:
            back = _OPS._reorder_convolution_transpose_weight(weight, self.padding, (0, 0), stride, dilation, 1)
        return there, back

    def _padding_back(self) -> list[int]:
        """That of the gradient's convolution: what the padding left out at one end of the kernel is there at the other."""
        return [d * (k - 1) - int(p) for d, k, p in zip(self.dilation, self.kernel_size, self.padding, strict=True)]

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The weight as it counts, (out, in, ...)."""
        return self.there.to_dense().to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        # in the weight's precision, which is the run's
        return _Convolution.apply(input.to(self.there.dtype), self)  # type: ignore[return-value]

    def towards_output(self, x: Tensor) -> Tensor:
        """What the layer makes of an input."""
        arguments = self.padding, self.stride, self.dilation, 1, "none", [], ""
        return _OPS._convolution_pointwise(x, self.there, self.bias, *arguments)

    def towards_input(self, grad: Tensor, size: torch.Size) -> Tensor:
        """The gradient of an input of this size."""
        padding, stride, dilation = self.padding, self.stride, self.dilation
        if _is_turned(grad.dtype, stride):
            arguments = self._padding_back(), stride, dilation, 1, "none", [], ""
            return _OPS._convolution_pointwise(grad.flip(2, 3), self.back, None, *arguments).flip(2, 3)
        reached = [
            (n - 1) * s - 2 * int(p) + d * (k - 1) + 1
            for n, s, p, d, k in zip(grad.shape[2:], stride, padding, dilation, self.kernel_size, strict=True)
        ]
        beyond = [wanted - n for wanted, n in zip(size[2:], reached, strict=True)]
        arguments = padding, beyond, stride, dilation, 1, "none", [], ""
        return _OPS._convolution_transpose_pointwise(grad, self.back, None, *arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Conv2d:
        """A copy is a plain layer: laid-out tensors cannot be copied."""
        with torch.device("meta"):
            sizes = self.in_channels, self.out_channels, self.kernel_size
            copied = nn.Conv2d(*sizes, self.stride, self.padding, self.dilation, bias=self.bias is not None)  # type: ignore[arg-type]
        copied.load_state_dict({name: t.clone() for name, t in self.state_dict().items()}, assign=True)
        memo[id(self)] = copied
        return copied.requires_grad_(False).train(self.training)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight


class _Room(threading.local):
    """Where a thread turns weights round. One for all of them: to be given memory takes longer than to fill it."""

    numbers = torch.empty(0)


_room = _Room()


def _turned(weight: Tensor) -> Tensor:
    """A weight as (in, out, ...), until this thread turns another."""
    if _room.numbers.numel() < weight.numel():
        _room.numbers = torch.empty(weight.numel())
    turned = _room.numbers[: weight.numel()].view(weight.transpose(0, 1).shape)
    for here, there in zip(turned.split(_ROWS, dim=1), weight.split(_ROWS), strict=True):
        here.copy_(there.transpose(0, 1))
    return turned


def _is_turned(dtype: torch.dtype, stride: tuple[int, ...]) -> bool:
    """Whether the gradient of the input is found by a plain convolution."""
    return dtype == torch.float32 and stride == (1, 1)


class PointConv2d(nn.Conv2d):
    """A frozen 1x1 convolution that `pack` has changed into a product of matrices, which needs no layout of its own.

    Its output's channels lie behind each other in memory: packed convolutions are faster with such an input.
    """

    lies_last = True

    def forward(self, input: Tensor) -> Tensor:
        points = input.to(self.weight.dtype).permute(0, 2, 3, 1).contiguous()
        return F.linear(points, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class LargeConv2d(nn.Conv2d):
    """A frozen convolution that `pack` has changed into a product of matrices where that is faster: a column of the one is what
    the kernel sees at a point, (in x height x width) numbers."""

    def forward(self, input: Tensor) -> Tensor:
        return _Convolution.apply(input.to(self.weight.dtype), self)  # type: ignore[return-value]

    def towards_output(self, x: Tensor) -> Tensor:
        """What the layer makes of an input."""
        height, width = (
            (n + 2 * int(p) - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(x.shape[2:], self.padding, self.dilation, self.kernel_size, self.stride, strict=True)
        )
        if len(x) * height * width > _FEW_POINTS:
            return self._conv_forward(x, self.weight, self.bias)
        seen = F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)  # type: ignore[arg-type]
        seen = seen.transpose(0, 1).flatten(1)  # side by side: the weight is read once
        weight = self.weight.flatten(1)
        out = weight @ seen if self.bias is None else torch.addmm(self.bias[:, None], weight, seen)
        return out.unflatten(1, (len(x), height, width)).transpose(0, 1).contiguous()

    def towards_input(self, grad: Tensor, size: torch.Size) -> Tensor:
        """The gradient of an input of this size."""
        places = self.stride, self.padding, self.dilation
        if grad[:, 0].numel() > _FEW_POINTS:
            x = grad.new_empty(size)  # whose numbers the gradient of the weight alone asks for
            arguments = None, *places, False, (0, 0), 1, (True, False, False)
            return torch.ops.aten.convolution_backward(grad, x, self.weight, *arguments)[0]
        points = grad.flatten(2).transpose(1, 2).flatten(0, 1)
        seen = (points @ self.weight.flatten(1)).unflatten(0, (len(grad), -1)).transpose(1, 2)
        return F.fold(seen, size[2:], self.kernel_size, self.dilation, self.padding, self.stride)  # type: ignore[arg-type]


class _Convolution(torch.autograd.Function):
    """A convolution whose weight is not trained: nothing of the input is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedConv2d | LargeConv2d) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape
        return layer.towards_output(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.towards_input(grads[0].contiguous(), ctx.size), None


def pack(model: nn.Module) -> int:
    """Lay out the frozen convolutions of a model that is on the CPU; returns how many. What is trained stays as it is.

    Returns at once: who needs a layer waits for it. A weight as it was leaves its place to what is laid out next if that fits
    (`weights.roomy`), else to the system. If the model is forgotten meanwhile, the rest is left.
    """
    layers = packable(model)
    packers = ThreadPoolExecutor(_PACKERS)
    finalize(model, packers.shutdown, wait=False, cancel_futures=True).atexit = False
    for layer in layers:
        if layer.kernel_size == (1, 1):
            layer.__class__ = PointConv2d
            continue
        if _is_large(layer):
            layer.__class__ = LargeConv2d
            continue
        weight = layer._parameters.pop("weight")
        layer.__class__ = PackedConv2d  # in place, since adapters hold it
        layer.laid_out = packers.submit(layer.lay_out, weight.detach())  # type: ignore[attr-defined, union-attr]
        if not is_roomy(weight):  # type: ignore[arg-type]
            packers.submit(give_holes_back)
        del weight
    packers.shutdown(wait=False)
    return len(layers)


def packable(model: nn.Module) -> list[nn.Conv2d]:
    """What `pack` will lay out, in the order of use: diffusers' UNet has its way up before its middle."""
    if not _is_supported():
        return []
    found = [(name, layer) for name, layer in model.named_modules() if _can_be_packed(layer)]
    return [layer for _, layer in sorted(found, key=lambda named: named[0].startswith("up_blocks"))]  # type: ignore[misc]


def num_bytes(model: nn.Module) -> int:
    """What `pack` will hold besides the weights: the layouts for the gradients."""
    return sum(layer.weight.nbytes for layer in packable(model) if layer.kernel_size != (1, 1) and not _is_large(layer))


def packed_form(func: Any, arguments: Sequence[Any]) -> Callable[[], Any] | None:
    """What computes, where `pack` has been, this call of aten.convolution or of the gradient of its input, on the weight of a
    layer that was laid out. None for another call."""
    if func.overloadpacket is torch.ops.aten.convolution:
        grad, (x, weight, bias) = None, arguments[:3]
    elif func.overloadpacket is torch.ops.aten.convolution_backward and not any(arguments[-1][1:]):
        grad, x, weight, bias = *arguments[:3], None
    else:
        return None
    stride, padding, dilation, is_transposed, _, groups = arguments[3 if grad is None else 4 :][:6]
    if is_transposed or groups != 1:
        return None
    with torch.device("meta"):  # no numbers are drawn for it
        layer = nn.Conv2d(*weight.shape[1::-1], tuple(weight.shape[2:]), stride, padding, dilation, bias=False)  # type: ignore[arg-type]
    layer.weight, layer.bias = nn.Parameter(weight, False), None if bias is None else nn.Parameter(bias, False)
    model = nn.Sequential(layer)
    if not pack(model):
        return None
    if isinstance(layer, PackedConv2d):
        layer.laid_out.result()
    if grad is None:
        return lambda: layer(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = layer(x)
    return lambda: torch.autograd.grad(out, x, grad, retain_graph=True)


def _is_supported() -> bool:
    """Whether this processor's kernels are oneDNN's own, which these layouts are of."""
    return torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")


def _is_large(layer: nn.Conv2d) -> bool:
    """Whether the layer's weight stays as it is."""
    return layer.weight.dtype == torch.float32 and layer.weight.nbytes > _LARGE_BYTES


def _can_be_packed(layer: nn.Module) -> bool:
    if type(layer) is not nn.Conv2d or layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    if any(p.requires_grad or p.device.type != "cpu" for p in layer.parameters()):
        return False
    if layer.kernel_size == (1, 1) and layer.stride != (1, 1):
        return False
    if any(p > d * (k - 1) for p, d, k in zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)):
        return False
    kind = layer.weight.dtype
    return kind == torch.float32 or (kind == torch.bfloat16 and bool(_OPS._is_mkldnn_bf16_supported()))
