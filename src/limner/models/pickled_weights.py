"""The tensors of a pickled checkpoint, memory-mapped. Only what `formats.pickled` found to be plain weights is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from limner.errors import wrong
from limner.formats.pickle_program import Inert
from limner.formats.pickled import SAFER, examine


class PickledWeights(Mapping[str, Tensor]):
    """The tensors of `path` by name; their numbers are read when they are used. Raises UserError (under `field`)."""

    def __init__(self, path: Path, field: str | None = None) -> None:
        found = examine(path, field)
        try:
            with torch.serialization.safe_globals([(Inert, name) for name in sorted(found.beside)]):
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, ValueError, UnpicklingError):  # PyTorch reads more of the zip than we do
            raise wrong(field or str(path), f"PyTorch cannot open {path.name}.", SAFER) from None
        state = loaded if found.level is None else loaded[found.level]
        self._tensors: dict[str, Tensor] = {name: state[name].detach() for name in found.tensors}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].clone()  # the file is mapped, and may be replaced under our feet

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
