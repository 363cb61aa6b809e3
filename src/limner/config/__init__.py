"""The schema: every option of Limner, declared once. Imports pydantic and the standard library only."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limner.config.adapter import Lora, NoAdapter
from limner.config.base import Section
from limner.config.data import Data
from limner.config.launch import Launch
from limner.config.logging import Logging
from limner.config.memory import Memory
from limner.config.model import Model
from limner.config.objective import Objective
from limner.config.optimizer import Optimizer
from limner.config.output import Output
from limner.config.sample import Sample
from limner.config.train import Train

Adapter = Annotated[Lora | NoAdapter, Field(discriminator="kind")]


class Config(Section):
    """Everything a run is asked to do.

    Frozen; what is derived from it gets a name of its own (see `data.dataset` and `plan.json`).
    """

    model: Model = Model()
    data: Data = Data()
    adapter: Adapter = Lora()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    objective: Objective = Objective()
    memory: Memory = Memory()
    launch: Launch = Launch()
    sample: Sample = Sample()
    output: Output = Output()
    logging: Logging = Logging()


__all__ = ["Adapter", "Config", "Data", "Launch", "Logging", "Lora", "Memory", "Model", "NoAdapter", "Objective", "Optimizer"]
__all__ += ["Output", "Sample", "Section", "Train"]
