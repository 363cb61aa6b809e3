"""Folders grouped, balanced, and brought into kohya's form and back: shown before, journalled, taken back to the byte."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import threading
import tomllib
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from limner.config import Data, files
from limner.config.tools import Tools, the_section
from limner.data.scan import scan
from limner.errors import StopRequested, UserError
from limner.tools import balance, from_kohya_folders, group_pictures, to_kohya_folders, undo_folders, unpack
from limner.tools.tool import Report

Tree = dict[str, bytes | None]


def section(tool: str, **options: Any) -> Any:
    given = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    return the_section(files.build_as(Tools, {tool: given}, {}))[1]


def quiet(done: int, total: int, words: str = "") -> None:
    del done, total, words


def tree(folder: Path) -> Tree:
    """Everything in a folder: content, None for folders, the target of links."""
    out: Tree = {}
    for path in sorted(folder.rglob("*")):
        link = os.readlink(path).encode() if path.is_symlink() else None
        out[str(path.relative_to(folder))] = link or (None if path.is_dir() else path.read_bytes())
    return out


def picture(path: Path, width: int = 64, height: int = 64, **beside: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (width % 256, height % 256, 7)).save(path)
    for ending, text in beside.items():
        path.with_suffix(f".{ending}").write_text(text)
    return path


def done(module: ModuleType, tool: str, **options: Any) -> Report:
    """Shown first: nothing changes, and just that happens afterwards."""
    asked = section(tool, **options)
    places = [Path(str(v)).parent for v in options.values() if isinstance(v, Path)]
    before = [tree(p) for p in places]
    seen = module.look(asked)
    assert [tree(p) for p in places] == before
    report = module.run(asked, quiet)
    assert sorted(report.files) == sorted(seen.files)
    return report


def taken_back(folder: Path, again: bool = False) -> Report:
    asked = section("undo_folders", folder=folder, again=again)
    assert "would be" in undo_folders.look(asked).lines[0]
    return undo_folders.run(asked, quiet)


def refused(module: ModuleType, tool: str, **options: Any) -> str:
    asked = section(tool, **options)
    with pytest.raises(UserError) as caught:
        module.run(asked, quiet)
    with pytest.raises(UserError):
        module.look(asked)
    return str(caught.value)


# --- group pictures ---------------------------------------------------------------------------------------------------


def test_pictures_go_into_the_folders_of_their_buckets_with_all_that_is_theirs(tmp_path: Path) -> None:
    root = tmp_path / "pics"
    for i in range(3):
        picture(root / f"wide{i}.JPG", 150, 100, txt=f"wide {i}", npz="latents")
    picture(root / "tall.png", 100, 150, caption="tall")
    for name in ("tall_0832x1216_sdxl.npz", "tall.mask.txt", "note.txt", "tall_2.txt"):
        (root / name).write_text(name)
    before = tree(root)
    report = done(group_pictures, "group_pictures", folder=root, least=1)
    # by sd-scripts' rule at 1024 and 64: of all sides with an area of at most 1024 squared, 1216 x 832 is nearest to 1.5
    assert {str(p) for p in tree(root)} == {
        "1216x832", *(f"1216x832/wide{i}.{e}" for i in range(3) for e in ("JPG", "txt", "npz")), "note.txt", "tall_2.txt",
        "832x1216", *(f"832x1216/{n}" for n in ("tall.png", "tall.caption", "tall_0832x1216_sdxl.npz", "tall.mask.txt")),
    }  # fmt: skip
    assert any("1216x832: 3 pictures" in line for line in report.lines)
    taken_back(root)
    assert tree(root) == before
    taken_back(root, again=True)
    assert (root / "832x1216" / "tall.caption").read_text() == "tall"


def test_small_groups_join_the_nearest(tmp_path: Path) -> None:
    root = tmp_path / "pics"
    for name, (width, height), count in (("sq", (64, 64), 5), ("near", (64, 72), 1), ("wide", (128, 64), 4)):
        for i in range(count):
            picture(root / f"{name}{i}.png", width, height)
    done(group_pictures, "group_pictures", folder=root, least=2)
    assert sorted(p.name for p in root.iterdir()) == ["1024x1024", "1408x704"]
    assert len(list((root / "1024x1024").iterdir())) == 6


def test_groups_by_aspect_are_neighbours_and_no_kohya_folders(tmp_path: Path) -> None:
    root, out = tmp_path / "pics", tmp_path / "out"
    for i in range(10):
        picture(root / f"{i}.png", 60 + 6 * i, 60)
    done(group_pictures, "group_pictures", folder=root, output=out, by="aspect", least=3, how="copy")
    groups = sorted(out.iterdir())
    assert all(not scan(Data(path=g, trigger="t")).pictures[0].caption.startswith("aspect") for g in groups)
    assert all(p.repeats == 1 for g in groups for p in scan(Data(path=g, trigger="t")).pictures)
    spans = [[int(p.stem) for p in g.iterdir()] for g in groups]
    assert sum(map(len, spans)) == 10 and min(map(len, spans)) >= 3
    assert all(max(a) < min(b) for a, b in pairwise(spans))
    assert len(list(root.iterdir())) == 10


def test_links_copies_and_moves(tmp_path: Path) -> None:
    for how in ("copy", "link", "move"):
        root, out = tmp_path / how / "pics", tmp_path / how / "out"
        file = picture(root / "a.png", txt="a")
        inode, times = file.stat().st_ino, file.stat().st_mtime_ns
        done(group_pictures, "group_pictures", folder=root, output=out, least=1, how=how)
        made = out / "1024x1024" / "a.png"
        assert made.stat().st_mtime_ns == times
        assert (made.stat().st_ino == inode) == (how != "copy")
        assert file.exists() == (how != "move")
        taken_back(root)
        assert not out.exists() and file.stat().st_ino == inode


def test_equal_names_of_several_folders_get_numbers_and_keep_their_captions(tmp_path: Path) -> None:
    root, out = tmp_path / "pics", tmp_path / "out"
    for i, name in enumerate(("a", "A", "a")):
        picture(root / str(i) / f"{name}.png", txt=f"of {i}")
    (root / ".hidden").mkdir()
    picture(root / ".hidden" / "b.png")
    done(group_pictures, "group_pictures", folder=root, output=out, subfolders=True, least=1)
    assert {p.name: p.read_text() for p in out.rglob("*.txt")} == {"a.txt": "of 0", "A (2).txt": "of 1", "a (3).txt": "of 2"}
    assert {p.stem for p in out.rglob("*.png")} == {"a", "A (2)", "a (3)"}
    assert (root / ".hidden" / "b.png").exists()


NAMES = ["üñí 猫", "with 'quotes' \"two\"", "line\nbreak", "$(touch x); `y`", "-rf", "x" * 251, "é" * 125, "[a]*?", " space "]


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"no \xff utf8")])
def test_every_name_goes_and_comes_back(tmp_path: Path, name: str) -> None:
    root = tmp_path / "pics"
    picture(root / f"{name}.png", txt="its caption")
    before = tree(root)
    done(group_pictures, "group_pictures", folder=root, least=1)
    assert (root / "1024x1024" / f"{name}.txt").read_text() == "its caption"
    taken_back(root)
    assert tree(root) == before


def test_links_are_left_and_nothing_is_written_through_them(tmp_path: Path) -> None:
    root, outside = tmp_path / "pics", tmp_path / "outside"
    picture(outside / "far.png", txt="far")
    picture(root / "a.png")
    (root / "link.png").symlink_to(outside / "far.png")
    (root / "folder").symlink_to(outside)
    before = tree(outside)
    report = done(group_pictures, "group_pictures", folder=root, subfolders=True, least=1)
    assert any("2 links are left" in f.message for f in report.remarks)
    assert (root / "link.png").is_symlink() and tree(outside) == before
    taken_back(root)
    (root / "1024x1024").symlink_to(outside)
    assert "is a link" in refused(group_pictures, "group_pictures", folder=root, least=1)
    assert tree(outside) == before


def test_what_does_not_open_stays_and_no_pictures_are_an_error(tmp_path: Path) -> None:
    root = tmp_path / "pics"
    picture(root / "a.png")
    (root / "broken.png").write_bytes(b"")
    report = done(group_pictures, "group_pictures", folder=root, least=1)
    assert (root / "broken.png").exists() and any("empty" in f.message for f in report.remarks)
    (empty := tmp_path / "empty").mkdir()
    assert "no usable picture" in refused(group_pictures, "group_pictures", folder=empty)
    assert "does not exist" in refused(group_pictures, "group_pictures", folder=tmp_path / "none")
    assert "is a file" in refused(group_pictures, "group_pictures", folder=root / "broken.png")


# --- broken off, at once, and changed meanwhile ------------------------------------------------------------------------


def test_what_is_broken_off_can_be_taken_back(tmp_path: Path) -> None:
    root = tmp_path / "pics"
    for i in range(6):
        picture(root / f"{i}.png", txt=str(i))
    before = tree(root)

    def stop(done: int, total: int, words: str = "") -> None:
        if done == 5:
            raise StopRequested

    with pytest.raises(StopRequested):
        group_pictures.run(section("group_pictures", folder=root, least=1), stop)
    assert {len(p.suffix) for p in root.iterdir()} == {0, 4}  # some are in the new folder, some are not
    taken_back(root)
    assert tree(root) == before


def test_a_killed_process_leaves_every_file_and_a_journal(tmp_path: Path, home: Path) -> None:
    root = tmp_path / "pics"
    for i in range(6):
        picture(root / f"{i}.png", txt=str(i))
    before = tree(root)
    code = """
