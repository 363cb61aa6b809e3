"""Tar and parquet files as data sets: unpacked once, whole or not at all, and nothing of them anywhere else."""

from __future__ import annotations

import importlib
import io
import json
import os
import tarfile
import threading
from pathlib import Path

import pytest
from PIL import Image

from limner import preflight
from limner.config import Config, Data, files
from limner.data import archives, unpacking
from limner.data.classes import scan_classes
from limner.data.scan import Scan, scan
from limner.data.survey import survey
from limner.errors import StopRequested, UserError
from limner.formats.base import base_of


def picture(colour: int = 0, kind: str = "PNG", size: tuple[int, int] = (40, 32)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (colour, 10, 10)).save(out, kind)
    return out.getvalue()


def tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, content in members.items() if isinstance(members, dict) else members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))
    return path


def quiet(done: int, total: int) -> None:
    del done, total


def config_of(path: Path, **data: object) -> Config:
    return files.build({"data": {"path": str(path), **data}, "model": {"base": "pocket"}}, {})


def unpacked(path: Path, **data: object) -> Scan:
    config = config_of(path, **data)
    archives.unpack_all(config, quiet)
    return scan(config.data)


def captions(found: Scan) -> dict[str, str]:
    return {os.path.basename(p.path): p.caption for p in found.pictures}


def refused(path: Path, **data: object) -> str:
    with pytest.raises(UserError) as caught:
        unpacked(path, **data)
    return str(caught.value)


# --- what is read ------------------------------------------------------------------------------------------------------


def test_a_shard_of_samples_with_captions_in_text_and_json(tmp_path: Path) -> None:
    many = json.dumps({"caption": ["one", "two"]}).encode()
    path = tar(tmp_path / "cats.tar", {
        "0/a.jpg": picture(kind="JPEG"), "0/a.json": b'{"caption": "from json"}', "0/a.txt": b"from text",
        "0/b.png": picture(), "0/b.json": b'{"text": "a bee", "width": 3}', "0/b.cls": b"7",
        "0/c.webp": picture(kind="WEBP"), "0/c.caption": b"sea",
        "0/d.bmp": picture(kind="BMP"), "0/d.json": many,
    })  # fmt: skip
    found = unpacked(path)
    assert captions(found) == {"a.jpg": "from text", "b.png": "a bee", "c.webp": "sea", "d.bmp": "one"}
    assert [(p.width, p.height) for p in found.pictures] == [(40, 32)] * 4
    assert (found.broken, found.warnings) == ([], [])
    assert captions(unpacked(path, wildcards=True))["d.bmp"] == "one\ntwo"


def test_a_text_wins_over_json_wherever_it_stands(tmp_path: Path) -> None:
    members = [("a.json", b'{"caption": "json"}'), ("z.png", picture()), ("a.png", picture()), ("a.caption", b"text")]
    assert captions(unpacked(tar(tmp_path / "a.tar", members), trigger="zwx")) == {"a.png": "text", "z.png": "zwx"}


