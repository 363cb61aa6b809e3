"""Bad configurations: each fault is named with its field, its line and a remedy; all at once; never a traceback."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from limner.config import files
from limner.config.fields import walk
from limner.errors import Finding, UserError


def faults(path: Path, content: str | bytes) -> list[Finding]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        files.read(path)
    for finding in caught.value.findings:
        assert finding.field and finding.severity == "error"
        shown = str(finding)
        assert len(shown) <= 760 and shown.isprintable(), shown
        assert "pydantic" not in shown and "Traceback" not in shown
    return caught.value.findings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.toml"


def test_all_faults_come_at_once_each_with_line_and_remedy(path: Path) -> None:
    text = """
[train]
clip_norm = "of"
steps = 0
seed = -1
epochs = true
batch_size = 1.0
ema = 2
precision = "fp8"
[optimizer]
lr = nan
lrate = 1
[adapter]
kind = "lohaha"
[nope]
a = 1
[sample]
prompts = "x"
[model]
base = "a\\u0007"
"""
    found = {f.field: f for f in faults(path, text)}
    lines = {"train.clip_norm": 3, "train.steps": 4, "train.seed": 5, "train.epochs": 6, "train.batch_size": 7, "train.ema": 8}
    lines |= {"train.precision": 9, "optimizer.lr": 11, "optimizer.lrate": 12, "adapter.kind": 14, "nope": 15}
    lines |= {"sample.prompts": 18, "model.base": 20}
    assert set(found) == set(lines)
    for field, line in lines.items():
        assert f"{path}, line {line}" in found[field].message, found[field]
        assert found[field].remedy
    assert found["train.precision"].remedy == 'Expected: "fp32" or "bf16" or "fp16".'
    assert found["adapter.kind"].remedy == "Choose one of: lora, loha, lokr, oft, ia3, glora, dylora, full, embedding, none."
    assert found["optimizer.lrate"].remedy == "Did you mean optimizer.lr?"


WRONG = [
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1",
    "0",
    "9223372036854775808",
    "true",
    '"3"',
    "[1]",
    "{a = 1}",
    "1979-05-27",
    '"\\u0000"',
]
WRONG += ['"\\u001b[2J"', '"' + "x" * 20_001 + '"', "[" * 200 + "]" * 200]


@pytest.mark.parametrize("option", walk(), ids=lambda o: f"{o.path}-{o.tags}")
def test_a_wrong_value_names_its_field_and_line(option) -> None:
    kind = f'kind = "{option.tags[0]}"\n' if option.tags else ""
    for value in WRONG:
        text = f"[{option.section}]\n{kind}{option.name} = {value}\n"
        try:
            files.build(files.parse(text, "x"), {}, text, "x")
        except UserError as error:
            [finding] = error.findings
            assert finding.field == option.path
            assert f"x, line {3 if option.tags else 2}" in finding.message
        else:
            assert _is_right(option, value), value


def _is_right(option, value: str) -> bool:
    """Whether one of the wrong values is a right one for this option after all."""
    numbers = {"-1": -1.0, "0": 0.0, "9223372036854775808": 2.0**63}
    if value in numbers:
        return bool({int, float} & set(option.types)) and (option.minimum or 0) <= numbers[value] <= (option.maximum or 2.0**63)
    return (value == "true" and bool in option.types) or (value == '"3"' and bool({str, Path} & set(option.types)))


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("model = 3", "model"),
        ("[[train]]\nsteps = 1", "train"),
        ('adapter = "lora"', "adapter"),
        ("[adapter]\nkind = 3", "adapter.kind"),
        ("[adapter]\nkind = [1]", "adapter.kind"),
        ('[adapter]\nkind = "none"\nrank = 3', "adapter.rank"),
        ("[adapter]\nlora = 3", "adapter.lora"),
        ("[train]\nnone = 3", "train.none"),
        ('"train.steps" = 3', "train.steps"),
        ('"" = 3', '""'),
        ('"__class__" = 3', "__class__"),
        ("[train]\nsteps.x = 3", "train.steps"),
        (".".join(["a"] * 30) + " = 1", "a.a"),
        ('[data]\npath = ""', "data.path"),
        ('[data]\npath = "~nobody-of-this-name/x"', "data.path"),
        ('[data]\npath = "' + "x" * 300 + '"', "data.path"),
        ('[data]\npath = "' + "x/" * 3000 + '"', "data.path"),
        ("[data]\ncaption_extensions = [1, 2]", "data.caption_extensions"),
    ],
    ids=lambda v: v[:30],
)
def test_odd_shapes_name_one_field(path: Path, text: str, field: str) -> None:
    [finding] = faults(path, text)
    assert field.startswith(finding.field)
    assert finding.remedy


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\xff\xfe\x01",
        "[train]\nsteps = 1".encode("utf-16"),
        b"\xff" * 100,
        "[train",
        "[train]\nsteps = 1\nsteps = 2",
        "[train]\n[train]",
        "a = " + "[" * 500 + "]" * 500 + "]",
        "a = " + "[" * 50_000,
        "a = " + "{b = " * 5_000,
        ".".join(["a"] * 5_000) + " = 1",
        "a = " + "9" * 4_301,
        'a = "\x00"',
        'a = "\x1b[2J"',
        b"x" * (files.MAX_BYTES + 1),
        "[]",
        "null",
        '"x"',
        "3",
    ],
    ids=lambda v: repr(v[:20]),
)
def test_what_is_no_configuration(path: Path, content: str | bytes) -> None:
    [finding] = faults(path, content)
    assert finding.field == str(path) or finding.field == "a.a" or finding.field == "a"


def test_what_is_no_file(path: Path, tmp_path: Path) -> None:
    for wrong in (path, tmp_path):
        with pytest.raises(UserError, match="is not a file"):
            files.read(wrong)


def test_many_unknown_keys_are_counted_not_listed_and_quickly(path: Path) -> None:
    start = time.process_time()
    found = faults(path, "\n".join(f"k{i} = 1" for i in range(20_000)))
    assert time.process_time() - start < 5
    assert len(found) == 51
    assert found[-1].message == "19950 more options are wrong."


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([f"optimizer.learn{i:06}" for i in range(130_000)], "129950 more options are not known."),
        ([f"optimizer.{i:02}{'learning_rate' * 4600}" for i in range(50)], "there is no such option."),
        ([f"optimizer.{'learning_rate' * 230_000}"], "there is no such option."),
    ],
)
def test_three_megabytes_of_unknown_names_are_answered_at_once(names: list[str], said: str) -> None:
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        files.build({}, dict.fromkeys(names, "1"))
    assert time.process_time() - start < 0.4
    assert len(caught.value.findings) == min(len(names), 51) and caught.value.findings[-1].message == said


def test_many_overrides_walk_the_schema_no_more_often_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[int] = []
    monkeypatch.setattr(files, "walk", lambda: walks.append(1) or walk())
    files.build({}, {"train.steps": "5"})
    one = len(walks)
    config = files.build({}, {"train.steps": "5", "data.path": "pics", "model.base": "no/such", "output.path": "~/out"})
    assert len(walks) - one <= one
    assert (
        config.data.path == Path.cwd() / "pics" and config.model.base == "no/such" and config.output.path == Path.home() / "out"
    )


def test_an_unknown_key_names_the_nearest(path: Path) -> None:
    text = "[optimizer]\nlearning_rate = 1\nwarm_up_steps = 2\n[train]\nbatchsize = 2\n[data]\nqqqqq = 1\n"
    remedies = {f.field: f.remedy for f in faults(path, text)}
    assert remedies["optimizer.learning_rate"] == "Did you mean optimizer.lr?"
    assert remedies["optimizer.warm_up_steps"] == "Did you mean optimizer.warmup_steps?"
    assert remedies["train.batchsize"] == "Did you mean train.batch_size?"
    assert remedies["data.qqqqq"] == "`limner config options` lists every option."
