"""What all adapters of single layers share: how one sits before a Linear or Conv2d, whose own weights stay as they are.

A layer of an adapter is its tensors, called as files call them, and a formula that makes of them the change of the base's
weight. It is applied beside the base, y = W0 x + dW x and never (W0 + dW) x: in bf16 a small change would be lost in the sum,
and a base that is stored in few bits need not be made whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.diffusion.draws import generator, sent

if TYPE_CHECKING:
    from limner.models.family import Target

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Of the layer that is adapted. Not from the shape of its weight, which may be stored otherwise."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    """() of a linear layer."""
    halves: bool
    """The file has the halves of its outputs the other way round: what stands for outputs must part into two."""

    @classmethod
    def of(cls, base: nn.Linear | nn.Conv2d, *, halves: bool = False) -> Sizes:
        if isinstance(base, nn.Linear):
            return cls(base.in_features, base.out_features, (), halves)
        return cls(base.in_channels, base.out_channels, base.kernel_size, halves)

    @property
    def is_spatial(self) -> bool:
        return math.prod(self.kernel) > 1

    @property
    def ones(self) -> tuple[int, ...]:
        """The kernel of a 1x1 convolution; () of a linear layer."""
        return (1,) * len(self.kernel)

    @property
    def weight(self) -> tuple[int, ...]:
        return self.outputs, self.inputs, *self.kernel

    @property
    def columns(self) -> int:
        """Numbers of the weight for each output."""
        return self.inputs * math.prod(self.kernel)


def kaiming(shape: Sequence[int], source: torch.Generator) -> Tensor:
    """What torch's own layers begin with."""
    return nn.init.kaiming_uniform_(torch.empty(*shape), a=math.sqrt(5), generator=source)