def test_the_column_chooses_among_what_json_says(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": picture(), "a.json": b'{"caption": "short", "long": "a long one", "n": 3}'})
    assert captions(unpacked(path)) == {"a.png": "short"}
    assert captions(unpacked(path, caption_column="long")) == {"a.png": "a long one"}
    assert captions(unpacked(path, caption_column="n", trigger="t")) == {"a.png": "t"}


def test_folders_of_shards_keep_equal_names_apart(tmp_path: Path) -> None:
    for shard in ("s-0", "s-1"):
        tar(tmp_path / "data" / f"{shard}.tar", {"000.png": picture(), "000.txt": shard.encode()})
    for given in (tmp_path, tmp_path / "data"):  # as the Hugging Face hub lays a data set out
        assert [(p.caption, Path(p.path).parent.name) for p in unpacked(given).pictures] == [("s-0", "s-0"), ("s-1", "s-1")]


def test_kohya_names_hold_of_an_archive_and_in_it(tmp_path: Path) -> None:
    (alone,) = unpacked(tar(tmp_path / "7_sks dog.tar", {"a.png": picture()})).pictures
    assert (alone.repeats, alone.caption) == (7, "sks dog")
    inside = unpacked(tar(tmp_path / "all.tar", {"3_cat/a.png": picture(), "1_dog/b.PNG": picture()})).pictures
    assert [(p.repeats, p.caption) for p in inside] == [(1, "dog"), (3, "cat")]


def test_archives_as_subsets_class_pictures_and_held_out_ones(tmp_path: Path) -> None:
    one, two = (tar(tmp_path / f"{n}.tar", {"deep/er/a.png": picture(), "deep/er/a.txt": n.encode()}) for n in ("one", "two"))
    table = tmp_path / "sets.toml"
    table.write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "one.tar"\nnum_repeats = 5\n')
    config = files.build({
        "data": {"subsets": str(table), "class_path": str(two)}, "validation": {"path": str(two)}, "model": {"base": "pocket"},
    }, {})  # fmt: skip
    assert [field for field, _ in archives.of_config(config)] == ["data.subsets", "data.class_path", "validation.path"]
    archives.unpack_all(config, quiet)
    assert [(p.caption, p.repeats) for p in scan(config.data).pictures] == [("one", 5)]
    assert [(p.caption, p.is_class) for p in scan_classes(config.data).pictures] == [("two", True)]
    with pytest.raises(UserError, match=r"data\.class_count.*archive"):
        scan_classes(config.data.model_copy(update={"class_count": 3}))
    assert one.exists()


def test_a_folder_with_pictures_is_read_as_before(tmp_path: Path) -> None:
    tar(tmp_path / "old.tar", {"a.png": picture()})
    (tmp_path / "b.png").write_bytes(picture())
    assert archives.find(Data(path=tmp_path)) is None
    assert captions(unpacked(tmp_path, trigger="t")) == {"b.png": "t"}


# --- once, and whole or not at all -------------------------------------------------------------------------------------


def test_an_archive_is_unpacked_once_and_anew_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times, real = [], archives.KINDS[".tar"]
    monkeypatch.setitem(archives.KINDS, ".tar", lambda *a: (times.append(a[0].name), real(*a))[1])
    path = tar(tmp_path / "a.tar", {"a.png": picture()})
    first = unpacked(path, trigger="t").pictures[0].path
    assert unpacked(path, trigger="t").pictures[0].path == first
    assert times == ["a.tar"]
    before = path.stat()
    tar(path, {"b.png": picture()})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time: the content tells
    assert path.stat().st_size == before.st_size
    assert captions(unpacked(path, trigger="t")) == {"b.png": "t"}
    os.remove(unpacked(path, trigger="t").pictures[0].path)  # somebody cleaned up
    assert captions(unpacked(path, trigger="t")) == {"b.png": "t"}
    assert len(times) == 3


def test_a_stop_half_way_leaves_nothing_and_the_next_start_begins_again(tmp_path: Path, home: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"{i}.png": picture(i) for i in range(5)})
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise StopRequested

    with pytest.raises(StopRequested):
        archives.unpack_all(config_of(path), stop)
    assert [p.name for p in (home / "cache" / "archives").iterdir() if p.suffix != ".lock"] == []
    # one that was killed leaves its half
    archive = archives.find(config_of(path).data)
    assert archive is not None
    half = archive.folder.with_name(f".tmp-{archive.folder.name[:16]}")
    (half / "a").mkdir(parents=True)
    (half / "a" / "9.png").write_bytes(b"half")
    assert sorted(captions(unpacked(path, trigger="t"))) == [f"{i}.png" for i in range(5)]
    assert not half.exists()


def test_two_at_once_unpack_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times, real = [], archives.KINDS[".tar"]
    begun = threading.Event()

    def slow(*args) -> None:
        times.append(1)
        begun.wait(5)
        real(*args)

    monkeypatch.setitem(archives.KINDS, ".tar", slow)
    path, done = tar(tmp_path / "a.tar", {"a.png": picture()}), []
    both = [threading.Thread(target=lambda: done.append(len(unpacked(path, trigger="t").pictures))) for _ in range(2)]
    for thread in both:
        thread.start()
    begun.set()
    for thread in both:
        thread.join(20)
    assert (done, times) == ([1, 1], [1])


# --- before the start --------------------------------------------------------------------------------------------------


