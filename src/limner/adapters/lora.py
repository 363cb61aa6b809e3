"""LoRA for Linear and Conv2d layers (arXiv:2106.09685), with rank-stabilised scaling and DoRA as options.

y = W0 x + scale * up(down(x)), scale = alpha / rank (or alpha / sqrt(rank), arXiv:2312.03732, section 3).
DoRA (arXiv:2402.09353, eq. 5): W = m * V / |V|, V = W0 + scale * up down, the norm of each column, that is of each input's
weights. So do A1111 and ComfyUI; where a file's magnitudes go by outputs, A1111 cannot read it and ComfyUI and Forge divide
by |W0| instead of |V|.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.adapters.peft_names import to_diffusers
from limner.adapters.stacks import joined
from limner.config import Lora, Optimizer
from limner.config.defaults import text_encoder_rate
from limner.errors import Finding, UserError, wrong
from limner.randomness import mix

if TYPE_CHECKING:
    from limner.adapters.adapter import FileNames
    from limner.models.family import Family, Target


def sizes(layer: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    """(inputs, outputs, and a convolution's kernel)."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, *layer.kernel_size


class LoraLayer(nn.Module):
    """The low-rank update of one layer. `attach` puts it before the layer's own forward; the layer's weights stay frozen."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, scale: float, seed: int, device: torch.device) -> None:
        super().__init__()
        self.base = [base]  # in a list: not a submodule, so that its weights are not counted as ours
        self.rank, self.scale = rank, scale
        self.strength = 1.0  # how much of the change is applied; other than 1 only when painting
        # not from the shape of its weight, which may be stored otherwise
        inputs, outputs, *kernel = sizes(base)
        ones = [1] * len(kernel)
        self.down = nn.Parameter(torch.empty(rank, inputs, *kernel))
        generator = torch.Generator().manual_seed(seed)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        self.up = nn.Parameter(torch.zeros(outputs, rank, *ones))
        self.to(device)

    def delta(self) -> Tensor:
        """The change of the base weight, in its shape."""
        if self.down.ndim == 2:
            return self.scale * (self.up @ self.down)
        # a 1x1 convolution after a kxk one is one kxk convolution
        return self.scale * (self.up.flatten(1) @ self.down.flatten(1)).view(self.base[0].weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        base = self.base[0]
        y = type(base).forward(base, x)  # type: ignore[arg-type]
        if isinstance(base, nn.Linear):
            update = F.linear(F.linear(x, self.down), self.up)
        else:
            update = F.conv2d(F.conv2d(x, self.down, None, base.stride, base.padding, base.dilation), self.up)
        return y + update * (self.scale * self.strength)

    def attach(self) -> None:
        self.base[0].forward = self.__call__  # type: ignore[method-assign]

    def detach(self) -> None:
        self.base[0].__dict__.pop("forward", None)

    def tensors(self) -> dict[str, Tensor]:
        # whatever the scaling rule, the file says alpha so that alpha / rank is the scale every reader will use
        alpha = torch.tensor(self.scale * self.rank)
        return {"lora_down.weight": self.down, "lora_up.weight": self.up, "alpha": alpha}

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The base weight with the update in it, in float32."""
        return self.base[0].weight.float() + self.delta().float()


class DoraLayer(LoraLayer):
    """LoRA whose direction and magnitude are learnt apart."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, scale: float, seed: int, device: torch.device) -> None:
        super().__init__(base, rank, scale, seed, device)
        self.magnitude = nn.Parameter(self._norm(base.weight.detach().float()).to(device))

    @staticmethod
    def _norm(weight: Tensor) -> Tensor:
        """The norm of each input's weights, shape (1, inputs, ...); ComfyUI adds the same epsilon."""
        norm = weight.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *[1] * (weight.ndim - 2))
        return norm + torch.finfo(torch.float32).eps

    def _weight(self) -> Tensor:
        direction = self.base[0].weight.float() + self.delta()
        # the norm is held constant in the backward pass (section 4.3): as good, and far less memory
        return direction * (self.magnitude / self._norm(direction).detach())

    def forward(self, x: Tensor) -> Tensor:
        base, weight = self.base[0], self._weight()
        if self.strength != 1:
            weight = torch.lerp(base.weight.float(), weight, self.strength)
        bias = None if base.bias is None else base.bias.to(weight.dtype)
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)
        if isinstance(base, nn.Linear):
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, base.stride, base.padding, base.dilation, base.groups)

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {"dora_scale": self.magnitude}

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        return self._weight()


