"""A model on the disk as the layers that a LoRA changes: each read when it is asked for, the model itself never in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import UserError, wrong
from limner.formats.base import FIELD, Base, recognise_files, weight_files
from limner.formats.header import Header
from limner.formats.known import FAMILIES
from limner.formats.layout import There
from limner.formats.single import header_of
from limner.models import family as families
from limner.models.family import Family, Target
from limner.models.weights import Weights, in_model, placed


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
        self.family = empty_family(base)
        models = {"denoiser": self.family.denoiser, **self.family.text_encoders}
        self.layers = dict[str, list[Target]]()
        for target in self.family.adapter_targets(convolutions=True):
            self.layers.setdefault(target.in_file, []).append(target)
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
        base, folder = self.base, self.family.denoiser_folder if part == "denoiser" else part  # type: ignore[attr-defined]
        assert base.path is not None
        files = [base.path] if base.layout == "file" else weight_files(base.path, folder)
        weights, shapes = Weights(files), _shapes(files)
        prefixes = FAMILIES[base.family].parts[folder].prefixes if base.layout == "file" else ()
        names = self.family.names(folder)  # type: ignore[attr-defined]
        together = dict[There, list[str]]()
        for name, there in placed(own, weights, names, prefixes).items():
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


def find(path: Path, field: str, config: Path | None = None) -> Base:
    """The model at a path. Raises UserError under `field`."""
    try:
        return recognise_files(str(path), config)
    except UserError as error:
        raise UserError([replace(f, field=field) if f.field == FIELD else f for f in error.findings]) from None


def empty_family(base: Base) -> Family:
    """A model's family with its denoiser and its text encoders, at their sizes and without their numbers."""
    family = families.make(base)
    parts = family.empty()  # type: ignore[attr-defined]
    family.denoiser = parts.pop(FAMILIES[base.family].denoiser)
    parts.pop("vae")
    family.text_encoders |= parts
    return family


def _shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    headers: list[Header] = [header_of(file) for file in files]
    return {name: info.shape for header in headers for name, info in header.tensors.items()}