def test_a_check_unpacks_nothing_and_says_so(tmp_path: Path, home: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": picture()})
    config = config_of(path, trigger="zwx")
    findings, records = preflight.examine(config, None)
    (said,) = [f for f in findings if f.field == "data.path"]
    assert said.severity == "note" and "is unpacked when the run starts" in said.message
    assert records.scan is None and not (home / "cache" / "archives").exists()
    assert not any(f.field.startswith("data.") and f.severity == "error" for f in findings)
    archives.unpack_all(config, quiet)
    findings, records = preflight.examine(config, None)
    assert records.scan is not None and len(records.scan.pictures) == 1
    assert not any(f.field == "data.path" for f in findings)
    with pytest.raises(UserError, match="archive"):
        survey(config, base_of(config.model))


def test_too_little_room_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": picture()})
    monkeypatch.setattr(archives.disk, "free_bytes", lambda _: 100)
    findings, _ = preflight.examine(config_of(path), None)
    assert any(f.field == "data.path" and f.severity == "error" and "LIMNER_HOME" in f.remedy for f in findings)
    assert "MiB are free" in refused(path)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": picture()})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpacking.shutil, "copyfileobj", full)
    assert "No space left" in refused(path)
    assert [p.name for p in (home / "cache" / "archives").iterdir() if p.suffix != ".lock"] == []


def test_an_idle_column_and_other_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    warned = scan(Data(path=tmp_path, trigger="t", caption_column="x")).warnings
    assert [w.field for w in warned if "no effect" in w.message] == ["data.caption_column"]
    (other := tmp_path / "b.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="Unpack it"):
        scan(Data(path=other))


# --- hostile ones ------------------------------------------------------------------------------------------------------


def test_nothing_leaves_the_folder(tmp_path: Path, home: Path) -> None:
    path, outside = tmp_path / "in" / "evil.tar", tmp_path / "outside"
    outside.mkdir()
    path.parent.mkdir()
    kinds = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE}
    with tarfile.open(path, "w") as out:
        for name in (f"{outside}/abs.png", "../../up.png", "a/../../../up.png", ".hidden.png", "good.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(picture())
            out.addfile(entry, io.BytesIO(picture()))
        for name, kind in kinds.items():
            entry = tarfile.TarInfo(f"{name}.png")
            entry.type, entry.linkname = kind, str(outside)
            out.addfile(entry)
        entry = tarfile.TarInfo("link.png/through.png")
        entry.size = len(picture())
        out.addfile(entry, io.BytesIO(picture()))
    found = unpacked(path, trigger="t")
    assert sorted(captions(found)) == ["good.png", "through.png"]
    assert [p.name for p in outside.iterdir()] == [] and not list(tmp_path.glob("*.png"))
    files_there = [p for p in home.rglob("*") if not p.is_dir() and p.suffix != ".lock"]
    assert {p.name for p in files_there} == {"good.png", "through.png", "unpacked.json"}
    assert not any(p.is_symlink() for p in home.rglob("*"))
    said = " ".join(w.message for w in found.warnings)
    assert "3 left out: names that lead out" in said and "2 left out: links" in said and "2 left out: entries" in said


@pytest.mark.parametrize("name", [
    "a b 'quote\" ünï.png", "line\nbreak.png", "con.png", "a:b?.png", "x" * 250 + ".png", "é" * 120 + ".png",
    "back\\slash.png", "dot./in.png", "\udcff.png",
])  # fmt: skip
def test_names_that_systems_do_not_take_are_changed_with_their_caption(tmp_path: Path, name: str) -> None:
    text = name.removesuffix("png") + "txt"
    (found,) = unpacked(tar(tmp_path / "a.tar", {name: picture(), text: b"said"})).pictures
    assert found.caption == "said"
    assert all(len(part.encode()) <= 255 for part in Path(found.path).parts)
    assert not set('<>:"|?*\\\n') & set(os.path.basename(found.path))


def test_names_that_fall_together_are_told_and_the_first_stays(tmp_path: Path) -> None:
    found = unpacked(tar(tmp_path / "a.tar", [("a:b.png", picture(1)), ("a?b.png", picture(2)), ("a_b.png", picture(3))]))
    assert Image.open(found.pictures[0].path).getpixel((0, 0)) == (1, 10, 10)
    assert any("2 left out: names that are taken" in w.message for w in found.warnings)


def test_headers_that_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tar(tmp_path / "good.tar", {f"{i}.png": picture() for i in range(3)}).read_bytes()
    (cut := tmp_path / "cut.tar").write_bytes(good[: 512 + 60])
    (wild := tmp_path / "wild.tar").write_bytes(good[:1024] + b"\xff" * 512 + good[1536:])
    (none := tmp_path / "none.tar").write_bytes(b"not a tar file" * 100)
    (nothing := tmp_path / "nothing.tar").write_bytes(b"")
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (huge := tmp_path / "huge.tar").write_bytes(long.tobuf(tarfile.GNU_FORMAT) + good)
    for path in (cut, wild, none, nothing, huge):
        assert "damaged" in refused(path), path
    assert "no picture" in refused(tar(tmp_path / "texts.tar", {"a.txt": b"x"}))


def test_no_more_than_so_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "a.tar", {f"{i}.png": picture() for i in range(3)})
    monkeypatch.setattr(unpacking, "MAX_FILES", 2)
    assert "far more" in refused(path)
    monkeypatch.undo()
    monkeypatch.setattr(unpacking, "MAX_TEXT_BYTES", 10)
    big = tar(tmp_path / "b.tar", {"a.png": picture(), "a.txt": b"x" * 11})
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path / "home"))
    assert any("too large" in w.message for w in unpacked(big, trigger="t").warnings)


