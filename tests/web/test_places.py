"""Allowed folders: hostile paths are refused in words, and nothing outside is seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from limner.errors import UserError
from limner.settings import Settings
from limner.web import places


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed folder with pictures, a model, a hidden folder, and links in and out."""
    root = (tmp_path / "root").resolve()
    (root / "cats" / "small").mkdir(parents=True)
    (root / ".ssh").mkdir()
    (root / ".ssh" / "key").write_text("secret")
    for name in ("a.png", "b.JPG", "notes.txt", "model.safetensors"):
        (root / "cats" / name).write_bytes(b"x")
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "secret.png").write_bytes(b"x")
    (tmp_path / "root-beside").mkdir()
    (root / "out").symlink_to(outside)
    (root / "file-out.png").symlink_to(outside / "secret.png")
    (root / "in").symlink_to(root / "cats")
    (root / "loop").symlink_to(root / "loop")
    (root / "hidden").symlink_to(root / ".ssh")
    return root


HOSTILE = [
    "..", "../outside/secret.png", "cats/../../outside", "cats/..", "{root}/../outside",
    "{root}/cats/../../outside/secret.png",
    "/", "/etc/passwd", "{root}-beside", "out", "out/secret.png", "{root}/out/deep", "file-out.png", "loop", "loop/x",
    "/proc/self/environ", "/proc/self/cwd", "/dev/zero", "/dev/fd/0", "~root/.bashrc", "~/.ssh/id_rsa",
    "~nobody-of-that-name/x",
    ".ssh", ".ssh/key", "hidden", "hidden/key", "C:\\x", "C:/x", "c:x", "D:", "\\\\server\\share\\x", "//server/share/x",
    "\\\\?\\C:\\x",
    "\\\\.\\PhysicalDrive0", "..\\outside", "cats\\..\\..\\outside", "\\x", "cats\0", "cats\0/../../etc", "a\nb",
    "a\x1b[2J", "\ud800", "\x7f", "",
    "x" * 300, "x/" * 3000, "é" * 200, "file:///etc/passwd", "http://evil.example/x", "{root}//../outside", "./../outside",
    "missing",
    "cats/a.png/x", "cats/a.png/..", 7, None, True, ["cats"], {"path": "cats"}, b"cats", 10**400, float("nan"), "$(x)",
    '"; touch x #', "*", "`id`",
]  # fmt: skip

HARMLESS = ["missing", "$(x)", "*", "`id`", '"; touch x #', "file:///etc/passwd", "http://evil.example/x", "cats/a.png/x"]
HARMLESS += ["~nobody-of-that-name/x", "~root/.bashrc"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX spellings")
@pytest.mark.parametrize("must_exist", [True, False])
@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: ascii(t)[:40])
def test_hostile_paths(root: Path, text: object, must_exist: bool) -> None:
    before = sorted(root.parent.rglob("*"))
    if isinstance(text, str):
        text = text.replace("{root}", str(root))
    try:
        found = places.resolve(text, [root], field="data.folder", must_exist=must_exist)
    except UserError as error:
        [finding] = error.findings
        assert finding.field == "data.folder" and finding.message and finding.remedy
        assert len(str(finding)) < 1000
    else:  # names that are strange but harmless: inside, and missing
        assert not must_exist and found.is_relative_to(root) and not found.exists()
        assert text in HARMLESS
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize("text", ["cats", "{root}/cats", "cats/", "./cats", "in", "{root}"])
def test_good_paths(root: Path, text: str) -> None:
    found = places.resolve(text.replace("{root}", str(root)), [root])
    assert found == (root if text == "{root}" else root / "cats")


def test_missing_is_allowed_when_asked_for(root: Path) -> None:
    assert places.resolve("new/folder", [root], must_exist=False) == root / "new" / "folder"


def test_relative_means_the_first_root(root: Path, tmp_path: Path) -> None:
    assert places.resolve("deep", [tmp_path / "outside", root]) == (tmp_path / "outside" / "deep").resolve()
    with pytest.raises(UserError, match="full path"):
        places.resolve("deep", [])


def test_home_is_expanded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root))
    assert places.resolve("~", [root]) == root
    assert places.resolve("~/cats", [root]) == root / "cats"


def test_a_root_may_name_a_hidden_folder(root: Path) -> None:
    assert places.resolve(str(root / ".ssh" / "key"), [root, root / ".ssh"]) == root / ".ssh" / "key"


def test_the_servers_secret_is_out_of_bounds(home: Path) -> None:
    home.mkdir()
    (home / "token").write_text("secret")
    with pytest.raises(UserError, match="outside"):
        places.resolve(str(home / "token"), [home.resolve()])


def test_a_pipe_is_no_file(root: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        places.resolve("pipe", [root])


def test_listing(root: Path) -> None:
    assert places.listing("", [root])["folders"] == [{"name": "root", "path": str(root)}]
    top = places.listing(str(root), [root])
    assert [f["name"] for f in top["folders"]] == ["cats", "in"]
    assert top["parent"] is None
    cats = places.listing(str(root / "cats"), [root])
    assert (cats["pictures"], cats["models"], cats["parent"], cats["complete"]) == (2, 1, str(root), True)
    assert [f["path"] for f in cats["folders"]] == [str(root / "cats" / "small")]
    with pytest.raises(UserError, match="not a folder"):
        places.listing(str(root / "cats" / "a.png"), [root])


def test_listing_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (root / "cats" / f"{number:02}").mkdir()
    monkeypatch.setattr(places, "LIMIT_FOLDERS", 5)
    found = places.listing("cats", [root])
    assert [f["name"] for f in found["folders"]] == ["00", "01", "02", "03", "04"] and not found["complete"]
    monkeypatch.setattr(places, "LIMIT_ENTRIES", 3)
    assert not places.listing("cats", [root])["complete"]


def test_names_that_cannot_travel_are_left_out(root: Path) -> None:
    os.mkdir(os.fsencode(root) + b"/cats/\xff")
    (root / "cats" / "a\\b").mkdir()
    (root / "cats" / "new\nline").mkdir()
    assert [f["name"] for f in places.listing("cats", [root])["folders"]] == ["small"]


def test_default_roots(root: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HOME", str(root / "cats" / "small"))
    found = places.default_roots(Settings(models=root), home, [root / "in"], private=False)
    assert found == (root, root / "cats", home.resolve())
    assert places.default_roots(Settings(), home, [], private=True) == (home.resolve(), root.parent, root / "cats" / "small")


def test_the_whole_disk_is_a_root_only_when_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert Path("/") not in places.default_roots(Settings(), home, [], private=False)
    assert Path("/") in places.default_roots(Settings(), home, [Path("/")], private=False)
