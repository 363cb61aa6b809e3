"""The arguments that are options as they stand: the same value by another name. Made from the schema's `kohya` metadata."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from limner.config import fields
from limner.config.fields import Option, walk
from limner.config.kohya import (
    base_model,
    computing,
    flow,
    keeping,
    network,
    objective,
    optimizing,
    pictures,
    saving,
    scheduling,
    whole,
)  # fmt: skip
from limner.config.kohya.reader import ACCELERATE, Reader
from limner.config.kohya.scripts import arguments
from limner.config.kohya.writer import Writer

_TOPICS = (base_model, computing, flow, keeping, network, objective, optimizing, pictures, saving, scheduling, whole)
CONVERTED = frozenset[str]().union(*(m.OPTIONS for m in _TOPICS))
"""The options that have modules of their own."""
_EXTRA = {"embedding.token": "token_string", "embedding.vectors": "num_vectors_per_token", "embedding.initial": "init_word"}


@cache
def table() -> dict[str, tuple[Option, ...]]:
    """Argument -> its option, once for each kind that has it."""
    out: dict[str, tuple[Option, ...]] = {}
    for option in walk():
        name = _EXTRA.get(option.path) or ("" if option.path in CONVERTED else option.kohya)
        if name in arguments() or name in ACCELERATE:
            out[name] = (*out.get(name, ()), option)
    return out


def read(r: Reader) -> None:
    """Set all that is the same by another name."""
    for name, options in table().items():
        option = next((o for o in options if not o.tags or r.kind in o.tags), None)
        if option is None:
            r.idle(name, f'It is not for adapter.kind = "{r.kind}".')
            continue
        value = _typed(r, name, option)
        if value is None or (value == "" and not option.is_list):
            if name not in r.done:
                r.idle(name, "It is not given.")
        elif value == 0 and not isinstance(value, bool) and option.optional:
            r.idle(name, "0 stands for not given.")
        else:
            r.take(name, {option.path: not value if option.inverted else value})


def _typed(r: Reader, name: str, option: Option) -> Any:
    if bool in option.types:
        return r.flag(name)
    if int in option.types and float not in option.types:
        return r.integer(name)
    if float in option.types:
        return r.number(name)
    return r.text(name)


def write(w: Writer) -> None:
    """All that is the same by another name."""
    for name, options in table().items():
        for option in options:
            if option.path in _EXTRA or name in ACCELERATE or not option.is_of(getattr(w.config, option.section)):
                continue
            if not fields.applies(option, w.config):
                continue
            value = getattr(getattr(w.config, option.section), option.name)
            if value == option.default and not w.knows(name):
                continue
            value = str(value) if isinstance(value, Path) else not value if option.inverted else value
            w.put(name, value, option.path)
