"""Make every concept be shown about equally often, by the numbers of kohya's folders or by a dataset file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from limner.config.tools.folders import Balance
from limner.data.folder_changes import FolderMove
from limner.data.headers import size_of
from limner.data.undo import Write
from limner.errors import Finding, UserError, printable, wrong
from limner.tools.dataset_file import Part, dataset_file
from limner.tools.folder_plan import KOHYA_NAME, Plan, carried_out, counted, is_picture, real_folder, shown
from limner.tools.tool import Progress, Report, refuse_existing

_FOLDER = "balance.folder"
_MOST_REPEATS = 10_000


def look(section: Balance) -> Report:
    return shown(_plan(section))


def run(section: Balance, progress: Progress) -> Report:
    return carried_out(lambda: _plan(section), progress)


@dataclass(frozen=True)
class _Concept:
    folder: Path
    words: str | None
    """What its name says behind the number; None of a plain folder."""
    repeats: int
    num_pictures: int


def _plan(section: Balance) -> Plan:
    folder, file = real_folder(section.folder, _FOLDER), section.dataset_file
    plan = Plan(folder, "balance")
    concepts = _concepts(folder, plan, takes_plain=file is not None)
    if not concepts:
        wanted = "with pictures" if file is not None else 'called like "10_name" with pictures'
        raise wrong(_FOLDER, f"{folder} holds no folder {wanted}.", "Give the folder that the concepts' folders are in.")
    showings = section.showings or max(c.repeats * c.num_pictures for c in concepts)
    new = {c: min(_MOST_REPEATS, max(1, (2 * showings + c.num_pictures) // (2 * c.num_pictures))) for c in concepts}
    for concept, repeats in new.items():
        count = concept.num_pictures
        said = f"{concept.repeats} x {count} = {concept.repeats * count}, becomes {repeats} x {count} = {repeats * count}"
        plan.lines.append(f"{printable(concept.folder.name, 60)}: {said}")
    if uneven := [c for c, r in new.items() if not 0.8 <= r * c.num_pictures / showings <= 1.25]:
        said = f"{counted(len(uneven), 'folder')} such as {uneven[0].folder.name!r} cannot come near {showings} showings."
        plan.remarks.append(Finding("balance.showings", said, "A picture is shown a whole number of times.", "warning"))
    if file is None:
        _rename(plan, new)
        plan.detail = f"{counted(len(plan.changes), 'folder')} to {showings} showings"
    else:
        _write(plan, new, file.absolute(), section.overwrite)
        plan.detail = f"a dataset file of {counted(len(new), 'concept')}"
    return plan


def _concepts(folder: Path, plan: Plan, *, takes_plain: bool) -> list[_Concept]:
    out = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
            if entry.is_symlink():
                plan.remarks.append(Finding(entry.path, "is a link, and left alone.", "", "warning"))
            continue
        match = KOHYA_NAME.fullmatch(entry.name)
        if match is None and not takes_plain:
            said = "has no number before its name, and is left alone."
            plan.remarks.append(Finding(entry.path, said, "Set balance.dataset_file to balance such folders too.", "warning"))
            continue
        repeats = int(match[1]) if match else 1
        count = _num_pictures(Path(entry.path), plan)
        if repeats and count:
            out.append(_Concept(Path(entry.path), match[2] if match else None, repeats, count))
        else:
            said = "asks for 0 repeats: it is left out" if count else "holds no picture"
            plan.remarks.append(Finding(entry.path, f"{said}, and left alone.", "", "note"))
    return out


def _num_pictures(folder: Path, plan: Plan) -> int:
    """The pictures in a folder that training would use; those of folders inside it have repeats of their own."""
    count = 0
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            said = "lies in a concept's folder; its pictures are not counted."
            plan.remarks.append(Finding(entry.path, said, "", "warning"))
        elif is_picture(entry.name) and entry.is_file():
            fault = size_of(entry.path)[0]
            count += not fault
            if fault:
                plan.remarks.append(Finding(entry.path, f"is not counted: {fault}", "", "warning"))
    return count


def _rename(plan: Plan, new: dict[_Concept, int]) -> None:
    targets = {c: c.folder.with_name(f"{repeats}_{c.words}") for c, repeats in new.items() if repeats != c.repeats}
    stay = {n.casefold() for n in os.listdir(plan.folder)} - {c.folder.name.casefold() for c in targets}
    faults, given = [], set(stay)
    for concept, target in targets.items():
        # a name that another folder still has would do once that one is renamed, but not if it is broken off between
        if target.name.casefold() in given or os.path.lexists(target):
            said = f"would be called {target.name!r}, as another folder is or would be."
            faults.append(Finding(str(concept.folder), said, "Put both into one folder, or set balance.dataset_file."))
        elif len(os.fsencode(target.name)) > 255:
            faults.append(Finding(str(concept.folder), "would have too long a name.", "Shorten it."))
        given.add(target.name.casefold())
        plan.changes.append(FolderMove(concept.folder, target, os.lstat(concept.folder).st_ino))
    if faults:
        raise UserError(faults)


def _write(plan: Plan, new: dict[_Concept, int], file: Path, overwrite: bool) -> None:
    option = "balance.dataset_file"
    if file.suffix.lower() != ".toml" or file.is_symlink() or (os.path.lexists(file) and not file.is_file()):
        raise wrong(option, f"{file} is no name for a dataset file.", "Use one that ends with .toml.")
    refuse_existing([file], overwrite, option)
    try:
        before = file.read_bytes().decode("utf-8") if file.exists() else None
    except (OSError, UnicodeDecodeError):
        raise wrong(option, f"{file} is no text that could be brought back.", "Choose another name.") from None
    parts = [Part(c.folder, repeats, c.words or "") for c, repeats in new.items()]
    plan.changes.append(Write(file, before, dataset_file(parts, file.parent, option)))
    plan.lines.append(f'Then set: data.subsets = "{printable(file, 400)}"')
