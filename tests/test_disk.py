"""Whatever happens while writing, a reader finds the old file or the new one, whole."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from limner import disk
from limner.errors import wrong


class Crash(BaseException):
    """The machine stops here."""


CALLS = ("os.replace", "os.fsync")


def crashing(monkeypatch: pytest.MonkeyPatch, at: int, after: bool) -> Callable[[], int]:
    """Crash at (or just after) the at-th call of replace or fsync; returns how many calls there were."""
    made = 0

    def wrap(real: Callable) -> Callable:
        def call(*arguments):
            nonlocal made
            made += 1
            if made == at and not after:
                raise Crash
            out = real(*arguments)
            if made == at:
                raise Crash
            return out

        return call

    for name in CALLS:
        monkeypatch.setattr(name, wrap(getattr(os, name.split(".")[1])))
    return lambda: made


def states(work: Callable[[], None], reset: Callable[[], None], read: Callable[[], str]) -> Iterator[str]:
    """What a reader finds after a crash at each point of `work`, then without one."""
    for after in (False, True):
        for at in range(1, 100):
            reset()
            with pytest.MonkeyPatch.context() as patch:
                calls = crashing(patch, at, after)
                with contextlib.suppress(Crash):
                    work()
            if calls() < at:
                break
            yield read()
    reset()
    work()
    yield read()


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(disk.TEMPORARY)]


def test_a_file_is_the_old_or_the_new_one_at_every_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    found = list(states(lambda: disk.write_text(path, "new"), lambda: path.write_text("old"), path.read_text))
    assert len(found) == 7 and set(found) == {"old", "new"} and found[-1] == "new"
    assert leftovers(tmp_path) == []


def test_a_folder_is_the_old_or_the_new_one_at_every_crash(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"

    def read() -> str:
        disk.sweep(tmp_path)
        assert disk.manifest_faults(folder) == []
        return (folder / "a").read_text() + (folder / "sub" / "b").read_text()

    found = list(states(lambda: fill(folder, "new"), lambda: fill(folder, "old"), read))
    assert set(found) == {"oldold", "newnew"} and found[-1] == "newnew"
    assert leftovers(tmp_path) == []


def fill(folder: Path, content: str) -> None:
    def write(temporary: Path) -> None:
        (temporary / "a").write_text(content)
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_text(content)

    disk.write_folder(folder, write)


def test_a_folder_killed_between_its_two_renames_is_put_back(tmp_path: Path) -> None:
    """A process that is killed does not clean up: the old folder has given its name away, the new one has none yet."""
    folder = tmp_path / "step-1"
    fill(folder, "old")
    folder.rename(tmp_path / f"{disk.TEMPORARY}was-step-1")
    (tmp_path / f"{disk.TEMPORARY}0123456789ab").mkdir()
    disk.sweep(tmp_path)
    assert (folder / "a").read_text() == "old" and os.listdir(tmp_path) == ["step-1"]
    fill(tmp_path / f"{disk.TEMPORARY}was-step-1", "older")
    fill(folder, "new")
    disk.sweep(tmp_path)
    assert (folder / "a").read_text() == "new" and os.listdir(tmp_path) == ["step-1"]


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with disk.replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    with pytest.raises(ValueError, match="JSON"):
        disk.write_json(path, {"a": float("nan")})
    with pytest.raises(ZeroDivisionError):
        disk.write_folder(tmp_path / "folder", lambda _: 1 // 0)  # type: ignore[arg-type, return-value]
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    value = {"ü": ["猫", 1, 1.5, None, True], "text": "a\nb\r\n\u2028"}
    disk.write_json(path, value)
    assert disk.read_json(path) == value
    disk.write_text(path, os.fsdecode(b"caf\xe9\n"))
    assert path.read_bytes() == b"caf\xe9\n"
    disk.write_bytes(path, b"\x00\r\n\xff")
    assert path.read_bytes() == b"\x00\r\n\xff"


@pytest.mark.skipif(os.name == "nt", reason="255 bytes on POSIX")
def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    disk.write_text(path, "x")
    assert path.read_text() == "x"


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"a": 1', b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
def test_what_is_no_json_reads_as_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    assert disk.read_json(path) is None
    assert disk.read_json(tmp_path) is None
    path.write_text('{"a": 12345}')
    assert disk.read_json(path, limit=5) is None


def test_a_manifest_finds_every_fault(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    fill(folder, "content")
    assert disk.manifest_faults(folder) == []
    manifest = json.loads((folder / disk.MANIFEST).read_text())
    assert manifest["files"]["sub/b"] == {
        "bytes": 7,
        "sha256": "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73",
    }
    (folder / "extra").write_text("more")
    assert disk.manifest_faults(folder) == []
    (folder / "a").write_text("cOntent")
    assert disk.manifest_faults(folder) == ["a is damaged"]
    (folder / "sub" / "b").unlink()
    (folder / "a").write_text("content more")
    assert disk.manifest_faults(folder) == ["a is damaged", "sub/b is missing"]
    for content in (
        "",
        "[]",
        '{"files": []}',
        '{"files": {"a": 3}}',
        '{"files": {"a": {}}}',
        '{"files": {"../x": {"bytes": 0}}}',
    ):
        (folder / disk.MANIFEST).write_text(content)
        assert disk.manifest_faults(folder) != []
    assert disk.manifest_faults(tmp_path / "none") == [f"{disk.MANIFEST} is missing or unreadable"]


def test_sweeping_takes_temporary_names_only(tmp_path: Path) -> None:
    ours = f"{disk.TEMPORARY}0123456789ab"
    for name in (ours, "a.tmp", "keep", ".tmp-theirs", f"sub/{ours}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".tmp-was-theirs").mkdir()
    (tmp_path / f"{disk.TEMPORARY}ba9876543210" / "x").mkdir(parents=True)
    disk.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".tmp-theirs", ".tmp-was-theirs", "a.tmp", "keep", "sub"]
    assert os.listdir(tmp_path / "sub") == [ours]
    disk.sweep(tmp_path / "none")


def test_what_cannot_have_its_name_back_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has a file in it open, on Windows: it is the only one that is left."""
    fill(tmp_path / "model", "old")
    (tmp_path / "model").rename(tmp_path / f"{disk.TEMPORARY}was-model")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "in use")

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, "replace", refuse)
        disk.sweep(tmp_path)
    disk.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["model"] and disk.manifest_faults(tmp_path / "model") == []


