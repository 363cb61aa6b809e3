"""What a zip may cost: a directory without end is not read, many pictures of one name are counted once, a full disk is said."""

from __future__ import annotations

import errno
import io
import shutil
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest

from limner.data.scan import EXTENSIONS
from limner.errors import UserError
from limner.web import intake


def directory_of(entries: int, *, zip64: bool) -> bytes:
    """A zip that is nothing but the list of its files, with names of 200 characters."""
    head = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 204, 0, 0, 0, 0, 0, 0)
    listed = b"".join(head + b"%0200d.png" % i for i in range(entries))
    if not zip64:
        return listed + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, len(listed), 0, 0)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, len(listed), 0)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, len(listed), 1)
    return listed + end + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


@pytest.mark.parametrize("zip64", [False, True])
def test_a_directory_without_end_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zip64: bool
) -> None:
    (tmp_path / "few").write_bytes(directory_of(3, zip64=zip64))
    with zipfile.ZipFile(tmp_path / "few") as archive:
        assert len(archive.infolist()) == 3  # it is a zip
    read, real = [], zipfile.ZipInfo
    monkeypatch.setattr(zipfile, "ZipInfo", lambda *given: read.append(given) or real(*given))
    (tmp_path / "many").write_bytes(directory_of(40_000, zip64=zip64))
    with pytest.raises(UserError, match="lists too many files"):
        intake.put(tmp_path / "many", "many.zip", tmp_path)
    assert read == []


def zip_of(path: Path, names: list[str]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile's, of names that come twice
        for name in names:
            archive.writestr(name, name.encode())
    return path


def test_many_pictures_of_one_name_are_not_counted_from_one_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "set").mkdir()
    (folder / "a.jpg").write_bytes(b"was here")
    asked, real = [], Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: asked.append(path) or real(path))
    saved, _ = intake.put(zip_of(tmp_path / "z", ["a.png"] * 60 + ["b.png"] * 2), "z.zip", folder)
    assert saved == [*(f"a-{i}.png" for i in range(2, 62)), "b.png", "b-2.png"]
    assert (folder / "a.jpg").read_bytes() == b"was here"
    assert len(asked) <= 62 * 3 * len(EXTENSIONS)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_fault_of_the_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(source: io.IOBase, target: Any, size: int) -> None:
        target.write(b"half")
        raise OSError(number, "no space")

    packed = zip_of(tmp_path / "z", ["a.png"])
    (folder := tmp_path / "set").mkdir()
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"does not fit on the disk.*\n?.*Free some space"):
        intake.put(packed, "z.zip", folder)
    assert list(folder.iterdir()) == []
