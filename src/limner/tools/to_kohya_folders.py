"""kohya's folder structure made of a plain folder: img/<repeats>_<trigger class>, reg/<repeats>_<class>, log, model."""

from __future__ import annotations

from pathlib import Path

from limner.config.tools.folders import ToKohyaFolders
from limner.errors import Finding, printable, wrong
from limner.tools.folder_plan import (
    KOHYA_NAME,
    Item,
    Names,
    Plan,
    carried_out,
    counted,
    folder_name,
    items,
    new_folders,
    real_folder,
    require_room,
    shown,
    transfer,
)  # fmt: skip
from limner.tools.tool import Progress, Report

_OUTPUT = "to_kohya_folders.output"


def look(section: ToKohyaFolders) -> Report:
    return shown(_plan(section))


def run(section: ToKohyaFolders, progress: Progress) -> Report:
    return carried_out(lambda: _plan(section), progress)


def _plan(section: ToKohyaFolders) -> Plan:
    output = section.output.resolve()
    own = folder_name(
        " ".join(filter(None, (section.trigger.strip(), section.class_words.strip()))), "to_kohya_folders.trigger"
    )
    plan, img = Plan(output, "to kohya's folders", own), output / "img"
    pictures = img / folder_name(f"{section.repeats}_{own}", "to_kohya_folders.trigger")
    sources = [(section.pictures, "to_kohya_folders.pictures", pictures)]
    if section.class_pictures is not None:
        name = section.class_words.strip()
        if not name:
            raise wrong(
                "to_kohya_folders.class_words", "is needed to name the class pictures' folder.", 'Set it, such as "dog".'
            )
        classes = output / "reg" / folder_name(f"{section.class_repeats}_{name}", "to_kohya_folders.class_words")
        sources.append((section.class_pictures, "to_kohya_folders.class_pictures", classes))
    wanted = [*(target for _, _, target in sources), output / "log", output / "model"]
    if section.class_pictures is None:
        wanted.append(output / "reg")
    plan.changes += new_folders(wanted, output, _OUTPUT)
    for given, option, target in sources:
        _fill(plan, section, real_folder(given, option), option, target)
    require_room(plan.changes, output, _OUTPUT)
    plan.lines += [
        f'For Limner: data.path = "{printable(img, 400)}"'
        + (f', data.class_path = "{printable(output / "reg", 400)}"' if section.class_pictures is not None else ""),
        f"For kohya_ss: image folder {printable(img, 400)}, regularisation folder reg, output folder model, logging folder log"
        " beside it",
    ]
    return plan


def _fill(plan: Plan, section: ToKohyaFolders, folder: Path, option: str, target: Path) -> None:
    output = plan.folder
    if output.is_relative_to(folder) and any(output / part == folder for part in ("img", "reg", "model", "log")):
        raise wrong(option, f"{folder} is a folder that would be made.", "Choose another output.")
    found = items(folder, plan.remarks, option, deep=True, without=output if output != folder else None)
    if output == folder:  # what was made in it before is no source
        made = [output / part for part in ("img", "reg", "log", "model")]
        found = [i for i in found if not any(i.folder.is_relative_to(m) for m in made)]
    if not found:
        raise wrong(option, f"{folder} holds no picture.", "Give a folder of .png, .jpg, .webp or .bmp files.")
    if kohya := sorted({i.folder.name for i in found if KOHYA_NAME.fullmatch(i.folder.name)}):
        said = f"what the name of {kohya[0]!r} stands for does not come along: all get {target.name!r}."
        plan.remarks.append(Finding(option, said, "", "warning"))
    if there := _there(target):
        said = f"{target} holds {counted(there, 'file')} already; they stay, and are trained on too."
        plan.remarks.append(Finding(_OUTPUT, said, "Choose another output to have these alone.", "warning"))
    names = Names()
    for item in found:
        plan.changes += transfer(item, names.place(item, target, option), section.how)
    plan.lines.append(f"{printable(target.relative_to(output), 400)}: {counted(_num(found), 'picture')}")
    if names.num_changed:
        said = f"{counted(names.num_changed, 'picture')} get a number behind the name, since another has it."
        plan.remarks.append(Finding(option, said, "", "note"))


def _there(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _num(found: list[Item]) -> int:
    return sum(len(i.pictures) for i in found)