def test_a_folder_on_a_disk_that_is_gone_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(OSError):
        disk.make_folder(Path("a/b"))


class Native(Exception):
    """As safetensors raises it: no OSError, and no number but in its words."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(28, "No space left on device", "/x/.tmp-0123/weights"),
        Native("Error while serializing: I/O error: No space left on device (os error 28)"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
def test_what_the_system_refuses_is_said_of_the_file_that_is_meant(tmp_path: Path, error: Exception) -> None:
    def fail(_: Path) -> None:
        raise error

    with pytest.raises(OSError) as caught, disk.replacing(tmp_path / "a") as temporary:
        fail(temporary)
    assert (caught.value.errno, caught.value.filename) == (28, str(tmp_path / "a"))
    with pytest.raises(OSError) as caught:
        disk.write_folder(tmp_path / "b", fail)
    assert (caught.value.errno, caught.value.filename) == (28, str(tmp_path / "b")) and os.listdir(tmp_path) == []


def test_what_is_not_the_systems_or_of_another_file_stays_what_it_is(tmp_path: Path) -> None:
    for error in (OSError("no number"), FileNotFoundError(2, "gone", "/x/other"), ValueError("x"), wrong("x", "(os error 28)")):
        with pytest.raises(type(error)) as caught, disk.replacing(tmp_path / "a"):
            raise error
        assert caught.value is error


def test_what_others_may_be_writing_is_swept_when_nobody_has_touched_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "model", "old")
    (tmp_path / "model").rename(tmp_path / f"{disk.TEMPORARY}was-model")
    (tmp_path / f"{disk.TEMPORARY}0123456789ab").write_text("x")
    disk.sweep(tmp_path, idle_seconds=60)
    assert len(leftovers(tmp_path)) == 2
    monkeypatch.setattr(disk.time, "time", lambda now=disk.time.time() + 61: now)
    disk.sweep(tmp_path, idle_seconds=60)
    assert os.listdir(tmp_path) == ["model"] and disk.manifest_faults(tmp_path / "model") == []


def test_a_folder_is_deleted_from_its_name_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far the deletion got, nothing is left under the name that it had."""
    fill(tmp_path / "step-1", "old")
    with monkeypatch.context() as patch:
        patch.setattr(disk.shutil, "rmtree", lambda path, **_: (path / disk.MANIFEST).unlink())
        disk.remove(tmp_path / "step-1")
    assert len(leftovers(tmp_path)) == 1 == len(os.listdir(tmp_path))
    disk.sweep(tmp_path)
    (tmp_path / "file").write_text("x")
    disk.remove(tmp_path / "file")
    disk.remove(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert disk.free_bytes(tmp_path / "a" / "b") == pytest.approx(disk.free_bytes(tmp_path), rel=0.05)
    assert disk.free_bytes(tmp_path) > 0


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999"])
def test_what_is_ours_holds_finite_numbers(tmp_path: Path, number: bytes) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": [' + number + b"]}")
    assert disk.read_json(tmp_path / "a.json", is_ours=True) is None and isinstance(disk.read_json(tmp_path / "a.json"), dict)
    (tmp_path / "a.json").write_bytes(b'{"a": [1.5, -2e3, 7]}')
    assert disk.read_json(tmp_path / "a.json", is_ours=True) == {"a": [1.5, -2000.0, 7]}
    assert disk.read_json(tmp_path / "a.json", 20) is None, "longer than what we write"


