"""A kohya_ss form as it is read: its keys leniently typed, and which sd-scripts argument each of them made."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from limner.config.base import clean
from limner.config.files import shown
from limner.config.kohya.loose import as_flag, as_number, is_empty
from limner.config.kohya.report import Line, Report

Tab = Literal["lora", "dreambooth", "finetune", "embedding", "any"]
"""Which of the GUI's pages wrote it; "any": its config.toml, which has the defaults of all."""

HIDDEN = "(not shown)"
_EITHER = {"max_train_steps": "max_train_epochs", "max_train_epochs": "max_train_steps"}
_TOKEN = re.compile(r"""(--(?:huggingface[_-]t|wandb[_-]a)[\w-]{0,40}+)[=\s"'].*?(?=\s--|$)""", re.DOTALL)


@dataclass
class Form:
    """What a file of the GUI says, and what has become of it so far.

    Each getter accounts for a key that cannot be used, and gives None for it as for one that is not there.
    """

    raw: dict[str, Any]
    tab: Tab
    family: str = ""
    """sdxl, sd3, flux, hunyuan, anima or lumina; "" where none is ticked."""
    report: Report = field(default_factory=Report)
    arguments: dict[str, Any] = field(default_factory=dict)
    """sd-scripts' arguments."""
    network: dict[str, str] = field(default_factory=dict)
    """Those inside --network_args."""
    made_by: dict[str, list[str]] = field(default_factory=dict)
    """{argument: the keys that made it}; of --network_args each by its own name, as "network_args.NAME"."""
    notes: dict[str, str] = field(default_factory=dict)
    """{key: how its value was changed before an argument was made of it}."""
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Limner's options that no sd-scripts argument stands for."""

    # --- what it says

    def has(self, key: str) -> bool:
        """Whether the key is there and says something."""
        return not is_empty(self.raw.get(key))

    def number(self, key: str, whole: bool = False) -> float | int | None:
        """A number, also where it is written as text."""
        value = self._given(key)
        if value is None:
            return None
        found = as_number(value)
        if found is None or (whole and found != int(found)):
            self.refuse(key, f"{shown(value)} is not a {'whole ' if whole else ''}number; it was left out.")
            return None
        return int(found) if whole else found

    def flag(self, key: str) -> bool | None:
        """A tick, also where it is written as text."""
        value = self._given(key)
        if value is None:
            return None
        if (found := as_flag(value)) is None:
            self.refuse(key, f"{shown(value)} is neither true nor false; it was left out.")
        return found

    def text(self, key: str) -> str | None:
        """A text, also where it is written as a number. Kept as it is: nothing in it is ever carried out."""
        value = self._given(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.refuse(key, f"{HIDDEN if is_secret(key) else shown(value)} is not a text; it was left out.")
            return None
        try:
            return clean(value if isinstance(value, str) else shown(value))
        except ValueError as error:
            self.refuse(key, f"The text {error}; it was left out.")
            return None

    def _given(self, key: str) -> Any:
        value = self.raw.get(key)
        if not is_empty(value):
            return value
        if key in self.raw and key not in self.report.lines:
            self.idle(key, "It is empty.")
        return None

    # --- what becomes of it

    def send(self, argument: str, value: Any, *keys: str) -> None:
        """Make an argument of sd-scripts."""
        self.arguments[argument] = value
        self._made(argument, keys)

    def send_network(self, name: str, value: Any, *keys: str) -> None:
        """Make one of --network_args."""
        self.network[name] = str(value)
        self._made(f"network_args.{name}", keys)

    def overrule(self, argument: str, value: Any, key: str) -> None:
        """Make an argument whatever the form said of it; a part of --network_args as "network_args.NAME"."""
        for gone in (argument, _EITHER.get(argument, "")):
            earlier = self.made_by.pop(gone, [])
            self.arguments.pop(gone, None)
            for other in earlier:
                if other != key and not self.is_settled(other):
                    self.idle(other, f"{key} says otherwise.")
        if (part := argument.removeprefix("network_args.")) != argument:
            self.send_network(part, value, key)
        else:
            self.send(argument, value, key)

    def _made(self, name: str, keys: Iterable[str]) -> None:
        known = self.made_by.setdefault(name, [])
        known += [key for key in keys if key in self.raw and key not in known]

    def set(self, option: str, value: Any) -> None:
        """Set one of Limner's options."""
        section, _, name = option.partition(".")
        self.values.setdefault(section, {})[name] = value

    def say(self, line: Line) -> None:
        if line.key in self.raw:
            self.report.lines[line.key] = line

    def idle(self, key: str, why: str) -> None:
        self.say(Line(key, self.shown(key), "idle", (), why))

    def refuse(self, key: str, why: str) -> None:
        self.say(Line(key, self.shown(key), "unsupported", (), why))

    def convert(self, key: str, *options: str, why: str) -> None:
        self.say(Line(key, self.shown(key), "converted", options, why))

    def take(self, key: str, *options: str, why: str = "") -> None:
        self.say(Line(key, self.shown(key), "taken", options, why))

    def is_settled(self, key: str) -> bool:
        """Whether the key is accounted for: it has its line, or an argument was made of it."""
        return key in self.report.lines or any(key in keys for keys in self.made_by.values())

    def shown(self, key: str) -> Any:
        """The key's value as the report may show it: a token is hidden."""
        value = self.raw[key]
        return hide(value) if not is_secret(key) or is_empty(value) else HIDDEN


def is_secret(name: str) -> bool:
    """Whether a key or an argument holds a token."""
    last = name.rpartition(".")[2].lower()
    return last in ("huggingface_token", "hf_token", "token", "password") or last.endswith("api_key")


def hide(value: Any) -> Any:
    """A text of flags without the tokens in it."""
    return _TOKEN.sub(rf"\1 {HIDDEN}", value) if isinstance(value, str) else value
