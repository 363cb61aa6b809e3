"""LoRA files as tools take them: read for an outlined family, with their strengths, every fault under the tool's option."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limner.adapters import reading
from limner.adapters.reading import Found
from limner.errors import Finding, UserError, wrong
from limner.formats.header import Header, read_header


@dataclass(frozen=True)
class Given:
    """A LoRA file."""

    path: Path
    strength: float
    header: Header
    layers: Sequence[Found]
    field: str
    """The option that names it."""
    remarks: Sequence[Finding] = ()

    @property
    def title(self) -> str:
        return self.path.name if self.strength == 1 else f"{self.path.name} @ {self.strength:g}"

    def line(self) -> str:
        """What it changes, in words."""
        kinds = Counter((f.kind.__name__.removesuffix("Layer"), f.target.part) for f in self.layers)
        return f"{self.title}: " + ", ".join(f"{count} layers of the {part} ({kind})" for (kind, part), count in kinds.items())


def read(files: Sequence[tuple[Path, float]], family: Any, field: str) -> list[Given]:
    """Raises UserError, under `field`, with what is wrong with the first file that does not fit."""
    out = []
    for path, strength in files:
        state = reading.read_stored(path, family, field)
        header = read_header(path, field)
        remarks = list[Finding]()
        if not family.text_encoders and any(name.startswith(reading.TEXT) for name in header.tensors):
            if not state:
                said = f"{path.name} changes nothing but text encoders, and the model's file holds none."
                raise wrong(field, said, "Merge it into a file or folder that holds them.")
            said = f"{path.name} changes text encoders too, which the model's file does not hold: that is left out."
            remarks.append(Finding(field, said, "Merge it into a file or folder that holds them too.", "warning"))
        try:
            layers = reading.fitting(family, state, field)
        except UserError as error:
            raise UserError([replace(f, message=f"{path.name}: {f.message}") for f in error.findings]) from None
        out.append(Given(path, strength, header, layers, field, remarks))
    return out
