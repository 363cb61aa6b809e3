"""What is written is good TOML, and none of the ways in which sd-scripts' own reader (toml 0.10.2) errs comes up."""

from __future__ import annotations

import random
import re
import tomllib

import pytest

from limner.sdscripts.plain_toml import dumps, misread

PIECES = ['"', "'", "\\", "#", "\n", "\t", "[[", "]]", "=", "{", ",", "\\u0041", "\\x41", "猫", " ", "a", '"""', "$(x)", "\x7f"]


def texts(count: int) -> list[str]:
    rng = random.Random(3)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, 6))) for _ in range(count)]


def test_every_text_is_read_back_by_a_right_reader() -> None:
    for text in texts(400):
        values = {"a": text, "l": [text, "x"], "d": [{"n": 1, "s": [{"t": text, "b": True}]}], "f": 1e-4}
        assert tomllib.loads(dumps(values)) == values


def test_what_is_misread_there_is_not_written() -> None:
    """Its faults, as measured: "" for what begins with a quotation mark, the next item at a comma, \\u beside an escape."""
    for text in texts(400):
        if list(misread(text)):
            continue
        (line,) = dumps({"a": text}).splitlines()
        inner = line.removeprefix("a = ")
        assert not re.match(r'"(\\"|\\u0022)', inner)
        assert not re.match(r'"(\s|\\[tn])*,', inner)
        assert "\\u" not in text or inner.count("\\u") == text.count("\\u")
        assert inner[0] == '"' or "\\" not in inner


@pytest.mark.parametrize(
    ("text", "is_misread"),
    [('"it\'s"', True), ('"a\\', True), ('"a', False), (", C:\\users", True), ("C:\\users\\x", False), (", a", False)],
)
def test_what_has_no_way_out_is_told(text: str, is_misread: bool) -> None:
    assert list(misread({"a": [{"b": text}]})) == [text] * is_misread
