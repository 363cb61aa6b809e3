"""What became of each key of an imported file: every one is accounted for."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from limner.errors import printable

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
    """The text of a dataset file (sd-scripts' `dataset_config`) to be written beside the configuration; "" where none is
    needed."""


_WIDTH = 100
_TITLES: dict[Outcome, str] = {
    "taken": "taken over",
    "converted": "converted",
    "idle": "without effect",
    "unsupported": "not supported",
    "unknown": "not known",
}


def render_report(report: Report) -> list[str]:
    """The report as lines of at most 100 characters, by outcome, every key of it: those that want a look first come last."""
    out = list[str]()
    for outcome in get_args(Outcome):
        lines = [line for line in report.lines.values() if line.outcome == outcome]
        if lines:
            out += ["", f"{_TITLES[outcome]}: {len(lines)}"]
        for line in lines:
            out += _wrapped(line)
    return out[1:]


def _wrapped(line: Line) -> list[str]:
    value = "" if line.value is None else f" = {_shown(line.value)}"
    becomes = f" -> {', '.join(line.becomes)}" if line.becomes else ""
    why = f": {printable(line.why, 400)}" if line.why else ""
    text = f"{printable(line.key, 80)}{value}{becomes}{why}"
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)


def _shown(value: Any) -> str:
    try:
        return printable(value if isinstance(value, str) else repr(value), 60)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists without end
        return "something too large to be shown"
