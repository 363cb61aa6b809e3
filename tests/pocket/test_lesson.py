"""The demo's lesson: half of it the new thing, half the known world, and nothing that the examination asks for."""

from __future__ import annotations

from pathlib import Path

from limner.config import files
from limner.data.scan import scan
from limner.pocket import lesson, world
from limner.pocket.exam import held_out_scenes, thing_scenes


def test_half_of_what_is_shown_is_the_new_thing(tmp_path: Path):
    folder = lesson.lay_out(tmp_path / "lesson")
    found = scan(files.build({"data": {"path": str(folder)}}, {}).data)
    assert not found.broken
    shown = {True: 0, False: 0}
    for picture in found.pictures:
        shown[world.TRIGGER in picture.caption] += picture.repeats
    assert shown == {True: lesson.NUM_KNOWN, False: lesson.NUM_KNOWN}
    assert len(found.pictures) == lesson.NUM_KNOWN + len(thing_scenes()[0])


def test_nothing_of_the_examination_is_shown(tmp_path: Path):
    folder = lesson.lay_out(tmp_path / "lesson")
    captions = {p.read_text(encoding="utf-8").strip() for p in folder.rglob("*.txt")}
    assert captions.isdisjoint(scene.caption for scene in thing_scenes()[1])
    assert captions.isdisjoint(caption for _, caption in held_out_scenes(200))
    pairs = {f"{colour} {shape}" for colour, shape in world.UNSEEN_PAIRS}
    assert not [c for c in captions if any(pair in c for pair in pairs)]


def test_it_is_written_once_and_is_always_the_same(tmp_path: Path):
    first = lesson.lay_out(tmp_path / "one")
    times = {p: p.stat().st_mtime_ns for p in first.rglob("*.*")}
    lesson.lay_out(first)
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*.*")} == times
    second = lesson.lay_out(tmp_path / "two")
    for path in first.rglob("*.png"):
        assert (second / path.relative_to(first)).read_bytes() == path.read_bytes()
