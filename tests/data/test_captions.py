"""Captions beside pictures: in any encoding trouble, with any ending, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from limner.config import Data
from limner.data.scan import Scan, clean_caption, scan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (folder := tmp_path / "pics").mkdir()
    return folder


def put(path: Path) -> None:
    Image.new("RGB", (40, 30)).save(path)


def look(root: Path, **options) -> Scan:
    return scan(Data(path=root, **options))


CAPTIONS = {
    "bom": ("\ufeffa cat".encode(), "a cat"),
    "crlf": (b"a cat\r\nsecond line\r\n", "a cat"),
    "blank": (b"\r\n  \n\ta cat \n", "a cat"),
    "separator": ("a cat\u2028more".encode(), "a cat"),
    "control": (b"a\x00 c\x1b[2Ja\x07t\ttail", "a c[2Jat tail"),
    "emoji": ("猫 🐈‍⬛ ñ".encode(), "猫 🐈‍⬛ ñ"),
    "empty": (b"", ""),
    "spaces": (b"  \n \n", ""),
    "long": (b"word, " * 20_000, ("word, " * 20_000).strip()),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions(root: Path, name: str) -> None:
    put(root / "a.png")
    (root / "a.txt").write_bytes(CAPTIONS[name][0])
    assert [p.caption for p in look(root).pictures] == [CAPTIONS[name][1]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [("é".encode("latin-1"), "UTF-8"), ("a cat".encode("utf-16"), "UTF-8"), (b"x" * (2 << 20), "too large")],
)
def test_captions_that_cannot_be_read_are_named(root: Path, content: bytes, reason: str) -> None:
    put(root / "a.png")
    (root / "a.txt").write_bytes(content)
    found = look(root)
    assert not found.pictures
    assert [Path(f.field).name for f in found.broken] == ["a.txt"] and reason in found.broken[0].message


def test_which_caption_is_taken(root: Path) -> None:
    for name in ("both", "second", "none", "other"):
        put(root / f"{name}.png")
    (root / "both.txt").write_text("from txt")
    (root / "both.caption").write_text("from caption")
    (root / "second.caption").write_text("from caption")
    (root / "other.tags").write_text("from tags")
    assert [p.caption for p in look(root).pictures] == ["from txt", "", "", "from caption"]
    assert [p.caption for p in look(root, caption_extensions=(".tags", ".caption")).pictures] == [
        "from caption",
        "",
        "from tags",
        "from caption",
    ]
    [warning] = look(root).warnings
    assert warning.field == "data.trigger" and warning.message.startswith("2 of 4 pictures have no caption")


def test_a_trigger_that_captions_lack_is_said(root: Path) -> None:
    for i in range(3):
        put(root / f"{i}.png")
        (root / f"{i}.txt").write_text("a Zwx" if i else "a dog")
    [warning] = look(root, trigger="zwx").warnings
    assert "missing in 1 of 3" in warning.message


def test_clean_caption() -> None:
    assert clean_caption("a\tb\x7f\n") == "a b"
