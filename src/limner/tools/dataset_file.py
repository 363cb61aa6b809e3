"""A dataset file (sd-scripts' `dataset_config`, our data.subsets) of several folders, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomlkit

from limner.config.base import clean
from limner.errors import wrong


@dataclass(frozen=True)
class Part:
    """One folder. `words` are the caption of pictures that have none; "": there is no such caption."""

    folder: Path
    repeats: int
    words: str = ""
    is_class: bool = False


def dataset_file(parts: Sequence[Part], beside: Path, option: str) -> str:
    """The file's text. Folders inside `beside`, where it will lie, are named from there.

    Raises UserError for a folder whose name no such file can hold.
    """
    tables = tomlkit.aot()
    for part in parts:
        try:
            folder, words = clean(str(part.folder)), clean(part.words)
        except ValueError as error:
            raise wrong(option, f"{str(part.folder)!r} {error}.", "Give that folder another name.") from None
        table = tomlkit.table()
        if part.folder.is_relative_to(beside):
            folder = part.folder.relative_to(beside).as_posix()
        table["image_dir"], table["num_repeats"] = folder, part.repeats
        if words.strip():
            table["class_tokens"] = words
        if part.is_class:
            table["is_reg"] = True
        tables.append(table)
    document, dataset = tomlkit.document(), tomlkit.table()
    dataset["subsets"] = tables
    datasets = tomlkit.aot()
    datasets.append(dataset)
    document["datasets"] = datasets
    return tomlkit.dumps(document)
