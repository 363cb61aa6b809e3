"""Files of kohya_ss and sd-scripts, and what a LoRA says of its training, as one configuration: `limner import`, the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limner import disk
from limner.config import Config, files
from limner.config.kohya import Imported, Report, of_lora, read_text
from limner.errors import wrong
from limner.formats.header import read_header

_ASK = "Give a configuration of kohya_ss or sd-scripts, a dataset file, a command line, or a LoRA."


def of_file(path: Path) -> Imported:
    """What a file holds. Raises UserError where it holds nothing that can be imported."""
    if path.suffix.lower() == ".safetensors":
        return of_lora(read_header(path, str(path)).metadata)
    return read_text(files.read_text(path), str(path))


def of_text(text: str, name: str) -> Imported:
    """The same of a file's text, as the page sends it: of a LoRA that is the JSON of its metadata."""
    if not name.lower().endswith(".safetensors"):
        return read_text(text, name)
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise wrong(name, "says nothing of its training.", _ASK)
    return of_lora({str(key): value for key, value in metadata.items() if isinstance(value, str)})


def together(found: Sequence[tuple[str, Imported]]) -> Imported:
    """Several (name, what it holds) as one: what a later one says of an option counts."""
    if len(found) == 1:
        return found[0][1]
    values, report, subsets = dict[str, dict[str, Any]](), Report(), ""
    for name, one in found:
        for section, options in one.values.items():
            kept = values.setdefault(section, {})
            if "kind" in options and options["kind"] != kept.get("kind"):
                kept.clear()  # the other kind's options mean nothing here
            kept.update(options)
        for line in one.report.lines.values():
            report.say(f"{name}: {line.key}", line.value, line.outcome, *line.becomes, why=line.why)
        subsets = one.subsets or subsets
    return Imported(values, report, subsets)


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
