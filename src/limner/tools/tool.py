"""What a tool is: a module of two functions over one section of `config.tools`.

    def look(section) -> Report       what `run` would write and change, found without writing anything and in seconds
    def run(section, progress) -> Report

Both raise UserError, under the option's dotted name, for what the user has to mend; `run` finds all of that before it begins
to write. It writes through `limner.disk`, so that a file is there whole or not at all, and calls `progress` at least once a
second, which raises StopRequested when somebody wants it to end. Modules import torch only inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from limner.errors import Finding, UserError, wrong


@dataclass(frozen=True)
class Report:
    """What a tool did, or would do."""

    files: Sequence[Path] = ()
    """Written, or to be written."""
    lines: Sequence[str] = ()
    """What else there is to say, as plain text for a terminal of 100 columns; the page shows it in one width."""
    remarks: Sequence[Finding] = ()
    """Warnings and notes."""


class Progress(Protocol):
    """Told how far the work is. Raises StopRequested where it should end now."""

    def __call__(self, done: int, total: int, words: str = "") -> None: ...


def refuse_existing(files: Sequence[Path], overwrite: bool, field: str, what: str = "Choose another name") -> None:
    """Raises UserError if something lies under a name to be written. `field` is the option that says where."""
    found = [] if overwrite else [file for file in files if file.exists()]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UserError([Finding(field, f"{found[0]}{more} exists already.", f"{what}, or set overwrite.")])


def refuse_output(output: Path, sources: Sequence[Path], overwrite: bool, field: str, beside: Sequence[Path] = ()) -> None:
    """Raises UserError unless a .safetensors file can be written there: `sources`, what is read, are never written over or
    into. `beside` are more files to be written.
    """
    if output.suffix.lower() != ".safetensors":
        raise wrong(field, f"{output.name} does not end in .safetensors.", "Give it that ending.")
    target = output.resolve()
    if any(source in (target, *target.parents) for source in (path.resolve() for path in sources)):
        raise wrong(field, f"{output} is, or is inside, what is read.", "Choose another place.")
    if output.is_dir():
        raise wrong(field, f"{output} is a folder.", "Choose another name.")
    refuse_existing([output, *beside], overwrite, field)
