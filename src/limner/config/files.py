"""Read and write configurations: strict TOML in, commented TOML out, overrides by dotted name."""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import tomlkit
from pydantic import BaseModel, ValidationError

from limner import parsing
from limner.config import Config
from limner.config.fields import Option, section_types, values, walk
from limner.errors import Finding, UserError, printable, wrong

AnySchema = TypeVar("AnySchema", bound=BaseModel)
MAX_BYTES = 1 << 20
_MAX_FINDINGS = 50
_MAX_NAME = 100  # nothing is near to a longer one
_WIDTH = 100


def read(path: Path, overrides: Mapping[str, str] | None = None) -> Config:
    """The configuration in a TOML file, with overrides laid over it. Raises UserError naming every fault at once.

    Relative paths in the file are taken from the file's own folder, those in overrides from the current one.
    """
    text = read_text(path)
    return build(_anchored(parse(text, str(path)), path.absolute().parent), overrides or {}, text=text, source=str(path))


def read_text(path: Path) -> str:
    """A configuration file's text. Raises UserError where it cannot be one."""
    source = str(path)
    try:
        if not path.is_file():
            raise wrong(source, "is not a file.", "Give the path of a configuration; `limner config new` writes one.")
        if path.stat().st_size > MAX_BYTES:
            raise wrong(source, f"is larger than {MAX_BYTES} bytes.", "A configuration is a small TOML file.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise wrong(source, "is not UTF-8 text.", "Save it as UTF-8.") from None
    except OSError as error:
        raise wrong(source, f"cannot be read ({error.strerror}).", "Check the path and its permissions.") from None


def parse(text: str, source: str) -> dict[str, Any]:
    """TOML text as nested dicts."""
    try:
        return parsing.toml(text)
    except ValueError as error:
        raise wrong(source, f"is not valid TOML: {error}.", "Mend that line.") from None


def _anchored(raw: dict[str, Any], folder: Path, schema: type[BaseModel] = Config) -> dict[str, Any]:
    """`raw` with relative paths made relative to `folder`. A base model is a path only if something lies there."""
    out = {k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()}
    for option in walk(schema):
        section = out.get(option.section)
        if isinstance(section, dict) and option.name in section:
            section[option.name] = _anchored_value(option, section[option.name], folder)
    return out


def _anchored_value(option: Option, value: Any, folder: Path) -> Any:
    is_path = Path in option.types
    if option.holds_files and isinstance(value, list | tuple):
        return [str(folder / text) if isinstance(text, str) and text.strip() and text[0] != "~" else text for text in value]
    if option.holds_files and isinstance(value, str) and value not in ("pocket", "pocket-flow"):
        # a local model if something of that name lies beside the file, or in the current folder; else a hub id
        beside = next((f for f in (folder, Path.cwd()) if _exists(f / value)), None)
        is_path, folder = beside is not None, beside or folder
    if is_path and isinstance(value, str) and value.strip() and not value.startswith("~"):
        return str(folder / value)
    return value


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def build(raw: dict[str, Any], overrides: Mapping[str, str], text: str = "", source: str = "") -> Config:
    """Lay overrides (dotted name -> typed text) over nested dicts and validate the whole."""
    return build_as(Config, raw, overrides, text, source)


def build_as(
    schema: type[AnySchema], raw: dict[str, Any], overrides: Mapping[str, str], text: str = "", source: str = ""
) -> AnySchema:
    """The same for any schema of sections."""
    merged = {k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()}
    options, tagged = _options_by_path(schema), {name for name, tag, _ in section_types(schema) if tag is not None}
    unknown = [path for path in overrides if path not in options]
    faults = [_unknown(path, "", "", schema) for path in unknown[:_MAX_FINDINGS]]
    if more := len(unknown) - len(faults):
        faults.append(Finding("configuration", f"{more} more options are not known.", "Mend those above first."))
    # a section's kind goes first, since it decides which other options there are
    for path in sorted((p for p in overrides if p in options), key=lambda p: not p.endswith(".kind")):
        typed = overrides[path]
        section, _, name = path.rpartition(".")
        table = merged.setdefault(section, {})
        if not isinstance(table, dict):
            continue  # reported by validation below
        if name == "kind" and section in tagged and table.get("kind", options[path][0].default) != typed:
            table.clear()  # the other kind's options do not carry over
        if len(typed) > MAX_BYTES:
            faults.append(Finding(path, f"is longer than {MAX_BYTES} characters.", "Make it shorter."))
            continue
        table[name] = _anchored_value(options[path][0], _typed(options[path], typed), Path.cwd())
    for name in tagged:
        if isinstance(merged.get(name), dict):
            merged[name].setdefault("kind", schema.model_fields[name].default.kind)
    try:
        config = schema.model_validate(merged)
    except ValidationError as error:
        raise UserError(faults + _findings(error, text, source, schema)) from None
    if faults:
        raise UserError(faults)
    return config


@cache
def _options_by_path(schema: type[BaseModel] = Config) -> dict[str, list[Option]]:
    out: dict[str, list[Option]] = {}
    for option in walk(schema):
        out.setdefault(option.path, []).append(option)
    return out


def _typed(options: list[Option], text: str) -> Any:
    """The value that a typed text stands for: as TOML where the option takes more than text, else the text itself."""
    option = options[0]
    if option.is_list and not text.lstrip().startswith("["):
        return [text]
    if text in option.choices:
        return text
    if set(option.types) <= {str, Path} and not option.choices:
        return text
    try:
        return parsing.toml(f"value = {text}")["value"]
    except ValueError:
        return [text] if option.is_list else text


def value_of(path: str, text: str) -> Any:
    """The value that a typed text stands for, "" for what is not given. What it must be, `build` looks at."""
    options = _options_by_path()
    return _typed(options[path], text) if path in options and text else text


def overrides_of(config: Config) -> dict[str, str]:
    """Every option that differs from its default, as the text that :func:`build` reads back to the same value."""
    return {option.path: as_typed(option, value) for option, value in values(config) if value != option.default}


def as_typed(option: Option, value: Any) -> str:
    """The text that :func:`build` reads as `value`, "" for what is not given. Lists are TOML arrays, and JSON as well."""
    if value is None:
        return ""
    if option.is_list:
        return json.dumps(list(value), ensure_ascii=False, separators=(",", ":"))
    text = str(value) if isinstance(value, str | Path) else _toml(value)
    # a text that would be read as a number or a truth is put into quotes
    plain = not isinstance(value, str) or _typed([option], text) == value
    return text if plain else json.dumps(text, ensure_ascii=False)


def _where(path: str, text: str, source: str) -> str:
    line = line_of(path, text) or line_of(path.rpartition(".")[0], text)
    return ", ".join(w for w in (source, f"line {line}") if w) if line else source


def line_of(path: str, text: str) -> int | None:
    """The line (from 1) on which a dotted name is set in TOML text, None if it cannot be told."""
    return _lines_by_name(text).get(path)


@lru_cache(maxsize=2)
def _lines_by_name(text: str) -> dict[str, int]:
    """The line of every section and dotted name. Good enough to point at: words inside long texts may be taken for names."""
    here, out = "", dict[str, int]()
    for number, line in enumerate(text.split("\n"), 1):
        header, closing, _ = line.strip().partition("]")
        if closing and header.startswith("[") and (name := header.lstrip("[").strip()):
            here = re.sub(r"[\"']", "", name)
            out.setdefault(here, number)
        elif key := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            name = re.sub(r"[\"']", "", key[1])
            out.setdefault(f"{here}.{name}" if here else name, number)
    return out


def _unknown(path: str, text: str, source: str, schema: type[BaseModel] = Config) -> Finding:
    known = list(_options_by_path(schema))
    section, _, name = path.rpartition(".")
    inside = [k for k in known if k.rpartition(".")[0] == section]
    by_name = {k.rpartition(".")[2]: k for k in reversed(inside or known)}
    kohya = [o for options in _options_by_path(schema).values() for o in options if o.kohya and o.kohya == name]
    match = [o.path for o in kohya]
    if not match and len(path) < _MAX_NAME:
        theirs = {o.kohya: o.path for k in inside or known for o in _options_by_path(schema)[k] if o.kohya and not o.inverted}
        near = difflib.get_close_matches(name, {**theirs, **by_name}, 1, 0.6)
        match = [(theirs | by_name)[n] for n in near] or difflib.get_close_matches(path, known, 1, 0.6)
    remedy = f"Did you mean {match[0]}?" if match else "`limner config options` lists every option."
    if kohya and kohya[0].inverted:
        remedy = f"It is {match[0]} here, and means the opposite."
    where = _where(path, text, source)
    return Finding(path, f"there is no such option{f' ({where})' if where else ''}.", remedy)


def shown(value: Any) -> str:
    """A value as it was written, cut short."""
    try:
        return printable(repr(value), 60)
    except ValueError:  # Python does not write out numbers of thousands of digits
        return "a number of thousands of digits"


_TYPE_REMEDIES = {"bool_type": "Write true or false, without quotes.", "int_type": "Write a whole number, without quotes."}
_TYPE_REMEDIES |= {"float_type": "Write a number, without quotes.", "string_type": 'Write text in quotes: "..."'}


def _findings(error: ValidationError, text: str, source: str, schema: type[BaseModel]) -> list[Finding]:
    """One finding for each field; pydantic reports one for each type that a field may have."""
    first: dict[str, Any] = {}
    for fault in error.errors(include_url=False):
        first.setdefault(_field_of(fault["loc"], schema), fault)
    shown = [_finding(path, fault, text, source, schema) for path, fault in list(first.items())[:_MAX_FINDINGS]]
    if more := len(first) - len(shown):
        shown.append(Finding(source or "configuration", f"{more} more options are wrong.", "Mend those above first."))
    return shown


def _field_of(place: tuple[Any, ...], schema: type[BaseModel]) -> str:
    parts = [str(p) for p in place]
    # pydantic puts the tag of a union and the type tried into the place; neither is part of the option's name
    if len(parts) > 1 and parts[1] in {t for name, t, _ in section_types(schema) if t and name == parts[0]}:
        del parts[1]
    return ".".join(parts[:2]) or '""'


def _finding(path: str, error: Any, text: str, source: str, schema: type[BaseModel]) -> Finding:
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _options_by_path(schema).get(path)
        if known and known[0].tags:
            where = _where(path, text, source)
            kinds = list(dict.fromkeys(tag for option in known for tag in option.tags))
            said = f"does not apply here; it belongs to kind {', '.join(map(repr, kinds))}{f' ({where})' if where else ''}."
            return Finding(path, said, f'Remove it, or set {known[0].section}.kind = "{kinds[0]}".')
        return _unknown(path, text, source, schema)
    where = _where(path, text, source)
    options = _options_by_path(schema).get(path)
    given = shown(value)
    if options:
        option = options[0]
        limit = option.range_words()
        expected = option.type_words() + (f", {limit}" if limit else "")
        if kind == "missing":
            return Finding(path, "is not given.", f"Expected: {expected}. {option.help}")
        detail = f": {error['msg'].removeprefix('Value error, ')}" if kind == "value_error" else ""
        message = f"{given} is not allowed{detail}{f' ({where})' if where else ''}."
        return Finding(
            path, message, f"Expected: {expected}. {_TYPE_REMEDIES.get(kind, '') if not option.choices else ''}".strip()
        )
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        where = _where(f"{path}.kind", text, source)
        names = ", ".join(t for n, t, _ in section_types(schema) if n == path and t)
        given = value.get("kind") if isinstance(value, dict) else value
        return Finding(
            f"{path}.kind",
            f"{shown(given)} is not known{f' ({where})' if where else ''}.",
            f"Choose one of: {names}.",
        )
    return Finding(path, f"{given} is not a table of options{f' ({where})' if where else ''}.", f"Write a section: [{path}].")


# --- writing ----------------------------------------------------------------------------------------------------------


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return tomlkit.item(list(value)).as_string()
    return tomlkit.item(str(value) if isinstance(value, Path) else value).as_string()


def _comment(words: str) -> list[str]:
    return textwrap.wrap(words, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def _lines(option: Option, value: Any, with_help: bool) -> list[str]:
    limit = option.range_words()
    facts = "; ".join(w for w in (option.unit, limit, " | ".join(option.choices)) if w)
    lines = _comment(f"{option.help}{f' [{facts}]' if facts else ''}") if with_help else []
    # a value that was not given stays a comment, so that the default may follow the model
    return [*lines, f"{option.name} = {_toml(value)}" if value is not None else f"# {option.name} ="]


def render(config: Config, with_help: bool = True, advanced: bool = True) -> str:
    """A configuration as TOML, complete, every option under its help. Reading it back gives an equal configuration."""
    out: list[str] = []
    for name, _, variant in section_types():
        section = getattr(config, name)
        if type(section) is not variant:
            continue
        out += ["", f"[{name}]", *(_comment(" ".join((variant.__doc__ or "").split())) if with_help else [])]
        for option in walk():
            if option.section != name or not option.is_of(section):
                continue
            value = getattr(section, option.name)
            if option.advanced and not advanced and value == option.default:
                continue
            out += ([""] if with_help else []) + _lines(option, value, with_help)
    return "\n".join(out).lstrip("\n") + "\n"


def render_changes(config: BaseModel) -> str:
    """Only what differs from the defaults, as TOML without help."""
    out: dict[str, list[str]] = {}
    for option, value in values(config):
        if value is not None and value != option.default:
            out.setdefault(option.section, []).append(f"{option.name} = {_toml(value)}")
    return "\n\n".join("\n".join([f"[{name}]", *lines]) for name, lines in out.items()) + "\n"


def render_reference() -> str:
    """The reference page of all options, in Markdown."""
    out = [
        "# Options",
        "",
        "Made from the schema by `limner config docs`. An option's name is its flag: `--optimizer.lr 1e-4`.",
        "",
    ]
    for name in dict.fromkeys(name for name, _, _ in section_types()):
        out += [f"## {name}", ""]
        out += [x for n, tag, v in section_types() if n == name and not tag for x in (" ".join((v.__doc__ or "").split()), "")]
        for option in walk():
            if option.section != name:
                continue
            default = "not given" if option.default is None else f"`{_toml(option.default)}`"
            kinds = f"for kind {', '.join(option.tags)}" if option.tags else ""
            facts = [kinds, option.type_words(), option.range_words(), option.unit, f"default {default}"]
            kohya = f"kohya: `{option.kohya}`{' (the opposite)' if option.inverted else ''}" if option.kohya else ""
            facts += [kohya, "advanced" if option.advanced else ""]
            out += [f"### {option.path}", "", option.help, "", "*" + "; ".join(f for f in facts if f) + "*", ""]
    return "\n".join(out)
