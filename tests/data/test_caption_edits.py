"""Edits of captions as operations, previewed, written, undone and done again; nobody else's changes are ever lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from limner.config import Data
from limner.data import captions, undo
from limner.data.captions import Edit, check_extensions, edits, in_words, tags_of, with_caption
from limner.data.scan import scan
from limner.data.undo import Journal, Move, Write
from limner.errors import UserError

OPERATION: TypeAdapter[captions.Operation] = TypeAdapter(captions.Operation)
EXTENSIONS = (".txt", ".caption")


def operation(kind: str, **values: object) -> captions.Operation:
    return OPERATION.validate_python({"kind": kind, **values})


def yes(path: Path) -> bool:
    return True


@pytest.mark.parametrize(
    ("kind", "values", "before", "after"),
    [
        ("set", {"text": " a dog "}, "a cat", "a dog"),
        ("add", {"tags": "hat, coat"}, "a cat, Hat", "a cat, Hat, coat"),
        ("add", {"tags": "zwx", "place": "front"}, "a cat", "zwx, a cat"),
        ("add", {"tags": "hat, hat"}, "", "hat"),
        ("add", {"tags": "b"}, "a,c", "a,c,b"),
        ("add", {"tags": "a"}, "a ,c", "a ,c"),
        ("add", {"tags": "b; c", "separator": ";"}, "a, x", "a, x; b; c"),
        ("remove", {"tags": "HAT,coat"}, "a cat, hat, coat, hats", "a cat, hats"),
        ("remove", {"tags": "hat"}, "hat", ""),
        ("rename", {"tag": "hat", "to": "cap"}, "a, Hat, cap", "a, cap"),
        ("rename", {"tag": "hat", "to": "cap"}, "a,,a hat", "a,,a hat"),
        ("replace", {"find": "cat", "by": "dog"}, "a cat, Cat, cats", "a dog, Cat, dogs"),
        (
            "replace",
            {"find": "cat", "by": r"\1$0", "whole_words": True, "ignore_case": True},
            "cat Cat cats",
            r"\1$0 \1$0 cats",
        ),
        ("replace", {"find": "(a+)+$", "by": ""}, "a" * 5000 + "b", "a" * 5000 + "b"),
        ("affix", {"text": "photo of "}, "a cat", "photo of a cat"),
        ("affix", {"text": ", night", "place": "end"}, "a cat", "a cat, night"),
        ("tidy", {}, " b , a,, A ,b", "b, a"),
        ("tidy", {"sort": True}, "b, C, a", "a, b, C"),
    ],
)
def test_what_an_operation_makes_of_a_caption(kind: str, values: dict[str, object], before: str, after: str) -> None:
    assert operation(kind, **values).of(before) == after


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("set", {"text": "a\nb"}),
        ("set", {"text": "a\x00b"}),
        ("set", {"text": "\x1b[2J"}),
        ("set", {"text": "a\u2028b"}),
        ("set", {"text": "x" * 20_001}),
        ("set", {"text": 5}),
        ("set", {}),
        ("add", {"tags": "a", "separator": ""}),
        ("add", {"tags": "a", "place": "middle"}),
        ("replace", {"find": "", "by": "x"}),
        ("run", {"text": "x"}),
        ("set", {"text": "x", "path": "/etc"}),
    ],
)
def test_operations_that_are_none(kind: str, values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        operation(kind, **values)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "new\n"),
        ("", "new"),
        ("old", "new"),
        ("old\n", "new\n"),
        ("\r\n  \r\n old \r\nsecond\r\n", "\r\n  \r\nnew\r\nsecond\r\n"),
        ("\ufeffold\nsecond", "\ufeffnew\nsecond"),
        ("\ufeff", "\ufeffnew"),
        ("old\u2028more", "new\u2028more"),
        ("\n\n", "new\n\n"),
    ],
)
def test_only_the_line_that_is_the_caption_changes(before: str | None, after: str) -> None:
    assert with_caption(before, "new") == after


def test_words_and_tags() -> None:
    assert in_words(operation("rename", tag="a", to="b")) == "a → b"
    assert tags_of(" a, ,b c ,") == ["a", "b c"]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (root := tmp_path / "Mia’s 猫 pictures").mkdir()
    for name, caption in {
        "a": b"a cat\r\nsecond line\r\n",
        "b": "\ufeffun chat, été".encode(),
        "c": None,
        "d": b"a dog",
    }.items():
        Image.new("RGB", (40, 30)).save(root / f"{name}.png")
        if caption is not None:
            (root / f"{name}.txt").write_bytes(caption)
    return root


def look(folder: Path, what: captions.Operation, **data: object) -> list[Edit]:
    return edits(scan(Data(path=folder, **data)).pictures, what, EXTENSIONS, yes)  # type: ignore[arg-type]


def write(journal: Journal, folder: Path, found: list[Edit]) -> undo.Outcome:
    return journal.apply(folder, "add", "", [Write(e.file, e.before, e.after) for e in found if not e.fault], yes)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.txt")}


def test_write_undo_and_redo_to_the_byte_also_after_a_restart(folder: Path, home: Path) -> None:
    before = contents(folder)
    found = look(folder, operation("add", tags="hat"), trigger="zwx")
    assert [(e.old, e.new) for e in found] == [
        ("a cat", "a cat, hat"), ("un chat, été", "un chat, été, hat"), ("zwx", "zwx, hat"), ("a dog", "a dog, hat"),
    ]  # fmt: skip
    assert contents(folder) == before, "a preview writes nothing"
    assert write(Journal(home / "undo"), folder, found).changed == 4
    after = {
        "a.txt": b"a cat, hat\r\nsecond line\r\n", "b.txt": "\ufeffun chat, été, hat".encode(),
        "c.txt": b"zwx, hat\n", "d.txt": b"a dog, hat",
    }  # fmt: skip
    assert contents(folder) == after
    journal = Journal(home / "undo")
    undone = journal.undo(folder, yes)
    assert undone is not None and (undone.changed, undone.refused) == (4, [])
    assert contents(folder) == before
    assert journal.undo(folder, yes) is None
    redone = Journal(home / "undo").redo(folder, yes)
    assert redone is not None and redone.changed == 4
    assert contents(folder) == after and journal.redo(folder, yes) is None


def test_what_somebody_else_changed_is_left_alone_and_named(folder: Path, home: Path) -> None:
    journal, found = Journal(home / "undo"), look(folder, operation("add", tags="hat"))
    (folder / "a.txt").write_bytes(b"mine")
    outcome = write(journal, folder, found)
    assert (outcome.changed, [p.name for p, _ in outcome.refused]) == (3, ["a.txt"])
    assert (folder / "a.txt").read_bytes() == b"mine"
    (folder / "d.txt").write_bytes(b"mine too")
    (folder / "c.txt").unlink()
    undone = journal.undo(folder, yes)
    assert undone is not None and sorted(p.name for p, _ in undone.refused) == ["a.txt", "d.txt"]
    assert (folder / "d.txt").read_bytes() == b"mine too" and (folder / "b.txt").read_bytes() == "\ufeffun chat, été".encode()
    assert not (folder / "c.txt").exists()


def test_a_new_edit_forgets_what_was_undone_but_other_folders_keep_theirs(folder: Path, home: Path, tmp_path: Path) -> None:
    journal = Journal(home / "undo")
    other = tmp_path / "other"
    other.mkdir()
    journal.apply(other, "set", "", [Write(other / "x.txt", None, "x")], yes)
    write(journal, folder, look(folder, operation("add", tags="one")))
    write(journal, folder, look(folder, operation("add", tags="two")))
    journal.undo(folder, yes)
    write(journal, folder, look(folder, operation("add", tags="three")))
    assert journal.next(folder)[1] is None
    assert (folder / "d.txt").read_bytes() == b"a dog, one, three"
    journal.undo(folder, yes)
    journal.undo(folder, yes)
    assert (folder / "d.txt").read_bytes() == b"a dog"
    assert (other / "x.txt").read_text() == "x" and journal.next(other)[0] is not None


def test_an_edit_of_a_folder_inside_is_undone_from_the_folder_too(folder: Path, home: Path) -> None:
    journal, inside, beside = Journal(home / "undo"), folder / "sub", folder.with_name(folder.name + "2")
    inside.mkdir(exist_ok=True)
    beside.mkdir()
    journal.apply(folder, "set", "outer", [Write(folder / "x.txt", None, "x")], yes)
    journal.apply(inside, "set", "inner", [Write(inside / "y.txt", None, "y")], yes)
    journal.apply(beside, "set", "beside", [Write(beside / "z.txt", None, "z")], yes)
    assert [e and e.detail for e in journal.next(folder)] == ["inner", None]
    assert [e and e.detail for e in journal.next(inside)] == ["inner", None]
    undone = journal.undo(folder, yes)
    assert undone is not None and undone.entry.detail == "inner" and not (inside / "y.txt").exists()
    assert [e and e.detail for e in journal.next(folder)] == ["outer", "inner"]
    journal.undo(folder, yes)
    assert not (folder / "x.txt").exists() and (beside / "z.txt").exists()
    assert [e and e.detail for e in journal.next(folder)] == [None, "outer"]


def test_an_entry_whose_files_are_lost_stops_no_edit(folder: Path, home: Path) -> None:
    journal = Journal(home / "undo")
    lost = journal.apply(folder, "set", "lost", [Write(folder / "x.txt", None, "x")], yes).entry
    (home / "undo" / f"{lost.number:08d}" / "files.json").unlink()
    assert journal.apply(folder, "set", "next", [Write(folder / "y.txt", None, "y")], yes).changed == 1
    assert [e.detail for e in journal.entries()] == ["next"]


def test_a_crash_between_two_files_is_undone_whole(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, journal, real, count = contents(folder), Journal(home / "undo"), undo._write_file, iter(range(9))

    def crash(change: Write, back: bool) -> str:
        if next(count) == 2:
            raise KeyboardInterrupt
        return real(change, back)

    monkeypatch.setattr(undo, "_write_file", crash)
    with pytest.raises(KeyboardInterrupt):
        write(journal, folder, look(folder, operation("add", tags="hat")))
    monkeypatch.setattr(undo, "_write_file", real)
    assert contents(folder) != before
    undone = Journal(home / "undo").undo(folder, yes)
    assert undone is not None and not undone.refused
    assert contents(folder) == before


def test_the_journal_is_bounded_in_count_and_size(folder: Path, home: Path) -> None:
    journal = Journal(home / "undo", max_entries=3, max_bytes=2000)
    for i in range(6):
        journal.apply(folder, "set", str(i), [Write(folder / f"{i}.txt", None, "x")], yes)
    assert [e.detail for e in journal.entries(folder)] == ["3", "4", "5"]
    journal.apply(folder, "set", "large", [Write(folder / "l.txt", None, "y" * 1800)], yes)
    assert [e.detail for e in journal.entries(folder)] == ["large"]
    with pytest.raises(UserError, match="too much"):
        journal.apply(folder, "set", "huge", [Write(folder / "h.txt", None, "y" * 3000)], yes)
    assert not (folder / "h.txt").exists()
    with pytest.raises(UserError, match="nothing"):
        journal.apply(folder, "set", "", [], yes)


def test_moves_are_undone_and_a_name_that_was_taken_is_respected(folder: Path, home: Path) -> None:
    journal, picture = Journal(home / "undo"), folder / "a.png"
    facts, content = picture.stat(), picture.read_bytes()
    move = Move(picture, folder / ".limner-removed" / "sub" / "a.png", facts.st_size, facts.st_mtime_ns)
    assert journal.apply(folder, "put-away", "", [move], yes).changed == 1
    assert not picture.exists() and move.to.read_bytes() == content
    picture.write_bytes(b"another")
    undone = journal.undo(folder, yes)
    assert undone is not None and [why for _, why in undone.refused] == ["another file has its name"]
    picture.unlink()
    journal.redo(folder, yes)
    journal.undo(folder, yes)
    assert picture.read_bytes() == content and not move.to.exists()


def test_faults_are_told_and_nothing_is_written_there(folder: Path) -> None:
    found = look(folder, operation("set", text=""))
    assert {e.file.name: e.fault for e in found if e.fault} == {
        "a.txt": "its next line would become the caption; remove that first"
    }
    long = look(folder, operation("affix", text="y" * 19_999))
    assert all("characters long" in e.fault for e in long if e.old) and long
    barred = edits(scan(Data(path=folder)).pictures, operation("set", text="x"), EXTENSIONS, lambda p: p.name != "a.txt")
    assert [e.file.name for e in barred if e.fault] == ["a.txt"]


def test_pictures_that_share_a_caption_file_are_edited_once(folder: Path) -> None:
    Image.new("RGB", (40, 30)).save(folder / "a.jpg")
    assert [e.file.name for e in look(folder, operation("affix", text="x "))].count("a.txt") == 1


@pytest.mark.parametrize("extension", ["/../../x", ".png", ".JPG", "txt", "", ".", ".a/b", "." + "x" * 300, ".tx\0t"])
def test_endings_that_are_none_of_a_caption(extension: str) -> None:
    with pytest.raises(UserError, match=r"data\.caption_extensions"):
        check_extensions((".txt", extension))


@pytest.mark.skipif(os.name == "nt", reason="POSIX file systems only")
def test_a_link_is_written_through_and_not_replaced(folder: Path, home: Path) -> None:
    real = folder / "real.txt"
    real.write_bytes(b"linked")
    (folder / "c.txt").symlink_to(real)
    write(Journal(home / "undo"), folder, look(folder, operation("add", tags="hat")))
    assert (folder / "c.txt").is_symlink() and real.read_bytes() == b"linked, hat"


# --- an operation that grows ------------------------------------------------------------------------------------------


def test_what_is_added_to_an_operation_is_undone_with_it(tmp_path: Path) -> None:
    journal, files = Journal(tmp_path / "undo"), [tmp_path / f"{n}.txt" for n in range(3)]
    entry = journal.apply(tmp_path, "caption", "m", [Write(files[0], None, "0")], yes, unfinished="key").entry
    for n in (1, 2):
        entry = journal.add(entry, [Write(files[n], None, str(n))], yes).entry
    assert entry.files == 3 and [e.files for e in journal.entries()] == [3]
    assert journal.unfinished(tmp_path, "key") == (entry, set(files))
    assert journal.unfinished(tmp_path, "other") == (None, set()) == journal.unfinished(tmp_path.parent, "key")
    journal.finish(tmp_path, "key")
    assert journal.unfinished(tmp_path, "key") == (None, set())
    outcome = journal.undo(tmp_path, yes)
    assert outcome is not None and outcome.changed == 3 and not any(f.exists() for f in files)
    outcome = journal.redo(tmp_path, yes)
    assert outcome is not None and outcome.changed == 3 and [f.read_text() for f in files] == ["0", "1", "2"]


@pytest.mark.parametrize("what", ["another came between", "it was undone", "it is damaged", "it is full"])
def test_what_cannot_be_added_is_an_operation_of_its_own(tmp_path: Path, what: str) -> None:
    journal, first, second = Journal(tmp_path / "undo"), tmp_path / "a.txt", tmp_path / "b.txt"
    entry = journal.apply(tmp_path, "caption", "m", [Write(first, None, "a")], yes, unfinished="key").entry
    if what == "another came between":
        journal.apply(tmp_path, "set", "", [Write(tmp_path / "c.txt", None, "c")], yes)
    elif what == "it was undone":
        journal.undo(tmp_path, yes)
    elif what == "it is damaged":
        (tmp_path / "undo" / f"{entry.number:08d}" / "files.json").write_text("{")
    else:
        journal.max_bytes = 150
    added = journal.add(entry, [Write(second, None, "b")], yes).entry
    assert added.files == 1 and added.unfinished == "key"
    assert added.number > entry.number or what == "it was undone"  # it is gone then, and its number free
    known = {second} if what in ("it was undone", "it is damaged", "it is full") else {first, second}
    assert journal.unfinished(tmp_path, "key") == (added, known)
    outcome = journal.undo(tmp_path, yes)
    assert outcome is not None and outcome.changed == 1 and not second.exists()