def test_a_manifest_does_not_lead_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    disk.write_folder(tmp_path / "state", lambda folder: (folder / "a").touch())
    path = tmp_path / "state" / disk.MANIFEST
    (known,) = json.loads(path.read_text())["files"].values()
    for name in ("../secret", str(tmp_path / "secret"), "b/../../secret"):
        path.write_text(json.dumps({"files": {"a": known, name: known}}))
        assert disk.manifest_faults(tmp_path / "state") == [f"{name} is outside"]
    path.write_text(json.dumps({"files": {"a": known}}))
    (tmp_path / "state" / "desktop.ini").write_bytes(b"a file more")
    assert disk.manifest_faults(tmp_path / "state") == []


def test_setting_aside_destroys_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for number in range(3):
        path.write_bytes(b"%d" % number)
        aside = disk.set_aside(path)
        assert aside is not None and aside.read_bytes() == b"%d" % number and not path.exists()
    (path / "inside").mkdir(parents=True)
    aside = disk.set_aside(path)
    assert aside is not None and (aside / "inside").is_dir() and len(list(tmp_path.iterdir())) == 4
    assert disk.set_aside(path) is None and len(list(tmp_path.iterdir())) == 4, "gone meanwhile: no trace"


@pytest.mark.skipif(os.name == "nt", reason="there a lock that is held cannot be renamed at all")
def test_a_lock_that_came_into_a_folders_place_is_not_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes see a folder in the place of a lock. One sets it aside and holds the lock; then the other renames."""
    path = tmp_path / "x.lock"
    path.touch()
    monkeypatch.setattr(Path, "is_dir", lambda self: True)  # what the other saw a moment ago
    assert disk.set_aside(path) is None
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["x.lock"]


def test_a_file_in_a_folders_place_is_set_aside_and_a_link_to_a_lost_disk_is_not(tmp_path: Path) -> None:
    (tmp_path / "runs").write_bytes(b"x")
    assert disk.own_folder(tmp_path / "runs").is_dir() and len(list(tmp_path.glob("runs.damaged-*"))) == 1
    (tmp_path / "models").symlink_to(tmp_path / "usb" / "models")
    with pytest.raises(FileExistsError):
        disk.own_folder(tmp_path / "models")
    assert (tmp_path / "models").is_symlink()


def test_where_a_disk_is_mounted(tmp_path: Path) -> None:
    place = disk.mount_of(tmp_path / "not" / "there")
    assert os.path.ismount(place) and place == disk.mount_of(tmp_path) and tmp_path.resolve().is_relative_to(place)


def test_folders_lie_as_deep_as_they_like(tmp_path: Path):
    """And what os.walk tells of others is told too, links left alone."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "x").touch()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b", target_is_directory=True)
    assert sorted(map(str, disk.walk(tmp_path))) == sorted(map(str, os.walk(tmp_path)))
    before = os.getcwd()
    os.chdir(tmp_path / "a")
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    os.chdir(before)
    assert sum("d" in folders for _, folders, _ in disk.walk(tmp_path)) == 1500
    for inside, _, _ in list(disk.walk(tmp_path / "a"))[::-1]:
        if inside.endswith("d"):
            os.rmdir(inside)
