"""A model on the disk as the layers that a LoRA changes: each read when it is asked for, the model itself never in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.errors import wrong
from limner.formats.base import FIELD, Base, recognise_alone
from limner.formats.header import Header
from limner.formats.known import FAMILIES
from limner.formats.layout import There
from limner.formats.single import header_of
from limner.models.family import Family, Target
from limner.models.weights import Weights, in_model
from limner.tools.outline import named, outline


@dataclass(frozen=True)
class Rows:
    """Where a tensor of the model lies: these rows of one in a file."""

    there: There
    start: int
    stop: int
    shape: tuple[int, ...]


class ModelLayers:
    """The layers of a model's denoiser and text encoders, by their names in LoRA files.

    Those that a LoRA file in kohya's names stacks are one layer here, too: query, key and value of Flux and SD 3.
    """

    def __init__(self, base: Base, field: str) -> None:
        """Raises UserError, under `field`, where tensors are missing or of a wrong shape."""
        self.base, self.field = base, field
        self.family: Any = outline(base)
        models = {"denoiser": self.family.denoiser, **self.family.text_encoders}
        self.layers = by_names_in_files(self.family)
        self.rows = dict[str, dict[str, Rows]]()
        self._weights = dict[str, Weights]()
        for part, model in models.items():
            own = {name: tuple(t.shape) for name, t in model.state_dict().items()}
            self.rows[part], self._weights[part] = self._found(part, own)
        self._last: tuple[str, There, Tensor] | None = None

    def parts(self) -> list[str]:
        """ "denoiser" and the text encoders that it has."""
        return list(self.rows)

    def shape(self, name: str) -> tuple[int, ...]:
        """(outputs, inputs, *kernel) of a layer."""
        members = [tuple(target.module.weight.shape) for target in self.layers[name]]  # type: ignore[union-attr]
        return sum(m[0] for m in members), *members[0][1:]

    def is_spatial(self, name: str) -> bool:
        return self.layers[name][0].is_spatial

    def layer(self, name: str) -> Tensor:
        """A layer's weight in float32, the rows as its LoRA's outputs are."""
        parts = [self.tensor(target.part, f"{target.name}.weight") for target in self.layers[name]]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        return torch.cat(whole.chunk(2)[::-1]) if self.layers[name][0].piece == "swapped" else whole

    def tensor(self, part: str, name: str) -> Tensor:
        """A tensor of a part in float32. Raises UserError if the file cannot be read."""
        rows = self.rows[part][name]
        if self._last is None or self._last[:2] != (part, rows.there):
            self._last = None  # before the next is read, not after
            try:
                self._last = part, rows.there, in_model(self._weights[part], rows.there)
            except (OSError, ValueError, RuntimeError) as error:
                said = f"{self.base.source} cannot be read ({error})."
                raise wrong(self.field, said, "Copy or download it again.") from None
        return self._last[2][rows.start : rows.stop].float().reshape(rows.shape)

    def _found(self, part: str, own: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Rows], Weights]:
        base, folder = self.base, self.family.denoiser_folder if part == "denoiser" else part
        files = self.family.weight_files(folder)
        weights, shapes = Weights(files), _shapes(files)
        together = dict[There, list[str]]()
        for name, there in self.family.places(folder, own, shapes).items():
            together.setdefault(there, []).append(name)
        title = FAMILIES[base.family].parts[folder].title
        if lacking := sorted(there.name for there in together if there.name not in shapes):
            said = f"{base.source}: {len(lacking)} tensors of the {title} are missing, the first is {lacking[0]}."
            raise wrong(self.field, said, self._remedy())
        out = dict[str, Rows]()
        for there, members in together.items():
            if prod(shapes[there.name]) != sum(prod(own[m]) for m in members):
                said = f"{base.source}: {there.name} has the shape {shapes[there.name]}, which does not fit."
                raise wrong(self.field, said, self._remedy())
            start = 0
            for member in members:
                rows = own[member][0] if own[member] else 1
                out[member] = Rows(there, start, start + rows, own[member])
                start += rows
        return out, weights

    def _remedy(self) -> str:
        return "Download it again; if the model is of unusual shape, give a diffusers folder that describes it as config."


def find(source: str, field: str, config: Path | None = None) -> Base:
    """The model that an option names, as far as it is in that one file or folder. Raises UserError under the option's name."""
    with named({FIELD: field}):
        base = recognise_alone(source, config)
    if base.path is None:
        said = f"{source} is neither a file, nor a folder, nor a model in the Hugging Face cache of this machine."
        raise wrong(field, said, "Check the path, or download the model first.")
    return base


def by_names_in_files(family: Family) -> dict[str, list[Target]]:
    """The layers that a LoRA file has under each name, in the order in which their outputs lie there."""
    out = dict[str, list[Target]]()
    for target in family.adapter_targets(convolutions=True):
        out.setdefault(target.in_file, []).append(target)
    return {name: sorted(members, key=lambda t: int(t.piece) if t.piece.isdigit() else 0) for name, members in out.items()}


def _shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    headers: list[Header] = [header_of(file) for file in files]
    return {name: info.shape for header in headers for name, info in header.tensors.items()}
