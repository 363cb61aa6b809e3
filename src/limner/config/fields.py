"""Walk the schema: one :class:`Option` for each option, with all that a rendering of it needs."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from limner.config import Config
from limner.config.base import files_with_strengths


@dataclass(frozen=True)
class Option:
    """One option. It is identified by (path, tags): the tags say under which kinds of its section it exists, () under all.

    What several kinds declare in the same words is one option, which keeps its value when the kind is changed.
    """

    path: str
    tags: tuple[str, ...]
    help: str
    default: Any
    types: tuple[type, ...]
    choices: tuple[str, ...]
    """The words that may stand for the value; of a list, for each of its items."""
    minimum: float | None
    maximum: float | None
    exclusive: tuple[bool, bool]
    optional: bool
    unit: str
    kohya: str
    inverted: bool
    advanced: bool
    when: str
    holds_files: bool = False
    """Whether its texts are files, each alone or with its strength; or its text a path or a name on the hub."""
    is_required: bool = False
    """Whether it has no default: there is none of the schema's `Config`, some of the tools'."""

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def is_list(self) -> bool:
        return tuple in self.types

    def is_of(self, section: BaseModel) -> bool:
        """Whether it exists in a section as this one is."""
        return not self.tags or getattr(section, "kind", None) in self.tags

    def range_words(self) -> str:
        """The allowed range in words, "" where there is none."""
        low = "" if self.minimum is None else f"{'more than' if self.exclusive[0] else 'at least'} {_number(self.minimum)}"
        high = "" if self.maximum is None else f"{'less than' if self.exclusive[1] else 'at most'} {_number(self.maximum)}"
        return ", ".join(w for w in (low, high) if w)

    def type_words(self) -> str:
        """What may be written, in words."""
        if self.is_list and self.choices:
            return "list of " + " or ".join(f'"{c}"' for c in self.choices)
        names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path", tuple: "list of texts"}
        kinds = [names[t] for t in self.types if not (t is int and float in self.types)]
        return " or ".join([*kinds, *(f'"{c}"' for c in self.choices)])


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def section_types(model: type[BaseModel] = Config) -> Iterator[tuple[str, str | None, type[BaseModel]]]:
    """(section name, tag or None, class) for every section, be it optional, each variant of a tagged one on its own."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        variants = (annotation,) if isinstance(annotation, type) else get_args(annotation)
        sections = [v for v in variants if isinstance(v, type) and issubclass(v, BaseModel)]
        for section in sections:
            yield name, _tag(section) if len(sections) > 1 else None, section


@cache
def walk(model: type[BaseModel] = Config) -> tuple[Option, ...]:
    """Every option, in the order of declaration; a tagged section's `kind` comes once, with all its values."""
    sections = list(section_types(model))
    found = dict[Option, list[str]]()
    for name, tag, variant in sections:
        kinds = [t for n, t, _ in sections if n == name and t is not None]
        if kinds and tag == kinds[0]:
            found[_kind_option(name, kinds, model.model_fields[name], sections)] = []
        for field_name, info in variant.model_fields.items():
            if tag is None or field_name != "kind":
                found.setdefault(_option(f"{name}.{field_name}", info), []).extend([tag] if tag else [])
    return tuple(replace(option, tags=tuple(tags)) for option, tags in found.items())


def values(config: BaseModel) -> Iterator[tuple[Option, Any]]:
    """Every option that a configuration has, with its value: those of other kinds are left out."""
    for option in walk(type(config)):
        section = getattr(config, option.section)
        if section is not None and option.is_of(section):
            yield option, getattr(section, option.name)


def paths(config: BaseModel) -> Iterator[tuple[str, Path]]:
    """(option, path) of every path that a configuration names. Raises UserError where a text should be one and is not."""
    for option, value in values(config):
        if isinstance(value, Path):
            yield option.path, value
        elif option.holds_files and isinstance(value, tuple):
            yield from ((option.path, path) for path, _ in files_with_strengths(value, option.path))
        elif option.holds_files and isinstance(value, str) and (path := _as_path(value)) is not None:
            yield option.path, path


def _as_path(text: str) -> Path | None:
    """The path that a text is which may be a name on the hub too; that is relative, and does not go up."""
    path = Path(text).expanduser() if text.startswith("~") else Path(text)
    return path if path.is_absolute() or ".." in path.parts else None


