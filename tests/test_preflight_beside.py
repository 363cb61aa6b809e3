"""What is said before the start of class pictures and held-out ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

import tiny
from limner import preflight
from limner.config import files
from limner.data.classes import MARK, scan_classes
from limner.data.held_out import parted, scan_validation
from limner.data.scan import Picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.pictures(tmp_path / "mine")


def found(folder: Path, **over: object) -> tuple[dict[tuple[str, str], str], preflight.Records]:
    """({(severity, field): message}, records) of what concerns the pictures beside."""
    values = {"model.base": "pocket", "data.path": str(folder), "data.resolution": "64", "train.epochs": "1"}
    values |= {name.replace("__", "."): str(value) for name, value in over.items()}
    findings, records = preflight.examine(files.build({}, values), None)
    beside = ("data.class", "data.trigger", "validation")
    return {(f.severity, f.field): f.message for f in findings if f.field.startswith(beside)}, records


def test_class_pictures_must_be_there_or_be_painted(folder: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "things"
    assert "does not exist" in found(folder, data__class_path=nowhere)[0]["error", "data.class_path"]
    nowhere.mkdir()
    assert "no usable picture" in found(folder, data__class_path=nowhere)[0]["error", "data.class_path"]
    said, _ = found(folder, data__class_path=nowhere, data__class_count=5)
    assert said["error", "data.class_prompt"] == "is needed to paint the 5 missing class pictures."
    nowhere.rmdir()
    said, records = found(folder, data__class_path=nowhere, data__class_count=5, data__class_prompt="a thing")
    assert said == {("note", "data.class_path"): "the base model will paint 5 class pictures into it before the start."}
    assert not nowhere.exists(), "checking paints nothing"
    assert len(records.to_paint) == 5 and records.dataset is not None
    # an epoch shows 4 pictures and as many class pictures, in micro-batches of one
    assert records.dataset.total_steps == 8


def test_class_pictures_keep_away_from_the_others(folder: Path, tmp_path: Path) -> None:
    inside = tiny.pictures(folder / "1_thing", seed=3)
    assert "lie in one another" in found(folder, data__class_path=inside)[0]["error", "data.class_path"]
    assert "lie in one another" in found(inside, data__class_path=folder)[0]["error", "data.class_path"]
    assert "lie in one another" in found(folder, validation__path=inside)[0]["error", "validation.path"]


def test_captions_of_class_pictures(folder: Path, tmp_path: Path) -> None:
    """kohya's folders work; the trigger belongs to the others, and is not missed in class pictures."""
    others = tmp_path / "reg"
    tiny.pictures(others / "2_a thing", ((40, 40), (50, 50)), seed=3)
    (others / "2_a thing" / "p1.txt").unlink()
    section = files.build({}, {"data.path": str(folder), "data.class_path": str(others)}).data
    pictures = scan_classes(section).pictures
    assert [(p.caption, p.repeats, p.is_class) for p in pictures] == [("picture number 0", 2, True), ("a thing", 2, True)]
    said, _ = found(folder, data__class_path=others, data__trigger="picture")
    assert said["warning", "data.trigger"].startswith("1 class pictures have the trigger 'picture' in their caption")
    said, _ = found(folder, data__class_path=others, data__trigger="number 9")
    assert said["warning", "data.trigger"] == "the trigger 'number 9' is missing in 4 of 4 captions."
    (others / "p.txt").write_text("", encoding="utf-8")
    Image.new("RGB", (40, 40)).save(others / "p.png")
    assert "1 of 3 class pictures have no caption" in found(folder, data__class_path=others)[0]["warning", "data.class_prompt"]


def test_pictures_painted_from_another_prompt_are_told(folder: Path, tmp_path: Path) -> None:
    others = tmp_path / "things"
    others.mkdir()
    mark = PngImagePlugin.PngInfo()
    mark.add_text(MARK, json.dumps({"base": "pocket", "prompt": "a hat", "seed": 1}))
    for number in (1, 2):
        Image.new("RGB", (64, 64)).save(others / f"limner-{number:04d}.png", pnginfo=mark)
    given = {"data__class_path": others, "data__class_count": 3}
    said, _ = found(folder, **given, data__class_prompt="a hat")
    assert said == {("note", "data.class_path"): "the base model will paint 1 class pictures into it before the start."}
    said, _ = found(folder, **given, data__class_prompt="a cat")
    assert said["warning", "data.class_path"].startswith("2 pictures in it were painted from another prompt")


def test_held_out_pictures(folder: Path, tmp_path: Path) -> None:
    said, records = found(folder, validation__share="0.25")
    assert said == {("note", "validation.share"): "1 of 4 pictures are not trained on."}
    assert records.dataset is not None and len(records.dataset.pictures) == 3 and records.dataset.total_steps == 3
    alone = tiny.pictures(tmp_path / "one", ((40, 40),))
    assert "only one picture" in found(alone, validation__share="0.5")[0]["error", "validation.share"]
    assert "no pictures are held out" in found(folder, validation__every_steps="3")[0]["warning", "validation.every_steps"]
    assert "does not exist" in found(folder, validation__path=tmp_path / "no")[0]["error", "validation.path"]
    said, records = found(folder, validation__path=alone, data__trigger="sks")
    assert [f for f in said if f[1].startswith("validation")] == []
    assert records.dataset is not None and len(records.dataset.pictures) == 4


def test_a_picture_is_held_out_with_all_its_showings() -> None:
    pictures = [Picture(f"{i // 2}.png", 64, 64, "", 1 + i % 3) for i in range(40)]  # each at two sizes
    config = files.build({}, {"validation.share": "0.3", "train.seed": "5"})
    kept, held = parted(config, pictures)
    assert len({p.path for p in held}) == 6 and len(held) == 12 and {p.path for p in kept}.isdisjoint(p.path for p in held)
    assert parted(config, pictures) == (kept, held)
    other = files.build({}, {"validation.share": "0.3", "train.seed": "6"})
    assert parted(other, pictures)[1] != held
    assert parted(files.build({}, {}), pictures) == (pictures, [])
    assert scan_validation(files.build({}, {})).pictures == []
