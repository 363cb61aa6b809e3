"""The arguments of a script, read from its source, are those that argparse itself finds when the script is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fake_sd_scripts
from limner.errors import UserError
from limner.formats.argument_source import Argument, known_faults, read_arguments

_ASK = """
import json, sys
sys.path.insert(0, "")
actions = __import__(sys.argv[1]).setup_parser()._actions
name = lambda a: "flag" if a.nargs == 0 else getattr(a.type, "__name__", "str")
told = lambda a: [name(a), a.nargs not in (None, 0), a.choices or [], a.default]
print(json.dumps({a.dest: told(a) for a in actions if a.dest != "help"}))
"""


@pytest.mark.parametrize("script", ["train_network", "train_db"])
def test_it_agrees_with_argparse(tmp_path: Path, script: str) -> None:
    checkout = fake_sd_scripts.make(tmp_path)
    done = subprocess.run([sys.executable, "-c", _ASK, script], cwd=checkout, capture_output=True, text=True, check=True)
    found = read_arguments(checkout, f"{script}.py")
    assert {a.name: [a.type, a.is_list, list(a.choices), a.default] for a in found.values()} == json.loads(done.stdout)
    assert ("reg_data_dir" in found, "in_json" in found) == ((True, False) if script == "train_network" else (False, True))


def test_the_source_is_never_run(tmp_path: Path) -> None:
    checkout = fake_sd_scripts.make(tmp_path)
    mark = tmp_path / "ran"
    for name in ("train_network.py", "library/train_util.py"):
        path = checkout / name
        path.write_text(f"open({str(mark)!r}, 'w')\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    assert "network_dim" in read_arguments(checkout, "train_network.py") and not mark.exists()


SOURCES = {
    "no setup_parser": "x = 1",
    "no python": "def setup_parser(:",
    "zero bytes": "def setup_parser():\n    \0",
    "too deep": "x = " + "(" * 5000 + ")" * 5000,
}


@pytest.mark.parametrize("text", SOURCES.values(), ids=SOURCES)
def test_what_cannot_be_read_is_refused_in_words(tmp_path: Path, text: str) -> None:
    checkout = fake_sd_scripts.make(tmp_path)
    (checkout / "train_network.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_arguments(checkout, "train_network.py")
    assert caught.value.findings[0].field == "launch.sd_scripts" and caught.value.findings[0].remedy


def test_functions_that_call_one_another_end(tmp_path: Path) -> None:
    text = "def setup_parser():\n    parser = 1\n    more(parser)\ndef more(parser):\n"
    text += (
        "    parser.add_argument('--a-b', '-a', type=lambda s: s, choices=range(3), dest=None, nargs='?')\n    more(parser)\n"
    )
    (tmp_path / "s.py").write_text(text, encoding="utf-8")
    assert read_arguments(tmp_path, "s.py") == {"a_b": Argument("a_b", "", is_list=False)}


def test_values_are_checked_as_argparse_would_check_words() -> None:
    known = {
        "flag": Argument("flag", "flag"),
        "count": Argument("count", "int"),
        "rate": Argument("rate", "float"),
        "name": Argument("name", "str"),
        "some": Argument("some", "str", is_list=True),
        "one_of": Argument("one_of", "str", choices=(None, "a", "b")),
        "any": Argument("any", ""),
    }
    good = {"flag": True, "count": 3, "rate": 3, "name": "x", "some": ["x"], "one_of": "b", "any": [1]}
    bad = {"flag": 1, "count": True, "rate": "3", "name": 3, "some": "x", "one_of": "c", "other": 1}
    assert list(known_faults(good, known)) == []
    assert dict(known_faults(bad, known)) == {
        "flag": "must be true or false",
        "count": "must be a whole number",
        "rate": "must be a number",
        "name": "must be text",
        "some": "must be a list",
        "one_of": "must be one of a, b",
        "other": "is no argument of it",
    }
    assert dict(known_faults({"some": [1]}, known)) == {"some": "must be a list, each text"}
