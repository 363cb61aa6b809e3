"""No adapter: the model's own weights are trained (fine-tuning, DreamBooth)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limner.config import NoAdapter as Section
from limner.config import Optimizer, rules
from limner.config.defaults import text_encoder_rate
from limner.errors import wrong

if TYPE_CHECKING:
    from limner.adapters.adapter import FileNames
    from limner.models.family import Family


class NoAdapter:
    """Trains the parts of the model that the section names; see `adapters.adapter.Adapter`."""

    def __init__(self, section: Section) -> None:
        self.section = section
        self.rules = rules.parse(section.rules, ranks=False)
        self.parts: dict[str, nn.Module] = {}

    def attach(self, family: Family, seed: int) -> None:  # noqa: ARG002 (there is nothing to initialise)
        if self.section.denoiser:
            self.parts["denoiser"] = family.denoiser
        if self.section.text_encoder:
            self.parts |= {name: family.text_encoders[name] for name in family.trainable_text}
        # weights that are trained are kept in float32 unless asked otherwise; autocast gives the speed
        dtype = torch.float32 if self.section.weights == "fp32" else torch.bfloat16
        for part in self.parts.values():
            for p in part.requires_grad_(True).parameters():
                p.data = p.data.to(dtype)  # Module.to would swap the tensors, which those without numbers do not suffer
        if self.rules:
            named = [(name, p) for _, name, p in self._named_parameters()]
            rules.require_use(self.rules, [name for name, _ in named])
            for name, p in named:
                p.requires_grad_(not rules.effect(self.rules, name).off)

    def detach(self) -> None:
        for part in self.parts.values():
            part.requires_grad_(False)
        self.parts.clear()

    def suspended(self) -> AbstractContextManager[None]:
        raise AssertionError("preflight refuses what needs the base model while it is trained itself")

    def begin(self, step: int, micro_batch: int) -> None:
        pass

    def after_step(self) -> None:
        pass

    def parameter_groups(self, optimizer: Optimizer, lr: float) -> list[dict[str, Any]]:
        rates = {"denoiser": lr}
        groups = dict[str, dict[str, Any]]()
        for part, name, p in self._named_parameters():
            if not p.requires_grad:
                continue
            factor = rules.effect(self.rules, name).lr_factor
            its = part if factor == 1 else f"{part} x{factor:g}"
            rate = rates.get(part, text_encoder_rate(optimizer, lr)) * factor
            groups.setdefault(its, {"name": its, "params": [], "lr": rate})["params"].append(p)
        return list(groups.values())

    def _named_parameters(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """(part, what adapter.rules call it, parameter)."""
        for part, module in self.parts.items():
            # as diffusers and every file call CLIP's, whatever transformers does
            for name, p in module.named_parameters():
                level = "" if part == "denoiser" or name.startswith(("text_model.", "text_projection.")) else "text_model."
                yield part, f"{part}.{level}{name}", p

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": p.detach() for name, part in self.parts.items() for key, p in part.named_parameters()}

    def exported(self, names: FileNames) -> dict[str, Tensor]:  # noqa: ARG002
        raise AssertionError("a whole model is written by its family")

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
            raise wrong("adapter", "the saved weights are those of another model.", "Start a new run.")
        for key, tensor in own.items():
            tensor.copy_(state[key])

    def merge(self) -> None:
        self.detach()
