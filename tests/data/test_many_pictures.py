"""A large folder: quick, small in memory, and not read again while nothing has changed."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from limner.config import Data, files
from limner.data import headers, remembered
from limner.data.dataset import assemble
from limner.data.scan import Picture, scan
from limner.formats.base import Base

COUNT = 5000
BASE = Base("x", None, "folder", "sd1", "epsilon", 512, 64)
LONG_AGO = time.time() - 3600


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many")
    (originals := root / "originals").mkdir()
    (folder := root / "pictures").mkdir()
    for i in range(20):
        Image.new("RGB", (64 + i, 96 + i), (i, 90, 2 * i)).save(picture := originals / f"{i}.{('png', 'jpg')[i % 2]}")
        (caption := originals / f"{i}.txt").write_text(f"photo number {i} of a thing, outdoors, blue sky, tree, grass")
        os.utime(picture, (LONG_AGO, LONG_AGO))
        os.utime(caption, (LONG_AGO, LONG_AGO))
    for i in range(COUNT):
        kind = ("png", "jpg")[i % 2]
        os.link(originals / f"{i % 20}.{kind}", folder / f"picture_{i:05d}.{kind}")
        os.link(originals / f"{i % 20}.txt", folder / f"picture_{i:05d}.txt")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def facts(pictures: list[Picture]) -> list[tuple]:
    return [(p.path, p.width, p.height, p.caption, p.repeats) for p in pictures]


def test_a_picture_takes_little_time_and_memory(many: Path, home: Path) -> None:
    config = files.build({"data": {"path": str(many)}}, {})
    start = time.process_time()
    assemble(config, BASE, scan(config.data).pictures)
    assert time.process_time() - start < COUNT * 300e-6  # 73 µs are aimed at: see benchmarks/pictures.py
    tracemalloc.start()
    data = assemble(config, BASE, scan(config.data).pictures)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.num_pictures == COUNT and held / COUNT <= 400


def test_what_has_not_changed_is_not_read_again(many: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan(Data(path=many)).pictures
    assert len(first) == COUNT and {p.width for p in first} == set(range(64, 84))
    assert first[7].caption == "photo number 7 of a thing, outdoors, blue sky, tree, grass"
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("read again"))
    assert facts(scan(Data(path=many)).pictures) == facts(first)
    start = time.process_time()
    assert len(scan(Data(path=many, trigger="x")).pictures) == COUNT
    assert time.process_time() - start < COUNT * 100e-6


@pytest.fixture
def few(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("limner.data.scan.MANY", 3)
    (folder := tmp_path / "few").mkdir()
    for name in "abcd":
        Image.new("RGB", (40, 30)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"caption {name}")
    (folder / "d.txt").unlink()
    age(folder)
    scan(Data(path=folder))
    return folder


def age(folder: Path) -> None:
    for file in folder.iterdir():
        os.utime(file, (LONG_AGO, LONG_AGO))


def seen(folder: Path, **options) -> list[tuple[int, int, str]]:
    return [(p.width, p.height, p.caption) for p in scan(Data(path=folder, **options)).pictures]


def test_whatever_changes_is_read_again(few: Path) -> None:
    plain = [(40, 30, f"caption {n}") for n in "abc"] + [(40, 30, "")]
    assert seen(few) == plain
    Image.new("RGB", (50, 60)).save(few / "a.png")
    (few / "b.txt").write_text("another")
    (few / "c.txt").unlink()
    (few / "d.caption").write_text("new")
    changed = [(50, 60, "caption a"), (40, 30, "another"), (40, 30, ""), (40, 30, "new")]
    assert seen(few) == changed and seen(few) == changed
    age(few)
    assert seen(few) == changed
    (few / "e.png").write_bytes((few / "a.png").read_bytes())
    (few / "a.png").unlink()
    assert seen(few) == [*changed[1:], (50, 60, "")]


def test_a_file_of_the_same_size_and_time_is_told_by_its_inode(few: Path) -> None:
    (few / "new").write_text("caption X")
    os.utime(few / "new", (LONG_AGO, LONG_AGO))
    os.replace(few / "new", few / "a.txt")
    assert seen(few)[0] == (40, 30, "caption X")


def test_what_is_just_being_written_is_not_remembered(few: Path) -> None:
    (few / "a.txt").write_text("caption 1")
    assert seen(few)[0][2] == "caption 1"
    stat = os.stat(few / "a.txt")
    (few / "a.txt").write_text("caption 2")  # as long, and with a coarse clock at the same time
    os.utime(few / "a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert seen(few)[0][2] == "caption 2"


def test_options_that_read_captions_otherwise(few: Path) -> None:
    (few / "a.txt").write_text("one\ntwo")
    (few / "a.caption").write_text("three")
    age(few)
    for _ in range(2):
        assert seen(few)[0][2] == "one"
        assert seen(few, wildcards=True)[0][2] == "one\ntwo"
        assert seen(few, caption_extensions=[".caption", ".txt"])[0][2] == "three"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a.png": 3}', '{"a.png": "x"}', "\xe9", "[" * 100_000])
def test_damage_is_no_matter(few: Path, home: Path, content: str) -> None:
    plain = seen(few)
    [file] = (home / "cache" / "folders").iterdir()
    file.write_bytes(content.encode("latin-1"))
    assert seen(few) == plain
    assert set(json.loads(file.read_text())) == {f"{n}.png" for n in "abcd"}


def test_broken_pictures_are_named_each_time(few: Path) -> None:
    (few / "b.png").write_bytes(b"")
    age(few)
    for _ in range(2):
        found = scan(Data(path=few))
        assert len(found.pictures) == 3 and [f.field for f in found.broken] == [str(few / "b.png")]


def test_small_folders_leave_nothing(tmp_path: Path, home: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    scan(Data(path=tmp_path))
    assert not (home / "cache").exists()
    assert remembered.MANY > 1 and headers.size_of(str(tmp_path / "a.png")) == ("", 40, 30)
