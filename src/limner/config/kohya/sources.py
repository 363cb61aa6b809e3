"""Texts that are configurations of sd-scripts: its config files, its dataset files, a pasted command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from limner import parsing
from limner.config.kohya import command_line, gui
from limner.config.kohya.arguments import to_values
from limner.config.kohya.report import Imported, Report
from limner.config.kohya.scripts import arguments
from limner.errors import printable, wrong

MAX_BYTES = 1 << 20
_MOST_DEPTH = 20
_GIVE = "Give a configuration of kohya_ss or sd-scripts (.json or .toml), a dataset file, or a command line."

Reader = Callable[[dict[str, Any], str], Imported | None]


def read_text(text: str, name: str) -> Imported:
    """What a text holds, by the first reader that knows it. `name` is the file's, for messages and to tell JSON from TOML.
    Raises UserError where it is too large, broken, or nothing of the kind."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise wrong(name, f"is larger than {MAX_BYTES} bytes.", "A configuration is a small file.")
    text = text.removeprefix("\ufeff")
    if command_line.is_one(text) and not _is_toml(text):
        report = Report()
        given = command_line.read(text, report)
        return Imported(to_values(given, report, complete=True), report)
    raw = _parsed(text, name)
    for reader in _READERS:
        found = reader(raw, name)
        if found is not None:
            return found
    raise wrong(name, "is nothing that Limner knows of kohya.", _GIVE)


def _is_toml(text: str) -> bool:
    """No command line is; a file may speak of one."""
    try:
        return bool(parsing.toml(text))
    except ValueError:
        return False


def _parsed(text: str, name: str) -> dict[str, Any]:
    is_json = text.lstrip().startswith("{")
    try:
        raw = parsing.json_value(text, pairs=_pairs, constant=_no_number) if is_json else parsing.toml(text)
        if not isinstance(raw, dict):
            raise ValueError("it holds no table")
        _look(raw, 0)
    except ValueError as error:
        raise wrong(name, f"is not valid {'JSON' if is_json else 'TOML'}: {printable(error, 200)}.", _GIVE) from None
    return raw


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Of a key that comes twice nobody can say which is meant."""
    out = dict(pairs)
    if len(out) < len(pairs):
        seen = set[str]()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"{printable(twice, 60)!r} is given twice")
    return out


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _look(value: Any, depth: int) -> None:
    """Raises ValueError for what no configuration holds."""
    if depth > _MOST_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _look(inner, depth + 1)


# --- what a table may be ----------------------------------------------------------------------------------------------


def dataset(raw: dict[str, Any], _: str = "") -> Imported | None:
    """A dataset file: [general] and [[datasets]]. It goes on as it is, beside the configuration."""
    if not raw or not set(raw) <= {"general", "datasets"} or not isinstance(raw.get("datasets", []), list):
        return None
    report = Report()
    for place, value in _leaves(raw, ""):
        report.say(place, value, "taken", "data.subsets", why="It stays in the dataset file.")
    kept, values = _without_batch_sizes(raw, report)
    # data.subsets reads JSON as well, and JSON is written without any doubt
    text = json.dumps(kept, ensure_ascii=False, indent=2, default=str) + "\n"
    return Imported(values, report, text)


def _without_batch_sizes(raw: dict[str, Any], report: Report) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(the tables without them, what they set): a dataset's own counts more than that of [general], the first most."""
    general = raw.get("general", {})
    tables = {f"datasets[{i}]": d for i, d in enumerate(raw.get("datasets", [])) if isinstance(d, dict)}
    tables |= {"general": general} if isinstance(general, dict) else {}
    found = {place: d["batch_size"] for place, d in tables.items() if "batch_size" in d}
    sizes = [size for size in found.values() if isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= 4096]
    for place, size in found.items():
        name = f"{place}.batch_size"
        if size in sizes[:1]:
            report.say(name, size, "converted", "train.batch_size", why="One batch size holds for all.")
        else:
            why = f"One batch size holds for all, {sizes[0]}." if sizes else "It is no batch size; set train.batch_size."
            report.say(name, size, "unsupported", why=why)
    if not found:
        return raw, {}
    kept = dict(raw)
    if "general" in found:
        kept["general"] = {key: value for key, value in general.items() if key != "batch_size"}
    if "datasets" in raw:
        kept["datasets"] = [
            {key: value for key, value in d.items() if key != "batch_size"} if isinstance(d, dict) else d
            for d in raw["datasets"]
        ]
    return kept, {"train": {"batch_size": sizes[0]}} if sizes else {}


def _leaves(value: Any, place: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        pairs = [(f"{place}.{k}" if place else str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        pairs = [(f"{place}[{i}]", v) for i, v in enumerate(value)]
    else:
        return [(place, value)]
    return [leaf for inner, v in pairs for leaf in _leaves(v, inner)]


def config_file(raw: dict[str, Any], _: str = "") -> Imported | None:
    """A file for --config_file: arguments, in sections of any name or in none. As in sd-scripts, sections count for nothing,
    and of an argument that comes twice the last holds."""
    flat, report = dict[str, Any](), Report()
    for key, value in raw.items():
        entries = value.items() if isinstance(value, dict) else [(key, value)]
        for name, inner in entries:
            if name in flat:
                report.say(f"{name} (before)", flat[name], "idle", why="It is given again further on, which counts.")
            flat[name] = inner
    known = sum(name in arguments() for name in flat)
    if not known or known * 2 < len(flat):
        return None
    return Imported(to_values(flat, report, complete=True), report)


_READERS: tuple[Reader, ...] = (dataset, gui.read, config_file)
"""Tried in order, each with the file's name, for messages. A reader looks at a whole table and returns None where it is not of
its kind; those that know more signs stand first."""
