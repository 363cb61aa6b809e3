"""The metadata tool: other words over the same bytes; what it refuses; that a file is whole or as it was."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from limner.config import files
from limner.config.tools import Tools, the_section
from limner.errors import StopRequested, UserError
from limner.tools import metadata

TENSORS = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.arange(5, dtype=np.float32), "n": np.zeros((0, 3))}


def section(**given: Any) -> Any:
    raw = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    return the_section(files.build_as(Tools, {"metadata": raw}, {}))[1]


def quiet(*_: object) -> None: ...


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, path := tmp_path / "a.safetensors", {"ss_steps": "7", "ss_seed": "1", "modelspec.title": "old"})
    return path


def body(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 + struct.unpack("<Q", content[:8])[0] :]


def words(path: Path) -> dict[str, str]:
    with safe_open(path, "numpy") as opened:
        return opened.metadata()


def refused(**given: Any) -> str:
    with pytest.raises(UserError) as caught:
        metadata.run(section(**given), quiet)
    with pytest.raises(UserError):
        metadata.look(section(**given))
    return str(caught.value)


def test_words_change_and_bytes_stay(file: Path, tmp_path: Path):
    out = tmp_path / "new" / "b.safetensors"
    given = {"tags": "cat, dog", "trigger": "ohwx", "remove": ["ss_*"], "set": ["x = a=b"]}
    asked = section(file=file, output=out, name='Müller\'s "cat"\nand 猫', **given)
    assert metadata.look(asked).files == [out] and not out.exists()
    steps = list[int]()
    report = metadata.run(asked, lambda done, total, words="": steps.append(done))
    assert words(out) == {
        "modelspec.title": "Müller's \"cat\"\nand 猫", "modelspec.tags": "cat, dog", "modelspec.trigger_phrase": "ohwx",
        "x": "a=b",
    }  # fmt: skip
    assert body(out) == body(file) and steps[-1] == len(body(file))
    assert all(np.array_equal(load_file(out)[k], v) for k, v in TENSORS.items())
    assert (len(out.read_bytes()) - len(body(out))) % 8 == 0  # the numbers stay aligned
    assert "- ss_steps = 7" in report.lines and "+ x = a=b" in report.lines
    assert any(line.startswith("+ modelspec.title = Müller's") and line.endswith("(was: old)") for line in report.lines)
    assert not any("\n" in line for line in report.lines)
    assert words(file)["modelspec.title"] == "old"


def test_it_shows_what_is_there(file: Path):
    before = file.read_bytes()
    for report in (metadata.look(section(file=file)), metadata.run(section(file=file), quiet)):
        assert report.lines == ["modelspec.title = old", "ss_seed = 1", "ss_steps = 7"] and not report.files
    assert file.read_bytes() == before


def test_in_place_only_when_told(file: Path):
    before = file.read_bytes()
    assert "exists already" in refused(file=file, name="new") and file.read_bytes() == before
    hash_before = hashlib.sha256(body(file)).hexdigest()
    metadata.run(section(file=file, name="new", overwrite=True), quiet)
    assert words(file) == {"ss_steps": "7", "ss_seed": "1", "modelspec.title": "new"}
    assert hashlib.sha256(body(file)).hexdigest() == hash_before
    assert sorted(p.name for p in file.parent.iterdir()) == ["a.safetensors"]


def test_stopped_half_way_the_file_is_as_it_was(file: Path):
    before = file.read_bytes()

    def stop(done: int, total: int, words: str = "") -> None:
        raise StopRequested

    with pytest.raises(StopRequested):
        metadata.run(section(file=file, name="new", overwrite=True), stop)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ["a.safetensors"]


def test_a_thumbnail(file: Path, tmp_path: Path):
    Image.effect_noise((900, 600), 80).save(tmp_path / "p.png")
    metadata.run(section(file=file, thumbnail=tmp_path / "p.png", overwrite=True), quiet)
    kind, _, content = words(file)["modelspec.thumbnail"].partition(",")
    raw = base64.b64decode(content)
    assert kind == "data:image/jpeg;base64" and len(raw) <= 100_000
    assert Image.open(io.BytesIO(raw)).size == (256, 171)
    assert "modelspec.thumbnail = (a picture" in str(metadata.look(section(file=file)).lines)
    (tmp_path / "p.png").write_bytes(b"no picture")
    assert "error: metadata.thumbnail: does not open" in refused(file=file, thumbnail=tmp_path / "p.png", overwrite=True)


def test_all_faults_at_once(file: Path, tmp_path: Path):
    said = refused(file=file, set=["no equals", "=x"], remove=["not there"], output=tmp_path / "x.txt")
    assert said.count("metadata.set") == 2 and "no key 'not there'" in said and "x.txt does not end in .safetensors" in said
    assert "10,000,000 bytes" in refused(file=file, set=[f"k{i}={'x' * 19_000}" for i in range(600)], overwrite=True)


@pytest.mark.parametrize("damage", ["short", "lie", "text", "deep", "surrogate"])
def test_hostile_headers(tmp_path: Path, damage: str):
    path = tmp_path / "x.safetensors"
    header = {
        "short": b"{", "lie": b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', "text": b'{"__metadata__":{"a":1}}',
        "deep": b"[" * 5000, "surrogate": rb'{"a\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    }[damage]  # fmt: skip
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    before = path.read_bytes()
    with pytest.raises(UserError):
        metadata.run(section(file=path, name="x", overwrite=True), quiet)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.safetensors"]


def test_a_files_own_words_are_only_shown(tmp_path: Path):
    evil = "\x1b]0;gone\x07\u202e$(touch x)\n<script>"
    header = json.dumps({"__metadata__": {evil: evil}}).encode()
    (path := tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (line,) = metadata.look(section(file=path)).lines
    assert line.isprintable() and "$(touch x) <script>" in line
    metadata.run(section(file=path, name="x", overwrite=True), quiet)
    assert words(path) == {evil: evil, "modelspec.title": "x"}
