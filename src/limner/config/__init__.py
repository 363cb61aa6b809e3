"""The schema: every option of Limner, declared once. Imports pydantic and the standard library only."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limner.config.adapter import Dylora, EmbeddingOnly, Full, Glora, Ia3, Loha, Lokr, Lora, NoAdapter, Oft
from limner.config.base import Section
from limner.config.data import Data
from limner.config.embedding import Embedding
from limner.config.launch import Launch
from limner.config.logging import Logging
from limner.config.memory import Memory
from limner.config.model import Model
from limner.config.objective import Objective
from limner.config.optimizer import Optimizer
from limner.config.output import Output
from limner.config.sample import Sample
from limner.config.speed import Speed
from limner.config.train import Train
from limner.config.validation import Validation

Adapter = Annotated[
    Lora | Loha | Lokr | Oft | Ia3 | Glora | Dylora | Full | EmbeddingOnly | NoAdapter, Field(discriminator="kind")
]


class Config(Section):
    """Everything a run is asked to do.

    Frozen; what is derived from it gets a name of its own (see `data.dataset` and `plan.json`).
    """

    model: Model = Model()
    data: Data = Data()
    adapter: Adapter = Lora()
    embedding: Embedding = Embedding()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    objective: Objective = Objective()
    memory: Memory = Memory()
    speed: Speed = Speed()
    launch: Launch = Launch()
    validation: Validation = Validation()
    sample: Sample = Sample()
    output: Output = Output()
    logging: Logging = Logging()

    @property
    def trains_text(self) -> bool:
        """Whether what captions become changes as the training goes on: they are then encoded anew at every step."""
        return self.adapter.text_encoder or self.embedding.token is not None


__all__ = ["Adapter", "Config", "Data", "Dylora", "Embedding", "EmbeddingOnly", "Full", "Glora", "Ia3", "Launch", "Logging"]
__all__ += ["Loha", "Lokr", "Lora", "Memory", "Model", "NoAdapter", "Objective", "Oft", "Optimizer", "Output", "Sample"]
__all__ += ["Section", "Speed", "Train", "Validation"]
