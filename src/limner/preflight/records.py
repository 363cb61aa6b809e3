"""What the checks share and learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from limner.config import Config, Data
from limner.data.dataset import Dataset
from limner.data.scan import MayFollow, Picture, Scan
from limner.data.scan import scan as read_folders
from limner.errors import Finding
from limner.estimate import Estimate, Question
from limner.formats.base import Base
from limner.formats.footprint import Footprint
from limner.machine import Machine

Look = Callable[[Data, MayFollow], Scan]


@dataclass
class Records:
    """What the checks share: the recognised base model, the scanned pictures, what weights weigh; None where they could not
    be had."""

    base: Base | None = None
    scan: Scan | None = None
    classes: list[Picture] = field(default_factory=list)
    """The class pictures that are there."""
    to_paint: list[Picture] = field(default_factory=list)
    """Those that the base model will paint: as they will be, under names that they will not have."""
    dataset: Dataset | None = None
    footprint: Footprint | None = None
    question: Question | None = None
    """What to ask `limner.estimate` beside the configuration."""
    estimate: Estimate | None = None
    """Its answer, where that is known."""
    deep: bool = False
    may_follow: Callable[[str], bool] | None = None
    look: Look = read_folders
    """What reads the folders; the page keeps what it saw of a large one."""


Check = Callable[[Config, Machine | None, Records], Iterable[Finding]]
