"""The schema is walked whole, and every rendering follows from it alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

import limner.errors
from limner.config import Config, files
from limner.config.fields import applies, condition_words, holds, section_types, walk

GOLDEN = Path(__file__).parents[1] / "golden" / "schema.json"
SOURCE = Path(limner.errors.__file__).parent


def _declared() -> list[tuple[str, str | None]]:
    """(path, tag) of every field, found without `walk`."""
    out: list[tuple[str, str | None]] = []
    for name, field in Config.model_fields.items():
        kinds = getattr(field.annotation, "__args__", None) or (field.annotation,)
        for kind in kinds:
            assert issubclass(kind, BaseModel)
            tag = kind.model_fields["kind"].default if len(kinds) > 1 else None
            out += [(f"{name}.{f}", tag) for f in kind.model_fields if len(kinds) == 1 or f != "kind"]
        if len(kinds) > 1:
            out.append((f"{name}.kind", None))
    return out


def test_walk_finds_every_field_exactly_once() -> None:
    found = [(o.path, tag) for o in walk() for tag in o.tags or (None,)]
    assert len(found) == len(set(found))
    assert sorted(found, key=str) == sorted(_declared(), key=str)


@pytest.mark.parametrize("option", walk(), ids=lambda o: f"{o.path}-{o.tags}")
def test_an_option_says_all_that_renderings_need(option) -> None:
    assert len(option.help) > 10 and option.help[-1] in '.")', option.help
    assert isinstance(option.kohya, str) and " " not in option.kohya
    assert option.type_words()
    assert "e+" not in option.range_words()
    assert option.optional or option.default is not None
    if option.minimum is not None and option.maximum is not None:
        assert option.minimum < option.maximum


def test_ranges_are_said_in_full() -> None:
    words = {o.path: o.range_words() for o in walk()}
    assert words["train.seed"] == "at least 0, at most 9223372036854775807"
    assert words["train.steps"] == "at least 1, at most 10000000"
    assert words["optimizer.lr"] == "more than 0, at most 10"
    assert words["train.ema"] == "more than 0, less than 1"
    assert words["train.clip_norm"] == "more than 0"


def test_every_section_has_a_docstring() -> None:
    assert all((variant.__doc__ or "").strip() for _, _, variant in section_types())


def test_the_schema_is_the_golden_one() -> None:
    """An option added, removed or changed shows up in a review as a change of one file."""
    now = json.dumps(Config.model_json_schema(), indent=2, sort_keys=True) + "\n"
    if not GOLDEN.exists() or GOLDEN.read_text(encoding="utf-8") != now:
        again = (
            "import json; from limner.config import Config; "
            "print(json.dumps(Config.model_json_schema(), indent=2, sort_keys=True))"
        )
        pytest.fail(f"The schema has changed. If that was meant, run:\n  python -c '{again}' > tests/golden/schema.json")


@pytest.mark.parametrize("module", ["config", "config.files", "preflight", "runs", "jobs", "launch", "machine", "cli"])
def test_no_tensor_library_is_imported_by(module: str) -> None:
    heavy = "[m for m in ('torch', 'diffusers', 'transformers', 'accelerate') if m in sys.modules]"
    code = f"import sys, limner.{module}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_new_option_is_one_field(tmp_path: Path) -> None:
    """Four lines in a section's file, and it is walked, written as TOML, read, checked, a flag and in the reference."""
    shutil.copytree(SOURCE, tmp_path / "limner", ignore=shutil.ignore_patterns("pocket", "models", "__pycache__"))
    section = tmp_path / "limner" / "config" / "train.py"
    with section.open("a", encoding="utf-8") as file:
        file.write(
            '\n    sparkle: int = option(3, ge=1, le=9, unit="px", kohya="max_sparkle")\n    """How much it glitters."""\n'
        )
    code = """
import contextlib, io
from limner.cli import config as config_commands
from limner.config import Config, fields, files
from limner.errors import UserError
[option] = [o for o in fields.walk() if o.name == "sparkle"]
print(option.path, option.default, option.help, option.range_words(), option.unit)
print("sparkle = 3" in files.render(Config()), "### train.sparkle" in files.render_reference())
print(files.build({"train": {"sparkle": 4}}, {}).train.sparkle, files.build({}, {"train.sparkle": "5"}).train.sparkle)
try:
    files.build({"train": {"sparkel": 5, "sparkle": 10}, "max_sparkle": 1}, {})
except UserError as error:
    print(*[(f.field, f.remedy) for f in error.findings], sep=chr(10))
out = io.StringIO()
with contextlib.redirect_stdout(out):
    config_commands.config_options("sparkle")
print(repr(out.getvalue()))
from limner.web.form import form_schema
from limner.web.words import Words
[drawn] = [o for section in form_schema(Words()) for o in section["options"] if o["path"] == "train.sparkle"]
print(drawn)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.stdout.splitlines() == [
        "train.sparkle 3 How much it glitters. at least 1, at most 9 px",
        "True True",
        "4 5",
        "('train.sparkle', 'Expected: whole number, at least 1, at most 9.')",
        "('train.sparkel', 'Did you mean train.sparkle?')",
        "('max_sparkle', 'Did you mean train.sparkle?')",
        repr("--train.sparkle [3]\n    How much it glitters.\n"),
        "{'path': 'train.sparkle', 'input': 'number', 'help': 'How much it glitters.', 'expects': 'whole number, at least 1, "
        "at most 9', 'unit': 'px', 'kohya': 'max_sparkle', 'default': '3'}",
    ], done.stderr


def test_conditions_name_options_and_never_each_other_in_a_circle() -> None:
    depends = {o.path: {a.removeprefix("not ").split(" = ")[0] for a in re.split(" and | or ", o.when) if a} for o in walk()}
    assert {p for paths in depends.values() for p in paths} <= set(depends)
    for path in depends:
        seen, pending = set(), set(depends[path])
        while pending:
            seen |= pending
            pending = {q for p in pending for q in depends[p]} - seen
        assert path not in seen


@pytest.mark.parametrize(
    ("when", "overrides", "expected"),
    [
        ("", {}, True),
        ("data.buckets", {}, True),
        ("not data.buckets", {}, False),
        ("data.buckets and data.upscale", {"data.upscale": "false"}, False),
        ("not data.buckets or data.upscale", {"data.buckets": "false", "data.upscale": "false"}, True),
        ("adapter.conv_rank", {}, False),
        ("adapter.conv_rank", {"adapter.conv_rank": "4"}, True),
        ("adapter.conv_rank", {"adapter.kind": "none"}, False),
        ("objective.preserve", {}, False),
        ("objective.preserve", {"objective.preserve": "0.5"}, True),
        ("optimizer.weight_decay", {"optimizer.weight_decay": "0"}, False),
        ("objective.noise_offset", {}, False),
        ("objective.noise_offset", {"objective.noise_offset": "0.1"}, True),
        ("objective.pyramid_levels", {"objective.pyramid_levels": "0"}, False),
        ("sample.prompts", {}, False),
        ("sample.prompts", {"sample.prompts": ""}, True),
        ("sample.negative", {}, False),
        ("adapter.kind = none", {}, False),
        ("not adapter.kind = none", {}, True),
    ],
)
def test_conditions(when: str, overrides: dict[str, str], expected: bool) -> None:
    assert holds(when, files.build({}, overrides)) is expected


def test_an_option_applies_where_it_exists_and_its_condition_holds() -> None:
    [rank] = [o for o in walk() if o.path == "adapter.rank"]
    [author] = [o for o in walk() if o.path == "output.author"]
    assert applies(rank, Config()) and applies(author, Config())
    whole = files.build({}, {"adapter.kind": "none", "output.layout": "diffusers"})
    assert not applies(rank, whole) and not applies(author, whole)
    assert condition_words(author.when) == 'adapter.kind is not "none" or output.layout is "original"'
    assert condition_words("data.buckets and not data.upscale") == "data.buckets is set and data.upscale is not set"
