"""Folders as people have them: kohya's names, odd captions, broken pictures, links, pipes, names in any script."""

from __future__ import annotations

import os
import random
import struct
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from limner.config import Data
from limner.data.scan import Scan, scan
from limner.errors import UserError

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX file systems only")


def encoded(size: tuple[int, int] = (40, 30), kind: str = "PNG", mode: str = "RGB", **options) -> bytes:
    out = BytesIO()
    Image.new(mode, size, 128 if mode in ("L", "P") else (90, 120, 150)).save(out, kind, **options)
    return out.getvalue()


def put(path: Path, content: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded() if content is None else content)
    return path


def look(root: Path, **options) -> Scan:
    found = scan(Data(path=root, **options))
    for finding in [*found.broken, *found.warnings]:
        assert finding.field and finding.remedy and finding.message.endswith("."), finding
        assert str(finding).isprintable() and len(str(finding)) < 760
    return found


def names(found: Scan) -> list[str]:
    return [Path(p.path).name for p in found.pictures]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (folder := tmp_path / "pics").mkdir()
    return folder


def test_a_plain_folder_with_nested_ones_in_a_fixed_order(root: Path) -> None:
    for name in ("b.png", "a.png", "sub/c.png", "sub/deep/d.png", "another/e.png", ".hidden/f.png", ".g.png", "notes.txt"):
        put(root / name)
    found = look(root, trigger="zwx", repeats=3)
    assert names(found) == ["a.png", "b.png", "e.png", "c.png", "d.png"]
    assert {(p.width, p.height, p.caption, p.repeats) for p in found.pictures} == {(40, 30, "zwx", 3)}
    assert not found.broken and not found.warnings


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_every_format_and_any_case_of_its_ending(root: Path, kind: str) -> None:
    put(root / f"a.{kind}", encoded((123, 45), kind))
    put(root / f"b.{kind.lower()}", encoded((45, 123), kind))
    assert [(p.width, p.height) for p in look(root, trigger="x").pictures] == [(123, 45), (45, 123)]


FOLDERS = {
    "10_cat": (10, "cat"),
    "3_a b, c_d": (3, "a b, c_d"),
    "1_": (1, "zwx"),
    "007_bond": (7, "bond"),
    "999999_x": (100_000, "x"),
    "9999999999_x": (2, "zwx"),
    "-1_x": (2, "zwx"),
    "_x": (2, "zwx"),
    "1e9_x": (2, "zwx"),
    " 5_x": (2, "zwx"),
    "\u0663_x": (2, "zwx"),  # an Arabic three, which int() takes
    "5x": (2, "zwx"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_kohya_folder_names(root: Path, name: str) -> None:
    put(root / name / "a.png")
    put(root / name / "b.png")
    (root / name / "b.txt").write_text("own caption zwx")
    pictures = look(root, trigger="zwx", repeats=2).pictures
    assert [(p.repeats, p.caption) for p in pictures] == [FOLDERS[name], (FOLDERS[name][0], "own caption zwx")]
    pictures = look(root / name, trigger="zwx", repeats=2).pictures
    assert [(p.repeats, p.caption) for p in pictures] == [FOLDERS[name], (FOLDERS[name][0], "own caption zwx")]


def test_zero_repeats_leave_a_folder_out_and_say_so(root: Path) -> None:
    put(root / "0_off" / "a.png")
    put(root / "1_on" / "b.png")
    found = look(root)
    assert names(found) == ["b.png"]
    assert [w.field for w in found.warnings] == ["data.path"] and "0_off" in found.warnings[0].message


@posix
@pytest.mark.timeout(10)
def test_links_pipes_and_folders_named_like_pictures(root: Path) -> None:
    put(root / "a.png")
    put(root / "x.png" / "inside.png")
    (root / "loop").symlink_to(root)
    (root / "x.png" / "up").symlink_to("..")
    (root / "self.png").symlink_to("self.png")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "linked.png").symlink_to("a.png")
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "a.txt")
    (root / "linked.txt").mkdir()
    found = look(root, trigger="x")
    assert sorted(names(found)) == ["a.png", "inside.png", "linked.png"]
    assert {Path(f.field).name: f.message for f in found.broken} == {
        "gone.png": "is a link that leads nowhere.",
        "pipe.png": "is no file (a pipe, socket or device).",
        "self.png": "is a link that leads nowhere.",
    }


