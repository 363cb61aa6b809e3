"""Sort pictures into folders by their shape."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from limner.config.tools.folders import GroupPictures
from limner.data.buckets import Buckets
from limner.data.headers import size_of
from limner.errors import Finding, printable, wrong
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

_FOLDER = "group_pictures.folder"


def look(section: GroupPictures) -> Report:
    return shown(_plan(section))


def run(section: GroupPictures, progress: Progress) -> Report:
    return carried_out(lambda: _plan(section), progress)


@dataclass(frozen=True)
class _Shape:
    """Items of one shape. `size` is the bucket, or the picture's own."""

    size: tuple[int, int]
    items: list[Item]

    @property
    def aspect(self) -> Fraction:
        return Fraction(*self.size)


def _plan(section: GroupPictures) -> Plan:
    folder = real_folder(section.folder, _FOLDER)
    output = section.output.resolve() if section.output is not None else folder
    plan, names = Plan(folder, "group pictures"), Names()
    without = output if output != folder else None
    found = items(folder, plan.remarks, _FOLDER, deep=section.subfolders, without=without)
    if kohya := sorted({i.folder.name for i in found if i.folder != folder and KOHYA_NAME.fullmatch(i.folder.name)}):
        said = (
            f"the repeats and captions that {counted(len(kohya), 'folder')} such as {kohya[0]!r} stand for do not come along."
        )
        plan.remarks.append(Finding("group_pictures.subfolders", said, "Group each of these folders by itself.", "warning"))
    shapes = _shapes(section, found, plan)
    if not shapes:
        raise wrong(_FOLDER, f"{folder} holds no usable picture.", "Give a folder of .png, .jpg, .webp or .bmp files.")
    groups = _groups(shapes, section.least)
    targets = {name: output / name for name in _names(section.by, groups)}
    plan.changes += new_folders(targets.values(), output, "group_pictures.output")
    for (name, target), group in zip(targets.items(), groups, strict=True):
        own = [item for shape in group for item in shape.items]
        plan.lines.append(f"{name}: {counted(sum(len(i.pictures) for i in own), 'picture')}")
        for item in own:
            if item.folder != target:
                plan.changes += transfer(item, names.place(item, target, _FOLDER), section.how)
    if len(groups) == 1 and sum(len(s.items) for s in shapes) < section.least:
        said = f"there are fewer pictures than the {section.least} that a group should have."
        plan.remarks.append(Finding("group_pictures.least", said, "", "warning"))
    if names.num_changed:
        said = f"{counted(names.num_changed, 'picture')} get a number behind the name, since another has it."
        plan.remarks.append(Finding(_FOLDER, said, "", "note"))
    require_room(plan.changes, output, "group_pictures.output")
    plan.detail = f"{counted(len(groups), 'group')} by {section.by}"
    return plan


def _shapes(section: GroupPictures, found: list[Item], plan: Plan) -> list[_Shape]:
    """The items by shape, from the narrowest to the widest. What does not open is named and stays."""
    rule = Buckets(
        section.resolution, section.bucket_step_px, max(section.bucket_step_px, section.resolution // 2), section.resolution * 2
    )
    sizes, by_size = rule.sizes(), dict[tuple[int, int], list[Item]]()
    for item in found:
        # pictures of one name share their caption, so the first decides for all
        fault, width, height = size_of(str(item.folder / item.pictures[0]))
        if fault:
            plan.remarks.append(Finding(str(item.folder / item.pictures[0]), f"stays: {fault}", "", "warning"))
            continue
        aspect = Fraction(width, height)
        size = rule.fit(width, height, sizes).bucket if section.by == "bucket" else aspect.as_integer_ratio()
        by_size.setdefault(size, []).append(item)
    return sorted((_Shape(size, own) for size, own in by_size.items()), key=lambda s: s.aspect)


def _groups(shapes: list[_Shape], least: int) -> list[list[_Shape]]:
    """Neighbouring shapes together, so that each group has at least `least` pictures (one, if there are fewer in all)."""

    def size(group: list[_Shape]) -> int:
        return sum(len(item.pictures) for shape in group for item in shape.items)

    def distance(one: int, other: int) -> float:
        lower, upper = sorted((one, other))
        return float(groups[upper][0].aspect / groups[lower][-1].aspect)

    groups = [[shape] for shape in shapes]
    while len(groups) > 1 and size(groups[small := min(range(len(groups)), key=lambda i: size(groups[i]))]) < least:
        other = min((i for i in (small - 1, small + 1) if 0 <= i < len(groups)), key=lambda i: distance(small, i))
        first = min(small, other)
        groups[first : first + 2] = [groups[first] + groups[first + 1]]
    return groups


def _names(by: str, groups: list[list[_Shape]]) -> list[str]:
    """A bucket's size (that of most of its pictures), or a number and the narrowest and widest shape."""
    if by == "bucket":
        most = [max(group, key=lambda s: len(s.items)).size for group in groups]
        return [f"{width}x{height}" for width, height in most]
    digits = len(str(len(groups)))
    return [
        printable(f"group {i:0{digits}} aspect {float(g[0].aspect):.2f}-{float(g[-1].aspect):.2f}")
        for i, g in enumerate(groups, 1)
    ]
