"""An adapter of the model's layers, of whatever kind: which layers, with what rank and rate, under which names in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limner.adapters import lora, reading
from limner.adapters.dylora import DyloraLayer
from limner.adapters.full import FullLayer
from limner.adapters.glora import GloraLayer
from limner.adapters.ia3 import Ia3Layer
from limner.adapters.layers import Layer, Sizes, attribute
from limner.adapters.loha import LohaLayer
from limner.adapters.lokr import LokrLayer
from limner.adapters.oft import OftLayer
from limner.adapters.peft_names import to_diffusers
from limner.adapters.stacks import apart, joined, layer_name, num_stacked
from limner.config import Lora, Optimizer, rules
from limner.config.defaults import text_encoder_rate
from limner.errors import Finding, UserError, wrong
from limner.randomness import mix

if TYPE_CHECKING:
    from limner.adapters.adapter import FileNames
    from limner.models.family import Family, Target

LAYERS: dict[str, type[Layer]] = {
    "lora": lora.LoraLayer,
    "loha": LohaLayer,
    "lokr": LokrLayer,
    "oft": OftLayer,
    "ia3": Ia3Layer,
    "glora": GloraLayer,
    "dylora": DyloraLayer,
    "full": FullLayer,
}
"""Kind -> what one layer of it is."""


class LayerAdapter:
    """Adapted layers of a family; see `adapters.adapter.Adapter`."""

    def __init__(self, section: Any) -> None:
        self.section = section
        self.layers: dict[str, tuple[Target, Layer]] = {}
        self.lr_factors: dict[str, float] = {}
        self.stacks: Mapping[str, int] = {}
        """How many layers files have under one name, of all that the model has."""

    # --- in the model ---

    def attach(self, family: Family, seed: int) -> None:
        """Raises UserError if adapter.rules do not fit the model."""
        section, kind = self.section, self._kind()
        every = family.adapter_targets(convolutions=section.convolutions)
        self.stacks = num_stacked(every)
        parts = [t for t in every if (section.denoiser if t.part == "denoiser" else section.text_encoder) and kind.adapts(t)]
        parsed = rules.parse(section.rules, ranks=hasattr(section, "rank"))
        rules.require_use(parsed, [rule_name(t) for t in parts])
        for target in parts:
            effect = rules.effect(parsed, rule_name(target))
            if effect.off:
                continue
            name, base = layer_name(target), target.module
            sizes = Sizes.of(base, halves=target.piece == "swapped")  # type: ignore[arg-type]
            source = torch.Generator().manual_seed(mix(seed, f"init {name}"))
            tensors, scale = kind.initial(target, sizes, _with_rank(section, effect), source)
            layer = kind(base, tensors, scale, family.device)  # type: ignore[arg-type]
            layer.settle(section, mix(seed, f"draws {name}"))
            self.layers[name] = target, layer
            self.lr_factors[name] = effect.lr_factor
        assert self.layers, "preflight refuses configurations that adapt nothing"
        if getattr(section, "freeze_down", False):
            for _, layer in self.layers.values():
                layer.get_parameter("lora_down").requires_grad_(False)
        for option in kind.depends:
            is_set = getattr(section, option) != type(section).model_fields[option].default
            # where there are no convolutions at all, that is said before the start
            meant = [layer for _, layer in self.layers.values() if option != "conv_alpha" or layer.sizes.is_spatial]
            if is_set and meant and not any(layer.uses(option) for layer in meant):
                raise wrong(f"adapter.{option}", "none of these layers has a use for it: they are too small.", "Remove it.")
        self._enter()

    @classmethod
    def of_file(cls, family: Family, state: Mapping[str, Tensor], where: str) -> LayerAdapter:
        """Attach what a file holds for the loaded parts, each layer of the kind and rank that it has there. `state`: its
        tensors under the adapter's names (`adapters.reading`). Raises UserError, under `where`, if one has no place."""
        adapter = cls(None)
        adapter.layers = {name: (t, layer) for name, t, layer in reading.layers_of(family, state, where)}
        adapter._enter()
        return adapter

    def _kind(self) -> type[Layer]:
        return lora.layer_class(self.section) if isinstance(self.section, Lora) else LAYERS[self.section.kind]

    def _enter(self) -> None:
        for _, layer in self.layers.values():
            layer.attach()

    def _leave(self) -> None:
        for _, layer in self.layers.values():
            layer.detach()

    def detach(self) -> None:
        self._leave()
        self.layers.clear()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        self._leave()
        try:
            yield
        finally:
            self._enter()

    def merge(self) -> None:
        for _, layer in self.layers.values():
            layer.merge()
        self.detach()

    # --- training ---

    def begin(self, step: int, micro_batch: int) -> None:
        for _, layer in self.layers.values():
            layer.begin(step, micro_batch)

    @torch.no_grad()
    def after_step(self) -> None:
        section = self.section
        is_limited = getattr(section, "max_norm", "off") != "off" or getattr(section, "constraint", 0) > 0
        for _, layer in self.layers.values():
            layer.end()
            if is_limited:
                layer.restrain(section)

    def parameter_groups(self, optimizer: Optimizer, lr: float) -> list[dict[str, Any]]:
        ratio = getattr(self.section, "up_lr_ratio", 1.0)
        groups = dict[str, dict[str, Any]]()
        for name, (target, layer) in self.layers.items():
            rate = (lr if target.part == "denoiser" else text_encoder_rate(optimizer, lr)) * self.lr_factors[name]
            title = group_name(target.part, self.lr_factors[name])
            fast = {attribute(n) for n in layer.fast} if ratio != 1 else set()
            for key, p in layer.named_parameters():
                if not p.requires_grad:
                    continue
                its, times = (f"{title} up", ratio) if key in fast else (title, 1.0)
                groups.setdefault(its, {"name": its, "params": [], "lr": rate * times})["params"].append(p)
        return list(groups.values())

    # --- its tensors ---

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": t.detach() for name, (_, layer) in self.layers.items() for key, t in layer.tensors().items()}

    def exported(self, names: FileNames) -> dict[str, Tensor]:
        state, targets = self.state_dict(), {name: target for name, (target, _) in self.layers.items()}
        if names == "diffusers":
            return to_diffusers(state, targets)
        return joined(apart(state, targets, self.stacks))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = self.state_dict()
        faults = [Finding(k, "is missing from the LoRA file.") for k in sorted(own.keys() - state.keys())]
        faults += [Finding(k, "is in the LoRA file but has no place in this model.") for k in sorted(state.keys() - own.keys())]
        faults += [
            Finding(k, f"has shape {tuple(state[k].shape)} in the LoRA file, {tuple(own[k].shape)} is needed.")
            for k in sorted(own.keys() & state.keys())
            if state[k].numel() != own[k].numel()
        ]
        if faults:
            more = f"{len(faults) - 3} more tensors do not fit."
            raise UserError([*faults[:3], *([Finding("adapter", more, severity="note")] if len(faults) > 3 else [])])
        for name, (_, layer) in self.layers.items():
            layer.take({key: state[f"{name}.{key}"] for key in layer.tensors()})


def rule_name(target: Target) -> str:
    """What adapter.rules call a layer: its part and diffusers' name of it."""
    return f"{target.part}.{target.in_diffusers.partition('.')[2]}"


def group_name(part: str, factor: float) -> str:
    """What a parameter group is called in events and curves."""
    return part if factor == 1 else f"{part} x{factor:g}"


def _with_rank(section: Any, effect: rules.Effect) -> Any:
    """The section as it counts for one layer. A rule's rank without an alpha keeps the scale where that was alpha = rank."""
    changes = dict[str, Any]()
    if effect.rank is not None:
        changes |= {"rank": effect.rank, "conv_rank": effect.rank}
    if effect.alpha is not None:
        changes |= {"alpha": effect.alpha, "conv_alpha": effect.alpha}
    return section.model_copy(update=changes) if changes else section
