"""Captions of many pictures in one file, as kohya's finetuning and Hugging Face's folders have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from limner.config import Data
from limner.data import metadata
from limner.data.scan import Scan, scan
from limner.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "sub/c.jpg"):
        (path := tmp_path / "pics" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    (tmp_path / "pics" / "b.txt").write_text("beside")
    return tmp_path / "pics"


def look(root: Path, file: Path, **options) -> Scan:
    return scan(Data(path=root, metadata=file, **options))


def captions(root: Path, file: Path, **options) -> dict[str, str]:
    return {Path(p.path).name: p.caption for p in look(root, file, **options).pictures}


@pytest.mark.parametrize("ending", [".png", ""])
@pytest.mark.parametrize("kind", ["absolute", "inside", "beside the file"])
def test_kohyas_json_by_any_name(root: Path, kind: str, ending: str) -> None:
    place = {"absolute": root / "a", "inside": Path("a"), "beside the file": Path("pics/a")}[kind]
    entries = {f"{place}{ending}": {"caption": "a cat", "tags": "one, two", "train_resolution": [64, 64]}}
    (file := root.parent / "meta.json").write_text(json.dumps(entries))
    assert captions(root, file, trigger="t") == {"a.png": "a cat, one, two", "b.png": "beside", "c.jpg": "t"}


def test_caption_and_tags_as_sd_scripts_joins_them(root: Path) -> None:
    entries = {"a": {"tags": "one"}, "b": {"caption": "only"}, "sub/c": {"caption": "", "tags": ""}}
    (file := root / "meta.json").write_text(json.dumps(entries))
    assert captions(root, file, trigger="t") == {"a.png": "one", "b.png": "only", "c.jpg": ""}


def test_jsonl_of_hugging_face_and_of_kohya(root: Path) -> None:
    lines = [{"file_name": "a.png", "text": "from HF"}, {"image_path": str(root / "sub" / "c.jpg"), "caption": "from kohya"}]
    (file := root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert captions(root, file) == {"a.png": "from HF", "b.png": "beside", "c.jpg": "from kohya"}


def test_lines_are_kept_only_for_wildcards(root: Path) -> None:
    (file := root / "m.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "one\ntwo\x07"}))
    assert captions(root, file)["a.png"] == "one"
    assert captions(root, file, wildcards=True)["a.png"] == "one\ntwo"


def test_names_of_no_picture_are_counted(root: Path) -> None:
    (file := root / "m.json").write_text(json.dumps({"a": {"caption": "x"}, "z": {"caption": "y"}}))
    [finding] = [f for f in look(root, file, trigger="x").warnings if f.field == "data.metadata"]
    assert "1 of the 2 entries" in finding.message and finding.severity == "warning"


FAULTS = {
    "gone.json": (None, "cannot be read"),
    "latin.json": (b'{"\xe9": {}}', "UTF-8"),
    "cut.json": (b'{"a": ', "not JSON"),
    "list.json": (b"[1]", "not of the form"),
    "flat.json": (b'{"a": "caption"}', "not of the form"),
    "empty.json": (b"{}", "names no picture"),
    "number.json": (b'{"a": {"caption": 3}}', "no text"),
    "other.json": (b'{"z": {"caption": "x"}}', "names no picture of"),
    "second.jsonl": (b'{"file_name": "a.png", "text": "x"}\n{"file_name": ', "line 2 is not JSON"),
    "nameless.jsonl": (b'{"text": "x"}', "line 1 names no picture"),
    "deep.json": (b'{"a": ' + b"[" * 200_000, "not JSON"),
    "behind.json": (b'{"a": {"caption": "x"}} {}', "behind its end"),
    "comma.json": (b'{"a": {"caption": "x"} "b": {}}', "a ',' is missing"),
    "key.json": (b'{1: {"caption": "x"}}', "not of the form"),
    "long.jsonl": (b'{"file_name": "a.png", "text": "' + b"x" * (1 << 20), "line 1 is not JSON"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_in_words(root: Path, name: str) -> None:
    content, said = FAULTS[name]
    if content is not None:
        (root / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        look(root, root / name)
    [finding] = raised.value.findings
    assert finding.field == "data.metadata" and said in finding.message and finding.remedy


def test_a_file_is_read_piece_by_piece(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pieces are that it comes in, the same is read."""
    told = {
        f"{i:03} é😀": {"caption": "cat " + "é" * (i % 7), "tags": ["a", 'b"{,}'], "train_resolution": [64, 64]}
        for i in range(300)
    }
    (file := root / "m.json").write_text(
        json.dumps({"a": {"caption": "x"}, **told}, indent=1, ensure_ascii=False), encoding="utf-8-sig"
    )
    expected = {"a": "x"} | {name: f'{entry["caption"]}, a, b"{{,}}' for name, entry in told.items()}
    for most in (150, 211, 1000, 1 << 20):
        monkeypatch.setattr(metadata, "_MAX_ENTRY", most)
        assert metadata.read(file).captions == expected


def test_captions_of_many_bytes_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "_MAX_KEPT_BYTES", 10_000)
    (file := root / "m.json").write_text(json.dumps({str(i): {"caption": "x" * 50} for i in range(1000)}))
    with pytest.raises(UserError, match="captions of more than"):
        metadata.read(file)