def applies(option: Option, config: BaseModel) -> bool:
    """Whether an option can have an effect: its section is of its kind, and what it depends on is set."""
    return option.is_of(getattr(config, option.section)) and holds(option.when, config)


def holds(when: str, config: BaseModel) -> bool:
    """Whether a condition holds: "a.b", "not a.b", "a.b = word", "not a.b = word", joined by "and", these by "or"; no brackets.

    An option is set unless it is not given, false, 0, "off" or empty. `holds` in static/store.js says the same in the browser.
    """
    return not when or any(all(_is_met(atom, config) for atom in way.split(" and ")) for way in when.split(" or "))


def _is_met(atom: str, config: BaseModel) -> bool:
    path, _, word = atom.removeprefix("not ").partition(" = ")
    section, _, name = path.partition(".")
    value = getattr(getattr(config, section), name, None)
    met = value == word if word else value not in (None, False, 0, "off", "", ())
    return met != atom.startswith("not ")


def condition_words(when: str) -> str:
    """A condition in words: "data.buckets is set and data.upscale is set"."""
    return re.sub(r"(not )?([\w.]+\.[\w.]+)(?: = (\w+))?", _atom_words, when)


def _atom_words(atom: re.Match[str]) -> str:
    verb = "is not" if atom[1] else "is"
    return f'{atom[2]} {verb} "{atom[3]}"' if atom[3] else f"{atom[2]} {verb} set"


def _tag(variant: type[BaseModel]) -> str:
    return get_args(variant.model_fields["kind"].annotation)[0]


def _kind_option(
    name: str, tags: list[str], field: FieldInfo, sections: list[tuple[str, str | None, type[BaseModel]]]
) -> Option:
    doc = " ".join(f'"{t}": {" ".join((v.__doc__ or "").split())}' for n, t, v in sections if n == name)
    default = field.default.kind if field.default is not PydanticUndefined else tags[0]
    return Option(
        f"{name}.kind", (), doc, default, (), tuple(tags), None, None, (False, False), False, "", "", False, False, ""
    )


def _option(path: str, info: FieldInfo) -> Option:
    kinds, choices, optional, inner = _flatten(info.annotation)
    limits = {
        k: getattr(m, k) for m in (*info.metadata, *inner) for k in ("ge", "gt", "le", "lt") if getattr(m, k, None) is not None
    }
    extra: dict[str, Any] = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    return Option(
        path=path,
        tags=(),
        help=" ".join((info.description or "").split()),
        default=None if info.is_required() else info.default,
        types=kinds,
        choices=choices,
        minimum=limits.get("ge", limits.get("gt")),
        maximum=limits.get("le", limits.get("lt")),
        exclusive=("gt" in limits, "lt" in limits),
        optional=optional,
        unit=str(extra.get("unit", "")),
        kohya=str(extra.get("kohya", "")),
        inverted=bool(extra.get("inverted", False)),
        advanced=bool(extra.get("advanced", False)),
        when=str(extra.get("when", "")),
        holds_files=bool(extra.get("files", False)),
        is_required=info.is_required(),
    )


def _flatten(annotation: Any) -> tuple[tuple[type, ...], tuple[str, ...], bool, tuple[Any, ...]]:
    """(plain types, literal choices, may be None, limits) of an annotation such as `Above0 | Literal["off"] | None`."""
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        inner, *metadata = get_args(annotation)
        kinds, choices, optional, limits = _flatten(inner)
        return kinds, choices, optional, (*limits, *(m for f in metadata if isinstance(f, FieldInfo) for m in f.metadata))
    if origin in (typing.Union, types.UnionType):
        parts = [_flatten(a) for a in get_args(annotation)]
        return (
            tuple(t for p in parts for t in p[0]),
            tuple(c for p in parts for c in p[1]),
            any(p[2] for p in parts),
            tuple(m for p in parts for m in p[3]),
        )
    if origin is Literal:
        return (), tuple(get_args(annotation)), False, ()
    if annotation is type(None):
        return (), (), True, ()
    if origin is tuple:
        return (tuple,), _flatten(get_args(annotation)[0])[1], False, ()
    return (annotation,), (), False, ()
