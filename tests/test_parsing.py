"""What would take hours or gigabytes to read is refused before it is read, and nothing else is."""

from __future__ import annotations

import json
import time
import tomllib

import pytest

from limner import parsing
from limner.config import Config, files
from limner.errors import UserError

LONG = {
    "bare": ".".join(["a"] * 33) + " = 1",
    "quoted": " . ".join(['"a b"', "'c'"] * 17) + " = 1",
    "a header": "[[" + ".".join(["a-1"] * 200_000) + "]]",
    "in a table": "x = {" + ".".join(["a"] * 200_000) + " = 1}",
}


@pytest.mark.parametrize("name", LONG)
def test_names_of_many_parts(name: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match="more than 32 parts"):
        parsing.toml(LONG[name])
    assert time.process_time() - start < 1


@pytest.mark.parametrize("text", [
    ".".join(["a"] * 32) + " = 1", 'x = "a. b c. d"\n', 'y = "' + "some words. " * 500 + '"', "z = [" + "0.1, " * 5000 + "]",
    'p = """\n' + "a" * 900_000 + '\n"""', "q = '" + "." * 900_000 + "'", "w = '" + "a " * 400_000 + "'",
    'v = "' + '\\"' * 400_000 + '"',
    'prompts = ["' + "a. " * 200 + '"]\n# ' + "ab . " * 200,
    "n = [0xff, 0o17, 0b11, 1e3, nan]",
])  # fmt: skip
def test_what_is_no_such_name_is_read_quickly(text: str) -> None:
    start = time.process_time()
    assert repr(parsing.toml(text)) == repr(tomllib.loads(text))
    assert time.process_time() - start < 3


@pytest.mark.parametrize("text", ["a = 0x" + "f" * 3600, "a = 1" + "0" * 4400, "a = " + "[" * 5000, "a", "\0"])
def test_all_that_is_wrong_is_one_error(text: str) -> None:
    with pytest.raises(ValueError):
        parsing.toml(text)


@pytest.mark.parametrize("entry", ["[],", "{},", '{"a":{}},', '"ab",', "1.5,", "[[]],"])
def test_json_of_more_values_than_fit(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is above what the values really take."""
    import tracemalloc

    text = "[" + entry * 20_000 + "0]"
    tracemalloc.start()
    value = json.loads(text)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    monkeypatch.setattr(parsing, "MAX_JSON_BYTES", taken)
    with pytest.raises(ValueError, match="more values"):
        parsing.json_value(text)
    monkeypatch.setattr(parsing, "MAX_JSON_BYTES", 10 * taken + 10_000_000)
    assert parsing.json_value(text) == parsing.json_value(text.encode()) == value


def test_tags_within_a_text_are_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = json.dumps({"a": {f"tag {i}": i for i in range(10_000)}})
    monkeypatch.setattr(parsing, "MAX_JSON_BYTES", 2 * len(tags))
    assert json.loads(parsing.json_value(json.dumps({"ss_tag_frequency": tags}))["ss_tag_frequency"])["a"]["tag 3"] == 3
    with pytest.raises(ValueError, match="more values"):
        parsing.json_value(tags)


def test_the_line_of_an_option_is_found_at_once() -> None:
    text = '[output]\nname = """\n' + "[" * 400_000 + "\n[" + " " * 400_000 + 'x\n"""\n[ "nope" ] # here\nb = 1\n'
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        files.build(files.parse(text, "x"), {}, text, "x")
    assert time.process_time() - start < 3
    assert any("x, line 6" in f.message for f in caught.value.findings if f.field == "nope")


def test_a_slip_in_kohyas_name_is_known() -> None:
    with pytest.raises(UserError) as caught:
        files.build_as(Config, {"optimizer": {"learing_rate": 1}}, {})
    assert caught.value.findings[0].remedy == "Did you mean optimizer.lr?"
