"""An adapter and an embedding learnt together (pivotal tuning): one adapter, two files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from limner.adapters.embedding import PREFIX, EmbeddingAdapter
from limner.config import Optimizer

if TYPE_CHECKING:
    from limner.adapters.adapter import Adapter, FileNames
    from limner.models.family import Family


class Together:
    """See `adapters.adapter.Adapter`. What `exported` gives is the adapter's alone; the embedding has a file of its own."""

    def __init__(self, beside: Adapter, embedding: EmbeddingAdapter) -> None:
        self.beside, self.embedding = beside, embedding

    def attach(self, family: Family, seed: int) -> None:
        self.beside.attach(family, seed)
        self.embedding.attach(family, seed)

    def detach(self) -> None:
        self.embedding.detach()
        self.beside.detach()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        with self.beside.suspended(), self.embedding.suspended():
            yield

    def begin(self, step: int, micro_batch: int) -> None:
        self.beside.begin(step, micro_batch)

    def after_step(self) -> None:
        self.beside.after_step()

    def parameter_groups(self, optimizer: Optimizer, lr: float) -> list[dict[str, Any]]:
        return [*self.beside.parameter_groups(optimizer, lr), *self.embedding.parameter_groups(optimizer, lr)]

    def state_dict(self) -> dict[str, Tensor]:
        return self.beside.state_dict() | self.embedding.state_dict()

    def exported(self, names: FileNames) -> dict[str, Tensor]:
        return self.beside.exported(names)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        word = {name: tensor for name, tensor in state.items() if name.startswith(PREFIX)}
        self.embedding.require(word)  # before anything is taken over
        self.beside.load_state_dict({name: tensor for name, tensor in state.items() if name not in word})
        self.embedding.load_state_dict(word)

    def merge(self) -> None:
        self.embedding.merge()