def test_odd_json_is_counted_and_harmless(tmp_path: Path) -> None:
    deep, odd = b"[" * 100_000, b'{"caption": {"a": 1}}'
    members = {f"{i}.png": picture() for i in range(4)} | {"0.json": deep, "1.json": odd, "2.json": b"\xff", "3.json": b"[1]"}
    found = unpacked(tar(tmp_path / "a.tar", members), trigger="t")
    assert set(captions(found).values()) == {"t"}
    assert any("2 left out: .json files that hold no JSON" in w.message for w in found.warnings)


def test_a_link_to_an_archive_outside_is_barred(tmp_path: Path) -> None:
    real = tar(tmp_path / "elsewhere" / "a.tar", {"a.png": picture()})
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "a.tar").symlink_to(real)
    inside = str(shards.resolve())
    with pytest.raises(UserError, match="outside the allowed folders"):
        scan(Data(path=shards), lambda p: os.path.realpath(p).startswith(inside))


# --- parquet -----------------------------------------------------------------------------------------------------------


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(archives.parquet, "find_spec", lambda _: None)
    findings, _ = preflight.examine(config_of(path), None)
    (lack,) = [f for f in findings if f.field == "data.path" and f.severity == "error"]
    assert lack.remedy == 'pip install "limner[parquet]"'
    assert "limner[parquet]" in refused(path)


def table(path: Path, /, **columns: list) -> Path:
    pa = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    importlib.import_module("pyarrow.parquet").write_table(pa.table(columns), path)
    return path


def test_parquet_as_datasets_writes_it(tmp_path: Path) -> None:
    pictures = [{"bytes": picture(i, kind), "path": "../x.png"} for i, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    rows = [*pictures, {"bytes": None, "path": "/etc/passwd"}, None, {"bytes": b"GIF89a", "path": None}]
    texts = ["one", "two", None, "four", "five", "six"]
    path = table(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", image=rows, text=texts, other=texts[::-1])
    found = unpacked(tmp_path / "set", trigger="t")
    stem = path.stem
    assert captions(found) == {f"{stem}-00000000.png": "one", f"{stem}-00000001.jpg": "two", f"{stem}-00000002.webp": "t"}
    said = " ".join(w.message for w in found.warnings)
    assert "2 left out: rows that hold no picture" in said and "1 left out: rows whose picture is none" in said
    assert captions(unpacked(path, trigger="t", caption_column="other"))[f"{stem}-00000000.png"] == "six"
    assert "no column 'nope'; its columns are image, text, other" in refused(path, caption_column="nope")


def test_parquet_of_plain_bytes_and_of_lists_of_captions(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", jpg=[picture()] * 40, caption=[["a", "b"]] * 40)
    found = unpacked(path, wildcards=True)
    assert (len(found.pictures), {p.caption for p in found.pictures}) == (40, {"a\nb"})
    assert "no column of pictures" in refused(table(tmp_path / "b.parquet", path=["a.png"]))
    assert "no column of pictures" in refused(table(tmp_path / "c.parquet", one=[b"x"], two=[b"y"]))


def test_damaged_parquet(tmp_path: Path) -> None:
    whole = table(tmp_path / "a.parquet", image=[picture(i) for i in range(30)]).read_bytes()
    hole = b"PAR1" + b"\0" * 800 + whole[804:]
    for name, content in {"cut": whole[:200], "none": b"PAR1" * 20, "empty": b"", "hole": hole}.items():
        (path := tmp_path / f"{name}.parquet").write_bytes(content)
        assert "damaged" in refused(path), name


def test_one_picture_a_million_times_is_not_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "bomb.parquet", image=[picture(size=(300, 300))] * 50_000)
    monkeypatch.setattr(archives, "_SPARE_BYTES", 1 << 20)
    assert path.stat().st_size < 100_000
    assert "far more than its size tells" in refused(path)