def divisor(number: int, most: int) -> int:
    """The largest divisor that is not above `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


class Layer(nn.Module):
    """One adapted layer. `attach` puts it before the base's own forward."""

    names: ClassVar[tuple[str, ...]]
    """Its tensors, as files call them."""
    fast: ClassVar[tuple[str, ...]] = ()
    """Those of them that adapter.up_lr_ratio speeds up."""
    has_alpha: ClassVar[bool] = True
    depends: ClassVar[tuple[str, ...]] = ()
    """Options of its section that only some layers have a use for: see `uses`."""

    def __init__(self, base: nn.Linear | nn.Conv2d, tensors: Mapping[str, Tensor], scale: float | None, device: Any) -> None:
        """`tensors` are taken over; `scale` is alpha / rank, or told by their "alpha" if None."""
        super().__init__()
        self.base = [base]  # in a list: not a submodule, so that its weights are not counted as ours
        self.sizes = Sizes.of(base)
        self.strength = 1.0  # how much of the change is applied; other than 1 only when painting
        self.seed = 0
        self.moment: tuple[int, ...] | None = None
        self.module_dropout = self.rank_dropout = self.dropout = 0.0
        self.left_out = False
        self.rank_mask: Tensor | None = None
        self.hold({k: v.to(device) for k, v in tensors.items()})
        self.scale = self.scale_of(tensors) if scale is None else scale

    # --- what each kind says ---

    @classmethod
    def initial(cls, target: Target, sizes: Sizes, section: Any, source: torch.Generator) -> tuple[Tensors, float]:
        """The tensors that a training begins with, under which the change is zero, and the scale."""
        raise NotImplementedError

    @classmethod
    def adapts(cls, target: Target) -> bool:  # noqa: ARG003
        """Whether a layer of the model is one that this kind changes."""
        return True

    @property
    def rank(self) -> int | None:
        """None where no tensor has one: then the scale is 1, whatever alpha is."""
        return None

    def delta(self) -> Tensor:
        """The change of the base weight at strength 1, in its shape."""
        raise NotImplementedError

    def bias_delta(self) -> Tensor | None:
        """The change of the base's bias."""
        return None

    def uses(self, option: str) -> bool:  # noqa: ARG002
        """Whether this layer has a use for one of the options in `depends`."""
        return True

    def restrain(self, section: Any) -> None:
        """Called after each step of the optimiser where the section has a limit: keep to it."""
        limit = section.max_norm
        factors = [p for name, p in self.named_parameters() if name != "dora_scale" and p.requires_grad]
        # n = max(|dW|, m / 2); the change is multiplied by min(n, m) / n (kohya.md, section 3, row 19). It is linear in each of
        # its factors, so each takes its root of that. Nothing is read back from the device.
        norm = self.norm().clamp(min=limit / 2)
        share = (norm.clamp(max=limit) / norm) ** (1 / len(factors))
        for p in factors:
            p.mul_(share)

    def norm(self) -> Tensor:
        """Frobenius norm of the low-rank change."""
        return self.delta().norm()

    # --- tensors ---

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Take these for parameters."""
        for name in self.names:
            if name in tensors:
                self.register_parameter(attribute(name), nn.Parameter(tensors[name]))

    def tensors(self) -> Tensors:
        """Its tensors under their names in files."""
        found = {name: getattr(self, attribute(name)) for name in self.names if hasattr(self, attribute(name))}
        # whatever the scaling rule, the file says alpha so that alpha / rank is the scale every reader will use
        return found | ({"alpha": torch.tensor(self.scale * (self.rank or 1))} if self.has_alpha else {})

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy these in, in the shapes of its own."""
        own = self.tensors()
        if "alpha" in own and tensors["alpha"] != own["alpha"]:  # the same alpha must keep the same scale to the last bit
            self.scale = self.scale_of(tensors)
        for name, tensor in own.items():
            if name in self.names:
                self.write(name, tensors[name].view(tensor.shape))

    def write(self, name: str, tensor: Tensor) -> None:
        getattr(self, attribute(name)).copy_(tensor)

    def scale_of(self, tensors: Mapping[str, Tensor]) -> float:
        rank = self.rank
        return 1.0 if rank is None or "alpha" not in tensors else float(tensors["alpha"]) / rank

    # --- in the model ---

    def attach(self) -> None:
        self.base[0].forward = self.__call__  # type: ignore[method-assign]

    def detach(self) -> None:
        self.base[0].__dict__.pop("forward", None)

    def plain(self, x: Tensor) -> Tensor:
        """What the base computes by itself."""
        base = self.base[0]
        return type(base).forward(base, x)  # type: ignore[arg-type]

    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the base would compute with these."""
        base = self.base[0]
        if isinstance(base, nn.Linear):
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, base.stride, base.padding, base.dilation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(x)
        if self.left_out:
            return y
        return y + self.through(x, self.delta(), self.bias_delta()) * self.strength

    def weight(self) -> Tensor:
        """The base's weight as it counts, in float32; it may be stored in few bits."""
        base: Any = self.base[0]
        return base.whole(torch.float32) if hasattr(base, "whole") else base.weight.float()

    @torch.no_grad()
    def merge(self) -> None:
        """Write the change into the base."""
        base: Any = self.base[0]
        whole = self.weight()
        merged = (whole + self.strength * self.delta().float().to(whole.device)).to(base.weight.dtype)
        base.take(merged) if hasattr(base, "take") else base.weight.copy_(merged)
        if base.bias is not None and (change := self.bias_delta()) is not None:
            base.bias.add_((self.strength * change).to(base.bias.device, base.bias.dtype))

    # --- dropout ---

    def settle(self, section: Any, seed: int) -> None:
        """Before it is trained: what the section says of dropout, and the seed of its draws."""
        self.seed = seed
        self.module_dropout, self.rank_dropout = section.module_dropout, getattr(section, "rank_dropout", 0.0)
        self.dropout = getattr(section, "dropout", 0.0)

    def begin(self, *moment: int) -> None:
        """Draw what this micro-batch leaves out: a function of (seed, layer, step, micro-batch)."""
        self.moment = moment
        self.left_out = self.module_dropout > 0 and float(torch.rand((), generator=self.draw("module"))) < self.module_dropout
        if self.rank_dropout and (rank := self.rank):
            kept = torch.rand(rank, generator=self.draw("rank")) >= self.rank_dropout
            device = next(self.parameters()).device
            self.rank_mask = sent(kept / (1 - self.rank_dropout), device)

    def end(self) -> None:
        """From here on nothing is left out."""
        self.moment, self.left_out, self.rank_mask = None, False, None

    def draw(self, purpose: str, *moment: int) -> torch.Generator:
        """On the CPU; for another moment than this one if given."""
        return generator(self.seed, purpose, *(moment or self.moment or ()))

    def masked(self, columns: Tensor) -> Tensor:
        """A matrix (out, rank) without the ranks that are left out."""
        return columns if self.rank_mask is None else columns * self.rank_mask


def attribute(name: str) -> str:
    """What a tensor of a file is called here: lora_up.weight is `lora_up`."""
    return name.removesuffix(".weight")
