"""adapter.rules: exceptions for some layers, by patterns of their names."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from limner.errors import Finding, UserError, printable

FIELD = "adapter.rules"
_MOST_STARS = 20
_KNOWN = ("rank", "alpha", "lr_factor")


@dataclass(frozen=True)
class Effect:
    """What holds for one layer. None: nothing but what the options say."""

    off: bool = False
    rank: int | None = None
    alpha: float | None = None
    lr_factor: float = 1.0


@dataclass(frozen=True)
class Rule:
    """One text of adapter.rules."""

    text: str
    pattern: re.Pattern[str]
    off: bool
    values: dict[str, Any]

    def fits(self, name: str) -> bool:
        """`name` is `<part>.<diffusers' name of the layer>`, such as denoiser.mid_block.attentions.0.proj_in."""
        return self.pattern.fullmatch(name) is not None


def parse(texts: Sequence[str], *, ranks: bool) -> list[Rule]:
    """The rules of a section; `ranks`: whether its layers have one. Raises UserError with all faults."""
    rules, faults = list[Rule](), list[Finding]()
    for text in texts:
        try:
            rules.append(_rule(text, ranks))
        except ValueError as error:
            faults.append(Finding(FIELD, f"{printable(text, 80)!r} {error}.", 'For example: "denoiser.mid_block.*: off".'))
    if faults:
        raise UserError(faults)
    return rules


def _rule(text: str, ranks: bool) -> Rule:
    pattern, colon, said = text.rpartition(":")
    pattern, words = pattern.strip(), said.split()
    if not colon or not pattern:
        raise ValueError("is no pattern, a colon, and what holds there")
    if not words:
        raise ValueError("says nothing behind the colon")
    if pattern.count("*") > _MOST_STARS:  # each is a group of its own, and the layers are many
        raise ValueError(f"has more than {_MOST_STARS} stars")
    compiled = re.compile(fnmatch.translate(pattern))
    if words == ["off"]:
        return Rule(text, compiled, True, {})
    known = _KNOWN if ranks else ("lr_factor",)
    values = dict[str, Any]()
    for word in words:
        name, equals, value = word.partition("=")
        if name == "off":
            raise ValueError('says "off" and something else')
        if not equals or name not in known:
            suited = "" if ranks or name not in _KNOWN else ", and these layers have no rank"
            raise ValueError(f"holds {word!r}; known are off and {', '.join(f'{k}=' for k in known)}{suited}")
        if name in values:
            raise ValueError(f"says {name} twice")
        values[name] = _rank(value) if name == "rank" else _positive(name, value)
    return Rule(text, compiled, False, values)


def _rank(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 1024:
        raise ValueError(f"wants rank={value}, which is no whole number from 1 to 1024")
    return int(value)


def _positive(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    most = 4096 if name == "alpha" else 1000
    if not 0 < number <= most:
        raise ValueError(f"wants {name}={value}, which is no number above 0 and up to {most}")
    return number


def effect(rules: Sequence[Rule], name: str) -> Effect:
    """What holds for the layer of this name: of several rules that fit, each thing as the last of them says it. A later rule
    that gives a rank, alpha or lr_factor takes an "off" back."""
    out = Effect()
    for rule in rules:
        if rule.fits(name):
            out = replace(out, off=rule.off, **rule.values)
    return out


def highest_rank(texts: Sequence[str], rank: int) -> int:
    """Of the section's rank and those of its rules. Rules that mean nothing are passed over: `parse` says so elsewhere."""
    try:
        return max([rank, *(rule.values.get("rank", 0) for rule in parse(texts, ranks=True))])
    except UserError:
        return rank


def require_use(rules: Sequence[Rule], names: Sequence[str]) -> None:
    """Raise UserError if a rule fits none of these names, or nothing is left to be trained."""
    faults = [
        Finding(FIELD, f"{printable(rule.text, 80)!r} fits no layer.", _nearest(names))
        for rule in rules
        if not any(map(rule.fits, names))
    ]
    if not faults and all(effect(rules, name).off for name in names):
        faults = [Finding(FIELD, "they switch every layer off.", "Leave some on.")]
    if faults:
        raise UserError(faults)


def _nearest(names: Sequence[str]) -> str:
    return f"A layer's name is for example {names[len(names) // 2]}." if names else ""
