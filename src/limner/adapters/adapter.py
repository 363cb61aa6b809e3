"""The protocol of everything that can be trained, and the table of adapters."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

from limner.config import Adapter as Section
from limner.config import Embedding, Optimizer

if TYPE_CHECKING:
    from limner.models.family import Family

FileNames = Literal["kohya", "diffusers"]


class Adapter(Protocol):
    """What is trained. Right after `attach`, and again after `detach`, the model computes what it did before, to the bit."""

    def attach(self, family: Family, seed: int) -> None:
        """Become part of the loaded model; `seed` decides the initial values."""
        ...

    def detach(self) -> None: ...

    def suspended(self) -> AbstractContextManager[None]:
        """Inside, the model computes what it would without the adapter. Never asked of one that trains the base."""
        ...

    def begin(self, step: int, micro_batch: int) -> None:
        """Before each micro-batch is trained with: draw what it leaves out. `micro_batch` is its number in the step, counted
        over all processes."""
        ...

    def after_step(self) -> None:
        """After each step of the optimiser: keep to limits; until the next `begin` nothing is left out."""
        ...

    def parameter_groups(self, optimizer: Optimizer, lr: float) -> list[dict[str, Any]]:
        """Groups for the optimiser: `params`, `lr` and a `name`. Not empty."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The trained tensors under names of their own, for training states; views, not copies, where possible."""
        ...

    def exported(self, names: FileNames) -> dict[str, Tensor]:
        """The trained tensors as they stand in a file that other programs load. Never asked of one that trains the base."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave. Raises UserError on missing, unexpected or misshapen tensors."""
        ...

    def merge(self) -> None:
        """Write the change into the base weights and detach."""
        ...


_LAYERED = "limner.adapters.layered:LayerAdapter"
ADAPTERS: dict[str, str] = {
    "lora": _LAYERED,
    "loha": _LAYERED,
    "lokr": _LAYERED,
    "oft": _LAYERED,
    "ia3": _LAYERED,
    "glora": _LAYERED,
    "dylora": _LAYERED,
    "full": _LAYERED,
    "embedding": "limner.adapters.embedding:EmbeddingAdapter",
    "none": "limner.adapters.none:NoAdapter",
}
"""Kind -> where its class is."""


def make(section: Section, embedding: Embedding = Embedding()) -> Adapter:
    """The adapter that the config sections describe, not attached yet: a given word is learnt beside whatever else is."""
    if section.kind == "embedding":
        return _class_of("embedding")(embedding)
    adapter = _class_of(section.kind)(section)
    if embedding.token is None:
        return adapter
    from limner.adapters.together import Together

    return Together(adapter, _class_of("embedding")(embedding))


def _class_of(kind: str) -> Any:
    module, _, name = ADAPTERS[kind].partition(":")
    return getattr(importlib.import_module(module), name)
