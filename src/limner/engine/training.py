"""What a run holds in memory while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from limner import disk
from limner.adapters.adapter import Adapter
from limner.changes import Change
from limner.config import Config
from limner.config.prompts import Prompt
from limner.data.dataset import Dataset
from limner.diffusion.timesteps import Timesteps, timesteps_of
from limner.engine import graphs, hints
from limner.engine.aside import Saver, fits_aside
from limner.engine.average import Average
from limner.engine.checkpoint import output_folder
from limner.engine.feed import AHEAD, Feed
from limner.engine.journal import Journal
from limner.engine.meter import Meter
from limner.engine.objective import learn
from limner.engine.one_by_one import OneByOne
from limner.engine.optimizers import make_optimizer
from limner.engine.runtime import Runtime
from limner.engine.samples import Samples
from limner.engine.skips import Skip
from limner.engine.watch import Alarm, Watch
from limner.models.family import Conditioning, Family
from limner.runs import Run


@dataclass
class Training:
    """Everything a run holds in memory."""

    config: Config
    run: Run
    runtime: Runtime
    journal: Journal
    family: Family
    adapter: Adapter
    dataset: Dataset
    samples: Samples
    learning_rate: float
    facts: dict[str, Any]
    """What the run found out, for the files' metadata."""
    prompts: list[Prompt]
    encoded_prompts: list[tuple[Conditioning, Conditioning]]
    stop_requested: Callable[[], bool]
    validation: Samples | None = None
    """The held-out pictures."""
    pending: list[Change] = field(default_factory=list)
    """Live changes that an earlier trainer of this run made behind the step to resume from: made again at their steps."""
    alarm: Alarm | None = None
    """Why the run went back: at that step it decides what to leave out."""
    skips: list[Skip] = field(default_factory=list)
    """What is left out since it made no numbers."""
    written: list[str] = field(default_factory=list)
    """Checkpoints written on the way, oldest first."""
    done: int = 0
    """The last finished step."""
    is_leaving: bool = False
    """It was asked to stop: what is due at this step is its last."""
    is_moving: bool = False
    """Some weights may be those of the next step already."""
    timesteps: Timesteps = field(init=False)
    optimizer: torch.optim.Optimizer | OneByOne = field(init=False)
    average: Average | None = field(init=False, default=None)
    params: list[torch.nn.Parameter] = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    """Keeps small gradients from vanishing in float16; does nothing in other precisions."""
    graphs: graphs.Graphs | None = field(init=False, default=None)
    feed: Feed = field(init=False)
    saver: Saver = field(init=False)
    saves_aside: bool = field(init=False)
    """Whether files are written while the loop goes on. A whole model is not: it would have to be in memory twice."""
    saved_at: int | None = field(init=False, default=None)
    """The step of the last save."""
    meter: Meter = field(init=False)
    output_mount: Path = field(init=False)
    """Where the disk that finished files go to is mounted."""
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.timesteps = timesteps_of(self.config.objective, self.family.process)
        groups = self.adapter.parameter_groups(self.config.optimizer, self.learning_rate)
        self.params = [p for g in groups for p in g["params"]]
        self.optimizer = make_optimizer(self.config.optimizer, groups, self.runtime.device, self.config.train.seed)
        self.scaler = torch.amp.GradScaler(self.runtime.device.type, enabled=self.runtime.precision == "fp16")
        if self.config.train.ema != "off":
            device = torch.device("cpu") if self.config.train.ema_device == "cpu" else None
            self.average = Average(self.params, self.config.train.ema, device)
        if self.config.speed.cuda_graph:
            self.graphs = graphs.on_gpu(lambda question, count: learn(self, question, count), self.params)
        self.feed = Feed(self, AHEAD if self.runtime.device.type == "cuda" else 0)
        self.saver = Saver(self.journal.event, lambda: self.journal.waiting_for("saving"))
        self.saves_aside = not self.config.adapter.trains_base and fits_aside(self.params)
        self.output_mount = disk.mount_of(output_folder(self.config, self.run.checkpoints))
        self.watch = Watch(self.runtime)
        device, situation = self.runtime.device, hints.situation(self.config, self.runtime.device.type)
        self.meter = self.journal.meter = Meter(device, self.runtime.precision, situation, is_on=self.runtime.is_main)

    def is_asked_to_stop(self) -> bool:
        """Whether any process of this run was, by a signal or a request; to be asked by all of them together."""
        return self.runtime.any(self.stop_requested() or self.run.is_asked_to_stop())

    def circumstances(self) -> dict[str, Any]:
        """What must be the same when the run is resumed, or its numbers would be others."""
        out = {
            "device": self.runtime.device.type,
            "precision": self.runtime.precision,
            "number of steps": self.dataset.total_steps,
            "VAE or text encoders": self.samples.fingerprint(),
        }
        # only the main process has hashed them
        return out | ({"base model": self.facts["model_hash"], "merged files": self.facts["merged"]} if self.facts else {})