class LoraAdapter:
    """A LoRA over all target layers of a family; see `adapters.adapter.Adapter`."""

    def __init__(self, section: Lora) -> None:
        self.section = section
        self.layers: dict[str, tuple[Target, LoraLayer]] = {}

    def attach(self, family: Family, seed: int) -> None:
        section = self.section
        kind = DoraLayer if section.dora else LoraLayer
        for target in family.adapter_targets(convolutions=section.conv_rank is not None):
            if not (section.denoiser if target.part == "denoiser" else section.text_encoder):
                continue
            name = f"{target.in_file}.{target.piece}" if target.piece else target.in_file
            rank, scale = section.rank_and_scale(spatial=target.is_spatial)
            self.layers[name] = (target, kind(target.module, rank, scale, mix(seed, f"init {name}"), family.device))  # type: ignore[arg-type]
        assert self.layers, "preflight refuses configurations that adapt nothing"
        for _, layer in self.layers.values():
            layer.attach()

    def detach(self) -> None:
        for _, layer in self.layers.values():
            layer.detach()
        self.layers.clear()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        for _, layer in self.layers.values():
            layer.detach()
        try:
            yield
        finally:
            for _, layer in self.layers.values():
                layer.attach()

    def parameter_groups(self, optimizer: Optimizer, lr: float) -> list[dict[str, Any]]:
        parts = dict.fromkeys(target.part for target, _ in self.layers.values())
        return [
            {
                "name": part,
                "params": [p for target, layer in self.layers.values() if target.part == part for p in layer.parameters()],
                "lr": lr if part == "denoiser" else text_encoder_rate(optimizer, lr),
            }
            for part in parts
        ]

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": t.detach() for name, (_, layer) in self.layers.items() for key, t in layer.tensors().items()}

    def exported(self, names: FileNames) -> dict[str, Tensor]:
        state = self.state_dict()
        if names == "diffusers":
            return to_diffusers(state, {name: target for name, (target, _) in self.layers.items()})
        return joined(state)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = self.state_dict()
        faults = [Finding(k, "is missing from the LoRA file.") for k in sorted(own.keys() - state.keys())]
        faults += [Finding(k, "is in the LoRA file but has no place in this model.") for k in sorted(state.keys() - own.keys())]
        shared = own.keys() & state.keys()
        faults += [
            Finding(k, f"has shape {tuple(state[k].shape)} in the LoRA file, {tuple(own[k].shape)} is needed.")
            for k in sorted(shared)
            if state[k].numel() != own[k].numel()
        ]
        if faults:
            more = f"{len(faults) - 3} more tensors do not fit."
            raise UserError([*faults[:3], *([Finding("adapter", more, severity="note")] if len(faults) > 3 else [])])
        for name, (_, layer) in self.layers.items():
            if state[f"{name}.alpha"] != own[f"{name}.alpha"]:  # the same alpha must keep the same scale to the last bit
                layer.scale = float(state[f"{name}.alpha"]) / layer.rank
            for key, tensor in layer.tensors().items():
                if key != "alpha":
                    tensor.copy_(state[f"{name}.{key}"].view(tensor.shape))

    @torch.no_grad()
    def merge(self) -> None:
        for _, layer in self.layers.values():
            weight = layer.base[0].weight
            weight.copy_(layer.merged_weight().to(weight.dtype))
        self.detach()


def section_of(state: dict[str, Tensor], where: str) -> Lora:
    """The config section that a LoRA file's tensors imply: ranks, alphas, parts. Raises UserError if it is no LoRA."""
    ranks = {k.removesuffix(".lora_down.weight"): t for k, t in state.items() if k.endswith(".lora_down.weight")}
    if not any(n.startswith(("lora_unet_", "lora_te")) for n in ranks):
        raise wrong(where, "holds no LoRA in kohya's names.", "Give a .safetensors file that Limner or kohya wrote.")
    linear = {t.shape[0] for t in ranks.values() if t.ndim == 2 or t.shape[-1] == 1}
    spatial = {t.shape[0] for t in ranks.values() if t.ndim == 4 and t.shape[-1] > 1}
    if len(linear) > 1 or len(spatial) > 1:
        raise wrong(where, "has layers of different ranks, which Limner cannot load yet.", "Resize it to one rank.")
    rank = max(linear | spatial)
    return Lora(
        rank=next(iter(linear), rank),
        conv_rank=next(iter(spatial), None),
        dora=any(k.endswith(".dora_scale") for k in state),
        denoiser=any(n.startswith("lora_unet_") for n in ranks),
        text_encoder=any(n.startswith("lora_te") for n in ranks),
    )
