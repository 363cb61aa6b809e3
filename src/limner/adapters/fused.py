"""A linear layer and the low-rank change beside it as one step of autograd: fewer passes over memory, and less of it.

y = x W' + b + scale (x A') B'. From x to y only x and x A' are kept. With g = dL/dy: dL/dx = g W + scale (g B) A,
dL/dA = scale (g B)' x, dL/dB = scale g' (x A'). The small products are added where the large ones lie. A 1x1 convolution is
such a layer over the points of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fits(base: nn.Module) -> bool:
    """Whether a layer can be computed so: it is frozen, it looks at single points, and nothing compiles it."""
    if torch.compiler.is_compiling() or any(p.requires_grad for p in base.parameters(recurse=False)):
        return False
    if isinstance(base, nn.Conv2d):
        return base.kernel_size == base.stride == (1, 1) and base.padding == (0, 0) and base.groups == 1
    return isinstance(base, nn.Linear)


def adapted(base: Any, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """base(x) + scale * up(down(x)), for down (r, in, ...) and up (out, r, ...); in autocast's precision where it is on."""
    kind = x.device.type
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    x = x.to(torch.get_autocast_dtype(kind)) if is_cast else x
    is_picture = isinstance(base, nn.Conv2d)
    pieces = down.flatten(1), up.flatten(1), base.bias, whole_of(base)
    keeps = not getattr(base, "lies_last", False)
    return _Adapted.apply(x, *pieces, scale, is_picture, keeps)  # type: ignore[return-value]


def whole_of(base: Any) -> Callable[[torch.dtype], Tensor]:
    """What makes the weight (out, in) in a dtype, of the numbers that lie there now: a swapped block's are gone when the
    backward pass comes."""
    if hasattr(base, "held"):
        return base.held()
    return base.weight.detach().flatten(1).to


class _Adapted(torch.autograd.Function):
    """x (..., in) -> (..., out); a picture (B, in, H, W) -> (B, out, H, W), in memory as it was if it `keeps`, or else with the
    channels behind each other."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None, whole: Callable[[torch.dtype], Tensor],
        scale: float, is_picture: bool, keeps: bool,
    ) -> Tensor:  # fmt: skip
        rows, a, b = _rows(x, is_picture), down.to(x.dtype), up.to(x.dtype)
        hidden = rows @ a.T
        y = F.linear(rows, whole(x.dtype), None if bias is None else bias.to(x.dtype))
        y.addmm_(hidden, b.T, alpha=scale)
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, hidden, a, b)
        ctx.whole, ctx.scale, ctx.dtypes = whole, scale, (down.dtype, up.dtype)
        ctx.like = x.shape, is_picture, keeps and x.is_contiguous()
        return _like(y, *ctx.like)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, hidden, a, b = ctx.saved_tensors
        needs_x, needs_down, needs_up = ctx.needs_input_grad[:3]
        g = _rows(grads[0], ctx.like[1])
        back = (g @ b).mul_(ctx.scale)  # (N, rank)
        of_x = _like(torch.mm(g, ctx.whole(g.dtype)).addmm_(back, a), *ctx.like) if needs_x else None
        of_down = (back.T @ kept).to(ctx.dtypes[0]) if needs_down else None
        # in this order it is the faster one on a CPU
        of_up = (hidden.T @ g).mul_(ctx.scale).T.to(ctx.dtypes[1]).contiguous() if needs_up else None
        return of_x, of_down, of_up, None, None, None, None, None


def _rows(x: Tensor, is_picture: bool) -> Tensor:
    """(N, channels); without a copy where they lie so."""
    return (x.permute(0, 2, 3, 1) if is_picture else x).reshape(-1, x.shape[1 if is_picture else -1]).contiguous()


def _like(rows: Tensor, shape: torch.Size, is_picture: bool, is_contiguous: bool) -> Tensor:
    """Rows (N, channels) in the form of a tensor of this shape, whose channels may be others."""
    if not is_picture:
        return rows.view(*shape[:-1], -1)
    picture = rows.view(shape[0], *shape[2:], -1).permute(0, 3, 1, 2)
    return picture.contiguous() if is_contiguous else picture