def test_pictures_of_other_kinds_are_counted(root: Path) -> None:
    for name in ("a.png", "b.GIF", "sub/c.heic", "d.heic", "notes.md"):
        put(root / name)
    found = look(root, trigger="x")
    assert names(found) == ["a.png"] and not found.broken
    (said,) = (str(w) for w in found.warnings)
    assert "3 pictures are of kinds that Limner does not open (.gif, .heic), and are left out. The first is b.GIF." in said


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_is_named(root: Path) -> None:
    put(root / "a.png").chmod(0)
    put(root / "shut" / "b.png").parent.chmod(0)
    try:
        assert sorted(Path(f.field).name for f in look(root).broken) == ["a.png", "shut"]
    finally:
        (root / "shut").chmod(0o700)


def png_claiming(width: int, height: int) -> bytes:
    return encoded()[:16] + struct.pack(">II", width, height) + encoded()[24:]


BROKEN = {
    "empty.png": (b"", "empty"),
    "text.png": (b"this is text, not a picture", "not a picture"),
    "page.png": (b"<!DOCTYPE html><html></html>", "not a picture"),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90"/>', "not a picture"),
    "zeros.png": (bytes(1000), "not a picture"),
    "start.png": (encoded()[:20], "not a picture"),
    "moving.png": (encoded((40, 40), "GIF", "P"), "not a picture"),
    "scan.jpg": (encoded((40, 40), "TIFF"), "not a picture"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n", "not a picture"),
    "archive.jpg": (b"PK\x03\x04" + bytes(100), "not a picture"),
    "huge.png": (png_claiming(65535, 65535), "million pixels"),
    "endless.png": (png_claiming(2**31 - 1, 2**31 - 1), "million pixels"),
    "flat.png": (png_claiming(0, 10), "not a picture"),
    "dot.png": (encoded((1, 1)), "too small"),
    "line.png": (encoded((8, 20_000)), "long and narrow"),
    "thread.png": (encoded((1, 20_000)), "too small"),
}


def test_every_broken_picture_is_named_with_its_reason(root: Path) -> None:
    for name, (content, _) in BROKEN.items():
        put(root / name, content)
    put(root / "good.png")
    found = look(root, trigger="x")
    assert names(found) == ["good.png"]
    said = {Path(f.field).name: f.message for f in found.broken}
    assert set(said) == set(BROKEN)
    for name, (_, reason) in BROKEN.items():
        assert reason in said[name], (name, said[name])


def test_headers_cut_or_changed_anywhere_never_raise(root: Path) -> None:
    rng = random.Random(0)
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        whole = encoded((40, 30), kind)
        for i in range(60):
            damaged = bytearray(whole[: rng.randrange(1, len(whole))] if i % 2 else whole)
            for _ in range(rng.randrange(4)):
                damaged[rng.randrange(min(len(damaged), 64))] = rng.randrange(256)
            put(root / f"{kind}{i}.png", bytes(damaged))
    found = look(root)
    assert len(found.pictures) + len(found.broken) == 240


NAMES = [
    "with space.png",
    "ünï.png",
    "猫.png",
    "🐈.png",
    "quote'\"$(x);.png",
    "-dash.png",
    "e\u0301.png",
    "\u202egnp.png",
    "x" * 251 + ".png",
]


@posix
def test_names_in_any_script(root: Path) -> None:
    every = [os.fsencode(n) for n in [*NAMES, "two\nlines.png"]] + [b"latin-\xe9.png"]
    for name in every:
        put(Path(os.fsdecode(os.path.join(os.fsencode(root), name))))
        (root / os.fsdecode(name[:-4] + b".txt")).write_text("a caption")
    put(root / os.fsdecode(b"bad-\xff.png"), b"")
    found = look(root)
    assert sorted(os.fsencode(Path(p.path).name) for p in found.pictures) == sorted(every)
    assert {p.caption for p in found.pictures} == {"a caption"}
    assert len(found.broken) == 1


def test_an_empty_folder_has_nothing(root: Path) -> None:
    assert look(root) == Scan()


@pytest.mark.parametrize("name", ["missing", "a.png", "a.png/below", "x" * 300, "nul\0"])
def test_what_is_no_folder(root: Path, name: str) -> None:
    put(root / "a.png")
    with pytest.raises(UserError, match=r"data\.path"):
        scan(Data.model_construct(path=root / name, caption_extensions=(".txt",)))
    with pytest.raises(UserError, match="no folder of pictures is given"):
        scan(Data())


def test_turned_photographs_are_measured_upright(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    put(root / "a.jpg", encoded((64, 32), "JPEG", exif=exif.tobytes()))
    assert [(p.width, p.height) for p in look(root).pictures] == [(32, 64)]


def test_a_thousand_pictures_take_a_second(root: Path) -> None:
    content = encoded()
    for i in range(1000):
        (root / f"{i}.png").write_bytes(content)
        (root / f"{i}.txt").write_text("a caption")
    start = time.process_time()
    assert len(look(root).pictures) == 1000
    assert time.process_time() - start < 1.5
