"""Bring a part of the model into memory as a run has it, with the files of model.merge in it: for good, or for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from limner.adapters import reading
from limner.config.model import Model, merges
from limner.models.family import Family, Part

_MERGE = "model.merge"


def load(family: Family, part: Part, dtype: torch.dtype, device: torch.device, model: Model) -> None:
    """Load a part and merge into it what is merged. Raises UserError if a file does not fit."""
    family.load(part, dtype, device)
    for path, strength in merges(model) if part != "vae" else ():  # which no adapter changes
        state = reading.read(path, family, _MERGE)
        for _, target, layer in reading.layers_of(family, state, _MERGE) if state else ():
            # of what is loaded, the other parts were merged when they were
            if (target.part == "denoiser") == (part == "denoiser"):
                layer.strength = strength
                layer.merge()


@contextmanager
def lent(family: Family, part: Part, dtype: torch.dtype, device: torch.device, model: Model) -> Iterator[None]:
    """Inside, the part is in memory. If it was not there before, it is not afterwards."""
    was_here = family.has(part)
    if not was_here:
        load(family, part, dtype, device, model)
    try:
        yield
    finally:
        if not was_here:
            family.free(part)
