"""What of the corpus of strangers' files is large or slow: a gigabyte, a hundred thousand levels, each option, each value of a model.

What has to be read whole may take 30 seconds; memory stays within a GiB for all of it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import oracles
from corpus import INJECTIONS, TEXTS, deep
from headers import tensor
from limner.pocket import MODEL
from strangers import Case, Place, content, folder, lora, model, options, saying, tensors, toml

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes, links and /proc")
JSON = ("import", "subsets", "prompts", "metadata file")
GB = 1_000_000_000


def hole(name: str, size: int, start: bytes = b"") -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        with (place.folder / name).open("wb") as file:
            file.write(start)
            file.truncate(size)
        return place.folder / name

    return make


def late(name: str, said: Callable[[], str | bytes]) -> Callable[[Place], Path]:
    """A text that is made when it is needed: together they would fill the memory."""
    return lambda place: content(name, said())(place)


def raw_header(said: Callable[[], bytes]) -> Callable[[Place], Path]:
    def text() -> bytes:
        made = said()
        return struct.pack("<Q", len(made)) + made

    return late("x.safetensors", text)


def of_tags(said: Callable[[], dict[str, str]]) -> Callable[[Place], Path]:
    """A LoRA with these metadata."""
    return lambda place: lora(saying(**said()))(place)


def one(path: str, text: str) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        section, _, name = path.partition(".")
        return options(**{section: {name: text.replace("CANARY", str(place.canary))}})(place)

    return make


def nested_folders(place: Place) -> Path:
    root = folder()(place)
    before = os.getcwd()
    os.chdir(root)
    for _ in range(3000):
        os.mkdir("d")
        os.chdir("d")
    shutil.copy(next(place.pictures.glob("*.png")), "deep.png")
    os.chdir(before)
    return root


def zeros(place: Place) -> Path:
    """4 GB of zeros in 4 MB."""
    piece = bytes(1 << 24)
    with (
        zipfile.ZipFile(place.folder / "x.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.png", "w", force_zip64=True) as entry,
    ):
        for _ in range(256):
            entry.write(piece)
    return place.folder / "x.zip"


def a_million_entries(place: Place) -> Path:
    head = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    listed = b"".join(head + b"%04x.txt" % (i & 0xFFFF) for i in range(1_000_000))
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1_000_000, 1_000_000, len(listed), 0)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, len(listed), 1)
    return content("x.zip", listed + end + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))(
        place
    )


def entries(count: int, **entry: Any) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        said = json.dumps(entry or {"caption": "a cat"}, ensure_ascii=False)
        with (place.folder / "m.json").open("w", encoding="utf-8") as file:
            file.write("{" + ", ".join(f'"{p.stem}": {{"caption": "x"}}' for p in place.pictures.glob("*.png")))
            for i in range(count):
                file.write(f',\n"{i:07}": {said}')
            file.write("}")
        return place.folder / "m.json"

    return make


def tags() -> str:
    return json.dumps({"a": {f"a tag of many words, the number {i}": i for i in range(1_900_000)}})


VALUES: dict[str, Any] = {
    "10^9": 10**9, "10^400": 10**400, "-1": -1, "0": 0, "nan": float("nan"), "a text": "x", "null": None, "a list": [], "lists": [[[0]]],
    "a table": {"__class__": 1}, "true": True,
}  # fmt: skip
FILES = sorted(p.relative_to(MODEL).as_posix() for p in MODEL.rglob("*config*.json"))


def every_value(file: str) -> list[str]:
    return sorted(json.loads((MODEL / file).read_text()))


CASES: dict[str, Case] = {
    "D23 1 GB of nothing": Case(hole("run.toml", GB), ("check", "train", "preset", "import", "subsets"), says="1048576"),
    "D23 1 GB as prompts": Case(hole("p.txt", GB), ("prompts",), says="1 MiB"),
    "D23 1 GB as JSON": Case(hole("m.json", GB, b'{"a": {"caption": "x"}, '), ("metadata file",), says="not JSON"),
    "D23 2 GB as JSON": Case(hole("m.json", 2 * GB), ("metadata file",), says="1 GiB"),
    "D07 100,000 lists": Case(content("a.json", '{"a": ' + deep("[", 100_000, "]") + "}"), (*JSON, "page"), "refused"),
    "D09 100,000 tables": Case(content("a.json", deep('{"a": ', 100_000) + "1" + "}" * 100_000), (*JSON, "page"), "refused"),
    "D07 1,000,000 lists": Case(late("a.json", lambda: '{"a": ' + deep("[", 500_000, "]") + "}"), JSON, "refused"),
    "D07 100,000 lists, TOML": Case(toml(f"a = {deep('[', 100_000, ']')}\n"), ("check", "train", "preset", "page", "import", "subsets")),
    "D09 100,000 tables, TOML": Case(toml(f"a = {deep('{b=', 100_000)}1{'}' * 100_000}\n"), ("check", "train", "preset", "page", "import", "subsets")),
    "D08 as many names as fit": Case(toml("[" + ".".join(["a"] * 30) + "]\n" + "".join(f"b.c{i}=1\n" for i in range(90_000))), ("check", "page")),
    "E06 100 MB of empty lists": Case(raw_header(lambda: b'{"a":[' + b"[]," * 33_000_000 + b"[]]}"), ("inspect", "model", "start", "metadata", "import"), says="not a whole"),
    "E06 100 MB of empty tables": Case(raw_header(lambda: b'{"a":[' + b"{}," * 33_000_000 + b"{}]}"), ("inspect", "start"), says="not a whole"),
    "E06 100 MB of short texts": Case(raw_header(lambda: b'{"a":[' + '"😀b",'.encode() * 12_000_000 + b"0]}"), ("inspect", "start"), says="not a whole"),
    "E06 100 MB of tables in tables": Case(raw_header(lambda: b'{"a":[' + b'{"a":{}},' * 11_000_000 + b"0]}"), ("inspect",), says="not a whole"),
    "E06 as many lists as are read": Case(raw_header(lambda: b'{"a":[' + b"[]," * 2_900_000 + b"[]]}"), ("inspect",), says="not a whole"),
    "E21 a header of 50,000,000 levels": Case(raw_header(lambda: b'{"a":' + b"[" * 50_000_000), ("inspect",), says="not a whole"),
    "E25 300,000 names": Case(lambda p: tensors({f"t{i}": tensor(4 * i, 4 * i + 4) for i in range(300_000)}, bytes(1_200_000))(p), ("inspect, looking", "start", "model", "metadata"), "either"),
    "E26 90 MB of tags": Case(of_tags(lambda: {"ss_tag_frequency": tags()}), ("inspect, looking", "start", "metadata", "import"), "either"),
    "E26 90 MB of other signs": Case(lora(lambda h, d: ({"__metadata__": {"a": "😀" + "x" * 90_000_000}} | h, d)), ("inspect, looking", "metadata"), "either"),
    "E26 tags of empty lists": Case(of_tags(lambda: {"ss_tag_frequency": '{"a":[' + "[]," * 30_000_000 + "[]]}", "ss_dataset_dirs": '{"a":[' + "{}," * 1_000_000 + "{}]}"}), ("inspect, looking", "import"), "either"),
    "E31 a configuration of 1 GB": Case(lambda p: (shutil.copytree(MODEL, p.folder / "m"), hole("m/unet/config.json", GB, b'{"a": [')(p)) and p.folder / "m", ("model",), says="not JSON"),
    "E31 a configuration of empty lists": Case(lambda p: model({"vae/config.json": None}, text=b'{"a":[' + b"[]," * 20_000_000 + b"[]]}")(p), ("model",), says="not JSON"),
    "G03 a caption of 100 MB": Case(lambda p: folder(p0=b"x" * 100_000_000)(p), ("pictures", "train pictures"), says="too large"),
    "G04 a line of 10 MB": Case(folder(p0="x" * 10_000_000), ("pictures",), says="too large"),
    "G07 1,000,000 tags": Case(folder(p0=",".join("a" for _ in range(500_000))), ("pictures",), "accepted"),
    "G14 4 GB of zeros": Case(zeros, ("upload",), "accepted"),
    "G14 1,000,000 entries": Case(a_million_entries, ("upload",), says="too many files"),
    "G17 1,000,000 entries": Case(entries(1_000_000, caption="a cat of some kind", tags="a, b, c", train_resolution=[512, 768]), ("metadata file",), "accepted"),
    "G17 captions of 600 MB": Case(entries(1000, caption="😀" + "x" * 200_000), ("metadata file",), says="512 MiB"),
    "G17 200 MB of empty lists": Case(late("m.json", lambda: '{"a": {"caption": [' + "[]," * 66_000_000 + "[]]}}"), ("metadata file",), says="not JSON"),
    "G19 3,000 folders in one another": Case(nested_folders, ("pictures",), "either"),
    **{f"B {path} = {number}": Case(one(path, text), ("check",), "either") for path in TEXTS for number, text in INJECTIONS.items()},
    **{f"E31 {file}: {key} = {name}": Case(model({file: {key: value}}), ("model",), "either") for file in FILES for key in every_value(file) for name, value in VALUES.items()},
}  # fmt: skip
SLOW = ("D23 1 GB as JSON", "E25", "E26", "G14", "G17", "G19", "E06 as many", "D08")
"""What is read whole."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, machine_file: Path) -> dict[tuple[str, str], oracles.Answer]:
    found = dict(oracles.answers("test_corpus_long", tmp_path_factory.mktemp("corpus") / "root", machine_file))
    print(
        f"{len(CASES)} cases, {len(found)} answers, {sum(a.seconds for a in found.values()):.0f} s of a processor; the slowest:"
    )
    print(
        *sorted(((round(a.seconds, 1), round(a.wall_seconds, 1), *pair) for pair, a in found.items()), reverse=True)[:12],
        sep="\n",
    )
    print("the largest (MiB):")
    print(*sorted(((round(a.mib), *pair) for pair, a in found.items()), reverse=True)[:12], sep="\n")
    return found


def test_large_and_slow_files(answers: dict[tuple[str, str], oracles.Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {}
    for (name, door), answer in answers.items():
        monkeypatch.setattr(oracles, "SECONDS", 30.0 if name.startswith(SLOW) else 5.0)
        if found := list(oracles.faults(CASES[name], answer)):
            wrong[name, door] = found, answer
    for pair, (found, answer) in wrong.items():
        print(pair, found, answer.text[-600:])
    assert not wrong