import os, sys
from limner.config import files
from limner.config.tools import Tools
from limner.tools import to_kohya_folders
options = {"pictures": sys.argv[1], "output": sys.argv[2], "trigger": "zwx", "how": "move"}
section = files.build_as(Tools, {"to_kohya_folders": options}, {}).to_kohya_folders
to_kohya_folders.run(section, lambda done, total, words="": os._exit(9) if done == 12 else None)
"""
    out = tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", code, str(root), str(out)], check=False).returncode == 9
    moved = {p.name for p in out.rglob("*") if p.is_file()}
    assert moved and sorted([*moved, *(p.name for p in root.iterdir())]) == sorted(before)
    taken_back(out)
    assert tree(root) == before and not out.exists()


def test_two_at_once_do_each_thing_once(tmp_path: Path) -> None:
    root = tmp_path / "pics"
    for i in range(30):
        picture(root / f"{i}.png", txt=str(i))
    reports: list[Report | UserError] = []

    def work() -> None:
        try:
            reports.append(group_pictures.run(section("group_pictures", folder=root, least=1), quiet))
        except UserError as error:
            reports.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # the second waits, and then finds nothing to do
    (late,) = [r for r in reports if isinstance(r, UserError)]
    assert "no usable picture" in str(late)
    assert len(list((root / "1024x1024").iterdir())) == 60


def test_what_others_changed_is_left_when_taken_back(tmp_path: Path) -> None:
    root, out = tmp_path / "pics", tmp_path / "out"
    picture(root / "a.png", txt="a")
    picture(root / "b.png", txt="b")
    done(group_pictures, "group_pictures", folder=root, output=out, how="copy", least=1)
    (out / "1024x1024" / "a.txt").write_text("edited since")
    report = taken_back(root)
    assert {p.name for p in out.rglob("*.*")} == {"a.txt"}
    assert sorted(f.message for f in report.remarks) == [
        "is left as it was: it was changed by somebody else since.",
        *["is left as it was: something else lies in it."] * 2,
    ]


def test_a_full_disk_is_told_before_and_during(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limner.data import folder_changes
    from limner.tools import folder_plan

    root, out = tmp_path / "pics", tmp_path / "out"
    for i in range(3):
        picture(root / f"{i}.png")
    options = {"folder": root, "output": out, "how": "copy", "least": 1}
    with monkeypatch.context() as m:
        m.setattr(folder_plan.disk, "free_bytes", lambda _: 10)
        assert "are free" in refused(group_pictures, "group_pictures", **options)
        assert not out.exists()
    calls = []

    def full(*_: object) -> None:
        calls.append(1)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(folder_changes.shutil, "copyfile", full)
        report = group_pictures.run(section("group_pictures", **options), quiet)
    assert len(calls) == 1  # the rest is not tried
    assert sum("No space left" in f.message for f in report.remarks) == 3
    assert [p for p in out.rglob("*") if p.is_file()] == []


# --- balance ------------------------------------------------------------------------------------------------------------


def concepts(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(root / name / f"{i}.PNG")
    return root


def shares(root: Path) -> dict[str, int]:
    out: dict[str, int] = {}
    for p in scan(Data(path=root, trigger="t")).pictures:
        out[Path(p.path).parent.name] = out.get(Path(p.path).parent.name, 0) + p.repeats
    return out


def test_folders_get_the_numbers_that_show_all_equally(tmp_path: Path) -> None:
    root = concepts(tmp_path / "img", **{"10_cat": 4, "1_old dog": 30, "7_bird_x": 7})
    before = tree(root)
    report = done(balance, "balance", folder=root, showings=100)
    assert shares(root) == {"25_cat": 100, "3_old dog": 90, "14_bird_x": 98}
    assert any("10 x 4 = 40, becomes 25 x 4 = 100" in line for line in report.lines)
    taken_back(root)
    assert tree(root) == before
    done(balance, "balance", folder=root)  # as the one that is shown most: 49
    assert shares(root) == {"12_cat": 48, "2_old dog": 60, "7_bird_x": 49}


def test_what_kohya_breaks_is_left_alone(tmp_path: Path) -> None:
    """kohya_ss makes 0_name of a folder without pictures, misses .JPG, counts .gif, and stops at a file."""
    root = concepts(tmp_path / "img", **{"5_empty": 0, "0_off": 3, "2_cat": 2, "plain": 4})
    (root / "3_file").write_text("a file")
    (root / "2_cat" / "no.gif").write_bytes(b"GIF89a")
    (root / "2_cat" / "broken.jpg").write_bytes(b"")
    picture(root / "2_cat" / "more.JPG")
    (root / "4_link").symlink_to(root / "2_cat")
    report = done(balance, "balance", folder=root, showings=30)
    assert sorted(p.name for p in root.iterdir()) == ["0_off", "10_cat", "3_file", "4_link", "5_empty", "plain"]
    said = {Path(f.field).name: f.message for f in report.remarks}
    assert set(said) == {"0_off", "5_empty", "plain", "4_link", "broken.jpg"}


def test_folders_that_would_get_one_name_are_refused(tmp_path: Path) -> None:
    root = concepts(tmp_path / "img", **{"1_cat": 5, "2_cat": 5})
    before = tree(root)
    assert "as another folder is or would be" in refused(balance, "balance", folder=root, showings=15)
    assert tree(root) == before
    long = concepts(tmp_path / "long", **{"1_" + "x" * 253: 1})
    assert "too long" in refused(balance, "balance", folder=long, showings=10)
    assert "no folder" in refused(balance, "balance", folder=concepts(tmp_path / "none", plain=1))


def test_a_dataset_file_in_place_of_names(tmp_path: Path) -> None:
    root = concepts(tmp_path / "img", **{"plain 'q' \"d\" ü": 5, "3_sks cat": 10})
    file, before = root / "set.toml", tree(root)
    done(balance, "balance", folder=root, dataset_file=file, showings=50)
    assert {k: v for k, v in tree(root).items() if k != "set.toml"} == before
    (one, two) = tomllib.loads(file.read_text())["datasets"][0]["subsets"]
    assert one == {"image_dir": "3_sks cat", "num_repeats": 5, "class_tokens": "sks cat"}
    assert two == {"image_dir": "plain 'q' \"d\" ü", "num_repeats": 10}
    found = scan(Data(subsets=file, trigger="t"))
    assert sorted({(p.repeats, p.caption) for p in found.pictures}) == [(5, "sks cat"), (10, "t")]
    assert "exists already" in refused(balance, "balance", folder=root, dataset_file=file)
    text = file.read_text()
    balance.run(section("balance", folder=root, dataset_file=file, showings=500, overwrite=True), quiet)
    assert file.read_text() != text
    taken_back(root)
    assert file.read_text() == text
    taken_back(root)
    assert tree(root) == before


# --- kohya's folders ----------------------------------------------------------------------------------------------------


def test_there_and_back_again(tmp_path: Path) -> None:
    root, classes, out, back = (tmp_path / n for n in ("pics", "dogs", "kohya", "back"))
    picture(root / "a.png", txt="a sks dog")
    picture(root / "in" / "b.jpg", npz="x")
    picture(classes / "c.png", txt="a dog")
    before = tree(tmp_path)
    report = done(
        to_kohya_folders, "to_kohya_folders", pictures=root, output=out, trigger="sks", class_words="dog", repeats=12,
        class_pictures=classes,
    )  # fmt: skip
    assert set(tree(out)) == {
        "img", "img/12_sks dog", *(f"img/12_sks dog/{n}" for n in ("a.png", "a.txt", "b.jpg", "b.npz")),
        "reg", "reg/1_dog", "reg/1_dog/c.png", "reg/1_dog/c.txt", "log", "model",
    }  # fmt: skip
    assert any(f'data.path = "{out / "img"}", data.class_path = "{out / "reg"}"' in line for line in report.lines)
    taught = scan(Data(path=out / "img")).pictures
    assert [(p.repeats, p.caption) for p in taught] == [(12, "a sks dog"), (12, "sks dog")]
    report = done(from_kohya_folders, "from_kohya_folders", folder=out, output=back)
    options = [line for line in report.lines if line.startswith("data.")]
    assert options == [
        f'data.path = "{back / "pictures"}"', "data.repeats = 12", 'data.trigger = "sks dog"',
        f'data.class_path = "{back / "class"}"', 'data.class_prompt = "dog"',
    ]  # fmt: skip
    given = tomllib.loads("\n".join(options))["data"]
    plain = scan(Data(path=Path(given["path"]), repeats=given["repeats"], trigger=given["trigger"])).pictures
    assert [(p.repeats, p.caption, os.path.basename(p.path)) for p in plain] == [
        (p.repeats, p.caption, os.path.basename(p.path)) for p in taught
    ]
    taken_back(back)
    taken_back(out)
    assert {k: v for k, v in tree(tmp_path).items() if not k.startswith("home")} == before


def test_nothing_there_is_replaced(tmp_path: Path) -> None:
    """kohya_ss deletes the target folder and copies anew."""
    root, out = tmp_path / "pics", tmp_path / "kohya"
    picture(root / "a.png", txt="new")
    picture(out / "img" / "40_zwx" / "A.png", 10, 10, txt="old")
    (out / "model").mkdir()
    (out / "model" / "cat.safetensors").write_bytes(b"weeks of work")
    report = done(to_kohya_folders, "to_kohya_folders", pictures=root, output=out, trigger="zwx")
    folder = out / "img" / "40_zwx"
    assert {p.name: p.read_text() for p in folder.glob("*.txt")} == {"A.txt": "old", "a (2).txt": "new"}
    assert (out / "model" / "cat.safetensors").read_bytes() == b"weeks of work"
    assert any("2 files already" in f.message for f in report.remarks)


@pytest.mark.parametrize("trigger", ["../../up", "a/b", "a\nb", "x" * 254, "a\\b", "ends.", "  "])
def test_a_trigger_that_cannot_be_a_folder(tmp_path: Path, trigger: str) -> None:
    picture(tmp_path / "pics" / "a.png")
    options = {"pictures": tmp_path / "pics", "output": tmp_path / "out", "trigger": trigger}
    assert "to_kohya_folders.trigger" in refused(to_kohya_folders, "to_kohya_folders", **options)
    assert not (tmp_path / "out").exists()


def test_the_source_may_be_where_the_folders_go(tmp_path: Path) -> None:
    root = tmp_path / "pics"
    picture(root / "a.png")
    for _ in range(2):
        done(to_kohya_folders, "to_kohya_folders", pictures=root, output=root, trigger="zwx", how="link")
    assert sorted(p.name for p in (root / "img" / "40_zwx").iterdir()) == ["a (2).png", "a.png"]


def test_several_concepts_become_a_dataset_file_that_trains_the_same(tmp_path: Path) -> None:
    root, out = tmp_path / "kohya", tmp_path / "plain"
    concepts(root / "img", **{"10_sks cat": 2, "3_5_odd": 1, "2_": 1, "0_off": 1, "notes": 1})
    concepts(root / "reg", **{"1_cat": 1})
    report = done(from_kohya_folders, "from_kohya_folders", folder=root, output=out)
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["concept", "concept 5_odd", "sks cat"]
    found = scan(Data(subsets=out / "dataset.toml", trigger="t"))
    assert sorted({(p.repeats, p.caption, p.is_class) for p in found.pictures}) == [
        (1, "cat", True), (2, "t", False), (3, "5_odd", False), (10, "sks cat", False),
    ]  # fmt: skip
    assert f'data.subsets = "{out / "dataset.toml"}"' in report.lines
    assert {Path(f.field).name for f in report.remarks} == {"0_off", "notes"}
    taken_back(out)
    assert not out.exists()


def test_one_folder_alone_and_none(tmp_path: Path) -> None:
    root = concepts(tmp_path / "any", **{"4_cat": 2})
    report = done(from_kohya_folders, "from_kohya_folders", folder=root / "4_cat", output=tmp_path / "out", how="move")
    assert "data.repeats = 4" in report.lines and len(list((tmp_path / "out" / "pictures").iterdir())) == 2
    assert "no folder called" in refused(from_kohya_folders, "from_kohya_folders", folder=root, output=tmp_path / "out2")
    inside = concepts(tmp_path / "more" / "img", **{"4_cat": 2})
    assert "in one another" in refused(from_kohya_folders, "from_kohya_folders", folder=inside, output=inside / "4_cat" / "x")


# --- unpack, undo ---------------------------------------------------------------------------------------------------------


def test_an_archive_becomes_a_folder(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", txt="a cat")
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        out.add(tmp_path / "a.png", "in/a.png")
        out.add(tmp_path / "a.txt", "in/a.txt")
        out.add(tmp_path / "a.txt", "../up.txt")
    options = {"source": tmp_path / "a.tar", "output": tmp_path / "made" / "here"}
    report = done(unpack, "unpack", **options)
    assert set(tree(tmp_path / "made")) == {"here", "here/in", "here/in/a.png", "here/in/a.txt"}
    assert [(f.field, f.severity) for f in report.remarks] == [("unpack.source", "warning")]
    assert "exists already" in refused(unpack, "unpack", **options)
    (bad := tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"unpack\.source.*damaged"):
        unpack.run(section("unpack", source=bad, output=tmp_path / "no"), quiet)
    assert not (tmp_path / "no").exists() and not list(tmp_path.glob(".tmp-*"))
    assert "no .tar" in refused(unpack, "unpack", source=tmp_path / "a.png", output=tmp_path / "no")


def test_nothing_to_undo_is_said(tmp_path: Path) -> None:
    assert "nothing is known" in refused(undo_folders, "undo_folders", folder=tmp_path)
    assert "nothing was taken back" in refused(undo_folders, "undo_folders", folder=tmp_path, again=True)
