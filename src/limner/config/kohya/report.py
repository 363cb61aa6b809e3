"""What became of each key of an imported file: every one is accounted for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["taken", "converted", "idle", "unsupported", "unknown"]
"""taken: the same value, under our name. converted: another value or several options, and why. idle: it does nothing (in
kohya either, or not with the other settings). unsupported: it does something there that Limner does not do, and what to do
instead. unknown: neither kohya_ss nor sd-scripts have it."""


@dataclass(frozen=True)
class Line:
    """One key."""

    key: str
    value: Any
    outcome: Outcome
    becomes: tuple[str, ...] = ()
    """The options that it set, by dotted name."""
    why: str = ""


@dataclass
class Report:
    """The lines in the order of the file; one key comes once."""

    lines: dict[str, Line] = field(default_factory=dict)

    def say(self, key: str, value: Any, outcome: Outcome, *becomes: str, why: str = "") -> None:
        """Account for a key. A later word on the same key replaces the earlier one."""
        self.lines[key] = Line(key, value, outcome, becomes, why)


@dataclass(frozen=True)
class Imported:
    """A configuration as nested tables of Limner's options, as `config.files.build` takes it, and how it came to be."""

    values: dict[str, dict[str, Any]]
    report: Report
    subsets: str = ""
    """The text of a dataset file (sd-scripts' `dataset_config`) to be written beside the configuration; "" for none."""
