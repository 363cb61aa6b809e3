"""Class pictures (prior preservation, arXiv:2208.12242, section 3.2): ordinary ones of the kind of thing that is taught.

They lie in a folder of their own. Those that the base model painted say in their PNG what they were painted from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from limner import parsing
from limner.config import Config, Data, Model
from limner.config.model import merges
from limner.config.prompts import Prompt
from limner.data.archives import find as find_archive
from limner.data.scan import Picture, Scan, scan
from limner.errors import Finding, UserError, wrong
from limner.randomness import mix

MARK = "limner"
"""The name of the PNG text that says, as JSON, what a painted class picture was painted from."""
_NAME = re.compile(r"limner-(\d{4,6})\.png")


def scan_classes(data: Data, may_follow: Callable[[str], bool] | None = None) -> Scan:
    """The class pictures that are there, as `scan` finds pictures; nothing where no folder is given or it is still to be made.

    Raises UserError where `data.class_path` cannot be read as a folder.
    """
    folder = data.class_path
    if folder is None or (data.class_count and not folder.exists()):
        return Scan()
    if data.class_count and find_archive(data.model_copy(update={"path": folder})) is not None:
        said = f"{folder} is an archive, into which nothing can be painted."
        raise wrong("data.class_count", said, "Remove it, or give a folder as data.class_path.")
    changes = {"path": folder, "trigger": data.class_prompt, "repeats": 1, "metadata": None, "subsets": None}
    found = scan_beside(data.model_copy(update=changes), "data.class_path", may_follow)
    found.pictures = [replace(p, is_class=True) for p in found.pictures]
    if without := sum(not p.caption for p in found.pictures):
        said = f"{without} of {len(found.pictures)} class pictures have no caption; they are trained with an empty one."
        found.warnings.append(Finding("data.class_prompt", said, 'Set it, for example to "a photo of a dog".', "warning"))
    return found


def scan_beside(data: Data, field: str, may_follow: Callable[[str], bool] | None) -> Scan:
    """`scan` of a folder that stands in another option than data.path; what is said of triggers does not hold there."""
    try:
        found = scan(data, may_follow)
    except UserError as error:
        raise UserError([replace(f, field=field) for f in error.findings]) from None
    found.warnings = [replace(f, field=field) for f in found.warnings if f.field == "data.path"]
    return found


def num_missing(data: Data, num_there: int) -> int:
    """How many class pictures the base model has to paint."""
    return 0 if data.class_path is None else max(0, data.class_count - num_there)


def free_numbers(folder: Path, count: int) -> list[int]:
    """The numbers of the next `count` painted pictures: those that have no file yet."""
    there = {int(m[1]) for path in folder.glob("limner-*.png") if (m := _NAME.fullmatch(path.name))}
    out, number = [], 0
    while len(out) < count:
        number += 1
        if number not in there:
            out.append(number)
    return out


def painted_path(folder: Path, number: int) -> Path:
    return folder / f"limner-{number:04d}.png"


def painted_otherwise(pictures: list[Picture], prompt: str | None, by: str) -> list[str]:
    """The names of painted class pictures that were painted from another prompt, or by another `painter`."""
    out = []
    for picture in pictures:
        if _NAME.fullmatch(Path(picture.path).name):
            facts = _facts(picture.path)
            if facts and (facts.get("prompt"), facts.get("base")) != (prompt, by):
                out.append(Path(picture.path).name)
    return out


def _facts(path: str) -> dict[str, object]:
    try:
        with Image.open(path) as image:
            facts = parsing.json_value(image.info.get(MARK, "{}"))
    except (OSError, ValueError, SyntaxError):
        return {}
    return facts if isinstance(facts, dict) else {}


def base_name(given: str, path: Path | None) -> str:
    """What a base model is called in files: of a local one only the last part of its path."""
    return path.name if path is not None and Path(given).exists() else given


def painter(model: Model, path: Path | None) -> str:
    """What paints the missing class pictures, as their mark says: the base model, and what is merged into it."""
    return " + ".join([base_name(model.base, path), *(f"{file.name} @ {strength:g}" for file, strength in merges(model))])


def prompt_of(config: Config, side: int, number: int) -> Prompt:
    """What a missing class picture is painted from: data.class_prompt, for the rest as samples are."""
    section = config.sample
    seed = mix(config.train.seed, "class picture", number)
    text = config.data.class_prompt or ""
    guidance = section.guidance
    return Prompt(text, section.negative, side, side, section.steps, guidance, seed, section.solver, where="data.class_prompt")
