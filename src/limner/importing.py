"""Files of kohya_ss and sd-scripts, and what a LoRA says of its training, as one configuration: `limner import`, the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limner import disk, parsing
from limner.config import Config, files
from limner.config.kohya import Imported, Report, of_lora, read_text
from limner.errors import wrong
from limner.formats.header import read_header

_ASK = "Give a configuration of kohya_ss or sd-scripts, a dataset file, a command line, or a LoRA."


def of_file(path: Path) -> Imported:
    """What a file holds. Raises UserError where it holds nothing that can be imported."""
    if path.suffix.lower() == ".safetensors":
        return _of_lora(read_header(path, str(path)).metadata, str(path))
    return read_text(files.read_text(path), str(path))


def of_text(text: str, name: str) -> Imported:
    """The same of a file's text, as the page sends it: of a LoRA that is the JSON of its metadata."""
    if not name.lower().endswith(".safetensors"):
        return read_text(text, name)
    try:
        metadata = parsing.json_value(text)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise wrong(name, "says nothing of its training.", _ASK)
    return _of_lora({str(key): value for key, value in metadata.items() if isinstance(value, str)}, name)


def _of_lora(metadata: Mapping[str, str], name: str) -> Imported:
    found = of_lora(metadata)
    if not any(line.becomes for line in found.report.lines.values()):
        raise wrong(name, "says nothing of its training.", _ASK)
    return found


def together(found: Sequence[tuple[str, Imported]]) -> Imported:
    """Several (name, what it holds) as one: what a later one says of an option counts."""
    if len(found) == 1:
        return found[0][1]
    values, report, subsets = dict[str, dict[str, Any]](), Report(), ""
    for name, (_, one) in zip(_told_apart([name for name, _ in found]), found, strict=True):
        before = {f"{section}.{option}": value for section, kept in values.items() for option, value in kept.items()}
        for section, options in one.values.items():
            kept = values.setdefault(section, {})
            if "kind" in options and options["kind"] != kept.get("kind"):
                kept.clear()  # the other kind's options mean nothing here
            kept.update(options)
        after = {f"{section}.{option}": value for section, kept in values.items() for option, value in kept.items()}
        gone = {option for option, value in before.items() if option not in after or after[option] != value}
        gone |= {"data.subsets"} if subsets and one.subsets else set()
        _overrule(report, gone, name)
        for line in one.report.lines.values():
            report.say(f"{name}: {line.key}", line.value, line.outcome, *line.becomes, why=line.why)
        subsets = one.subsets or subsets
    return Imported(values, report, subsets)


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names, with a number behind one that comes again."""
    seen, out = Counter[str](), list[str]()
    for name in names:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out


def _overrule(report: Report, options: set[str], name: str) -> None:
    """Say of earlier lines that what became of them is no more, since the file `name` says otherwise."""
    for key, line in report.lines.items():
        if not options.isdisjoint(line.becomes):
            left = tuple(option for option in line.becomes if option not in options)
            why = f"{line.why} {name} says otherwise{' in part' if left else ''}, and counts more.".strip()
            report.lines[key] = replace(line, outcome=line.outcome if left else "idle", becomes=left, why=why)


def build(found: Imported, subsets: Path) -> Config:
    """The configuration. A dataset file that it needs is written to `subsets`."""
    values = {name: dict(options) for name, options in found.values.items()}
    if found.subsets:
        values.setdefault("data", {})["subsets"] = str(subsets)
    config = files.build(values, {})
    if found.subsets:
        disk.write_text(subsets, found.subsets)
    return config


def write(found: Imported, out: Path) -> list[Path]:
    """Write the configuration, commented, and what it needs beside it; returns the files. Nothing is overwritten."""
    subsets = out.with_name(f"{out.stem}-subsets.json")
    written = [out, *([subsets] if found.subsets else [])]
    for file in written:
        if file.exists():
            raise wrong(str(file), "exists already.", "Choose another name; nothing is overwritten.")
    config = build(found, subsets.absolute())
    disk.write_text(out, files.render(config))
    return written
