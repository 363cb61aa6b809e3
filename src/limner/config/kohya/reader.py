"""Arguments of sd-scripts as they are read: typed, each accounted for, and what they become checked against the schema."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from limner.config import files
from limner.config.fields import Option, section_types, walk
from limner.config.kohya.loose import as_flag, as_number, is_empty
from limner.config.kohya.report import Outcome, Report
from limner.config.kohya.scripts import Script, accepts, arguments
from limner.errors import UserError, printable

ACCELERATE = (
    "num_processes", "num_cpu_threads_per_process", "num_machines", "machine_rank", "main_process_ip", "main_process_port",
    "gpu_ids",
)  # fmt: skip
"""Flags of `accelerate launch` that are options of Limner."""
_MOST = 10**18
_MOST_PARTS = 200


class Reader:
    """What is known of a run while its arguments become options."""

    def __init__(self, given: Mapping[str, Any], report: Report, script: Script | None, complete: bool) -> None:
        self.given = dict(given)
        self.report, self.script, self.complete = report, script, complete
        self.family = ""
        """"" where it cannot be told."""
        self.kind = "lora"
        """adapter.kind."""
        self.values: dict[str, dict[str, Any]] = {}
        self.done = set[str]()

    # --- what is given

    def has(self, name: str) -> bool:
        """Whether it is given and is something, and the script knows it."""
        return name in self.given and not is_empty(self.given[name]) and self.knows(name)

    def knows(self, name: str) -> bool:
        """Whether the script has such an argument; parts of lists of "name=value" and accelerate's flags are always known."""
        if "." in name or name in ACCELERATE:
            return True
        return accepts(self.script, name) if self.script else name in arguments()

    def raw(self, name: str) -> Any:
        """The value; the trainer's default where a complete configuration does not give one; else None."""
        if self.has(name):
            return self.given[name]
        known = arguments().get(name)
        if not self.complete or known is None or not self.knows(name):
            return None
        return False if known.kind == "flag" else known.default

    def number(self, name: str) -> float | None:
        """A finite number, None if there is none. What is no number is said."""
        value = self.raw(name)
        if value is None:
            return None
        found = as_number(value)
        if found is None:
            self.refuse(name, "is no number.")
            return None
        return float(found)

    def integer(self, name: str) -> int | None:
        """A whole number, None if there is none. What is none is said."""
        if self.number(name) is None or (found := as_number(self.raw(name))) is None:
            return None
        if found != int(found) or abs(found) > _MOST:
            self.refuse(name, "is no whole number.")
            return None
        return int(found)

    def flag(self, name: str) -> bool | None:
        """True or false, None if it is not said."""
        value = self.raw(name)
        if value is None:
            return None
        if (found := as_flag(value)) is None:
            self.refuse(name, "is neither true nor false.")
        return found

    def text(self, name: str) -> str | None:
        """A text, a number as it is written, None if there is none."""
        value = self.raw(name)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return files.shown(value)
        self.refuse(name, "is no text.")
        return None

    def texts(self, name: str) -> list[str]:
        """The words of an argument that takes several: a list, or one text with spaces between them."""
        value = self.raw(name)
        items = value.split() if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        if value is None:
            return []
        if not all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in items):
            self.refuse(name, "is no list of texts.")
            return []
        return [v if isinstance(v, str) else files.shown(v) for v in items]

    def numbers(self, name: str) -> list[float] | None:
        """Numbers, as a list or as one text with commas or spaces; None if there are none."""
        found = [word for text in self.texts(name) for word in text.replace(",", " ").split()]
        try:
            numbers = [float(word) for word in found]
        except ValueError:
            numbers = [math.nan]
        if not all(math.isfinite(n) for n in numbers):
            self.refuse(name, "are no numbers.")
            return None
        return numbers or None

    def spread(self, name: str) -> list[str]:
        """Give each "key=value" of a list a place of its own, as `name.key`. Returns the keys."""
        keys, lost, texts = dict[str, None](), 0, self.texts(name)
        if len(texts) > _MOST_PARTS:
            self.refuse(name, f"has more than {_MOST_PARTS} parts.")
            return []
        for text in texts:
            key, equals, value = (part.strip() for part in text.partition("="))
            place = f"{name}.{key}"
            if not equals or not key:
                self.report.say(f"{name}.{text}", text, "unknown", why='It is not of the form "name=value".')
                lost += 1
                continue
            if key in keys:
                lost += 1
                self.report.say(f"{place} ({lost})", self.given[place], "idle", why="It is given again behind it.")
            keys[key] = None
            self.given[place] = value
        if self.has(name) and name not in self.done:
            self.report.say(name, self.given[name], "converted", why="Each of its parts has a line of its own.")
            self.done.add(name)
        return list(keys)

    # --- what becomes of it

    def refuse(self, name: str, why: str) -> None:
        """The value cannot be used."""
        if name in self.given:
            value = printable(self.given[name], 60)
            self.account(name, "unsupported", why=f"{value!r} {why}")

    def idle(self, name: str, why: str) -> None:
        """It does nothing. What was said of it before stands."""
        if name in self.given and name not in self.done:
            self.account(name, "idle", why=why)

    def unsupported(self, name: str, why: str) -> None:
        """It does something that Limner does not do."""
        if name in self.given:
            self.account(name, "unsupported", why=why)

    def take(self, name: str, pairs: Mapping[str, Any], why: str = "") -> bool:
        """`pairs` are the options that the argument becomes. Values that the schema does not allow are said, and not set."""
        faults = [fault for path, value in pairs.items() if (fault := self.fault(path, value))]
        if faults:
            self.refuse(name, faults[0])
            return False
        for path, value in pairs.items():
            self.put(path, value)
        if name not in self.given:
            if any(options_of(self.kind)[path].default != value for path, value in pairs.items()):
                said = f"Not given; this is sd-scripts' default. {why}".strip()
                self.report.say(name, self.raw(name), "taken", *pairs, why=said)
            return True
        same = len(pairs) == 1 and not why and _as_same(self.given[name], next(iter(pairs.values())))
        self.account(name, "taken" if same else "converted", *pairs, why=why)
        return True

    def put(self, path: str, value: Any) -> None:
        section, _, option = path.partition(".")
        self.values.setdefault(section, {})[option] = value

    def value(self, path: str) -> Any:
        """What an option was set to, None if it was not."""
        section, _, option = path.partition(".")
        return self.values.get(section, {}).get(option)

    def option(self, path: str) -> Option | None:
        """The option of this name that an adapter of this kind has."""
        return options_of(self.kind).get(path)

    def fault(self, path: str, value: Any) -> str:
        """Why a value cannot be an option's, "" if it can."""
        section, _, name = path.partition(".")
        if self.option(path) is None:
            return f'has no place with adapter.kind = "{self.kind}".'
        table = {"kind": self.kind, name: value} if section == "adapter" else {name: value}
        try:
            _classes()[section, self.kind if section == "adapter" else None].model_validate(table)
        except ValidationError:
            return _fault(path, section, table)
        return ""

    def account(self, name: str, outcome: Outcome, *becomes: str, why: str = "") -> None:
        """Say what became of an argument that is given."""
        self.done.add(name)
        self.report.say(name, self.given[name], outcome, *becomes, why=why)


@cache
def options_of(kind: str) -> dict[str, Option]:
    """The options that there are with adapters of a kind, by dotted name."""
    return {option.path: option for option in walk() if not option.tags or kind in option.tags}


@cache
def _classes() -> dict[tuple[str, str | None], type[BaseModel]]:
    return {(name, tag): section for name, tag, section in section_types()}


def _fault(path: str, section: str, table: dict[str, Any]) -> str:
    """In the words that the schema has for it."""
    try:
        files.build({section: table}, {})
    except UserError as error:
        return f"cannot be {path}: {error.findings[0].message} {error.findings[0].remedy}"
    return f"cannot be {path}."


def _as_same(given: Any, value: Any) -> bool:
    """Whether a value was given as it is, be it as a text."""
    if isinstance(value, bool) or isinstance(given, bool):
        return given == value or str(given).lower() == str(value).lower()
    if isinstance(value, int | float):
        try:
            return float(given) == float(value)
        except (TypeError, ValueError, OverflowError):
            return False
    return given == value
