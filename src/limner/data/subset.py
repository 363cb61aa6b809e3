"""A part of the data set with settings of its own."""

from __future__ import annotations

from dataclasses import dataclass

from limner.config import Data


@dataclass(frozen=True, eq=False)  # one object for all its pictures, compared by identity
class Subset:
    """Pictures of one folder, and what holds for them in the place of the configuration's [data]."""

    data: Data
    is_class: bool = False
    """Class pictures: ordinary ones of the kind that is taught (prior preservation)."""
