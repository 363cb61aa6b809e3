"""A plain folder made of kohya's folder structure, and the options that its folders' names stood for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from limner.config.tools.folders import FromKohyaFolders
from limner.data.undo import Write
from limner.errors import Finding, printable, wrong
from limner.tools.dataset_file import Part, dataset_file
from limner.tools.folder_plan import (
    KOHYA_NAME,
    Item,
    Names,
    Plan,
    carried_out,
    counted,
    items,
    new_folders,
    real_folder,
    require_room,
    shown,
    transfer,
)  # fmt: skip
from limner.tools.tool import Progress, Report

_FOLDER, _OUTPUT = "from_kohya_folders.folder", "from_kohya_folders.output"


def look(section: FromKohyaFolders) -> Report:
    return shown(_plan(section))


def run(section: FromKohyaFolders, progress: Progress) -> Report:
    return carried_out(lambda: _plan(section), progress)


@dataclass(frozen=True)
class _Concept:
    folder: Path
    repeats: int
    words: str
    is_class: bool
    items: list[Item]
    target: Path


def _plan(section: FromKohyaFolders) -> Plan:
    folder, output = real_folder(section.folder, _FOLDER), section.output.resolve()
    plan, names = Plan(output, "from kohya's folders", printable(folder.name, 80)), Names()
    img, reg = (folder / "img", folder / "reg") if (folder / "img").is_dir() else (folder, folder.parent / "reg")
    if output.is_relative_to(img) or folder.is_relative_to(output / "pictures"):
        raise wrong(_OUTPUT, f"{output} and {folder} lie in one another.", "Choose an output beside it.")
    own = _concepts(img, plan, is_class=False)
    if not own:
        said = f'{folder} holds no folder called like "10_name" with pictures, nor has it such a name.'
        raise wrong(_FOLDER, said, "Give the folder with img in it.")
    of_class = _concepts(reg, plan, is_class=True) if img == folder / "img" and reg.is_dir() else []
    concepts = _placed(own, output / "pictures", names) + _placed(of_class, output / "class", names)
    plan.changes += new_folders([c.target for c in concepts], output, _OUTPUT)
    for concept in concepts:
        for item in concept.items:
            plan.changes += transfer(item, names.place(item, concept.target, _FOLDER), section.how)
        said = f"{printable(concept.folder.name, 100)}: {counted(sum(len(i.pictures) for i in concept.items), 'picture')}"
        plan.lines.append(f"{said} -> {printable(concept.target.relative_to(output), 400)}")
    require_room(plan.changes, output, _OUTPUT)
    if len(own) == 1 and len(of_class) <= 1:
        plan.lines += ["The options are:", *_options(concepts)]
    else:
        file = next(f for n in count(1) if not (f := output / f"dataset{f' ({n})' if n > 1 else ''}.toml").exists())
        parts = [Part(c.target, c.repeats, c.words, c.is_class) for c in concepts]
        plan.changes.append(Write(file, None, dataset_file(parts, output, _OUTPUT)))
        plan.lines += ["The options are:", f'data.subsets = "{printable(file, 400)}"']
    return plan


def _concepts(folder: Path, plan: Plan, *, is_class: bool) -> list[_Concept]:
    """The folders `N_words` in a folder, or that folder itself."""
    places = (
        [folder] if KOHYA_NAME.fullmatch(folder.name) and not is_class else sorted(p for p in folder.iterdir() if p.is_dir())
    )
    out = []
    for place in places:
        match = KOHYA_NAME.fullmatch(place.name)
        if place.is_symlink() or place.name.startswith("."):
            continue
        if match is None or not int(match[1]):
            why = "asks for 0 repeats" if match else "has no number before its name"
            plan.remarks.append(Finding(str(place), f"{why}: kohya does not read it either, so it is left.", "", "warning"))
            continue
        found = items(place, plan.remarks, _FOLDER, deep=False)
        if found:
            out.append(_Concept(place, int(match[1]), match[2].strip(), is_class, found, place))
        else:
            plan.remarks.append(Finding(str(place), "holds no picture, and is left.", "", "note"))
    return out


def _placed(concepts: list[_Concept], root: Path, names: Names) -> list[_Concept]:
    """Each with its folder: `root` itself if it is the only one."""
    if len(concepts) == 1:
        return [replace(concepts[0], target=root)]

    def name(words: str) -> str:
        # a name that would be read as repeats again, or be hidden, gets a word before it
        return f"concept {words}".strip() if not words or words.startswith(".") or KOHYA_NAME.fullmatch(words) else words

    return [replace(c, target=names.folder(root, name(c.words))) for c in concepts]


def _options(concepts: list[_Concept]) -> list[str]:
    out = []
    for concept in concepts:
        words, path = printable(concept.words, 400), printable(concept.target, 400)
        if concept.is_class:
            out += [f'data.class_path = "{path}"', f'data.class_prompt = "{words}"']
        else:
            out += [f'data.path = "{path}"', f"data.repeats = {concept.repeats}", f'data.trigger = "{words}"']
    return out
