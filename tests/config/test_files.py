"""TOML out and in again: nothing is lost. Overrides and relative paths mean what they should."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

import pytest

from limner.config import Config, Lora, NoAdapter, files
from limner.config.fields import Option, section_types, walk
from limner.errors import UserError

KINDS = [tag for _, tag, _ in section_types() if tag]
TEXTS = [
    "",
    "a cat",
    'quo"te',
    "back\\slash",
    "two\nlines",
    "tab\there",
    "ünï 🐈 \u202e bidi",
    "# no comment",
    "'''",
    '"""',
    "[x]",
]


def _read_back(config: Config, **options: bool) -> Config:
    text = files.render(config, **options)
    return files.build(files.parse(text, "x"), {}, text, "x")


def _random_value(option: Option, rng: random.Random) -> Any:
    """A valid value that is not the default."""
    if option.is_list:
        return [rng.choice(option.choices or TEXTS) for _ in range(rng.randrange(4))]
    if option.choices and (not option.types or rng.random() < 0.3):
        return rng.choice(option.choices)
    kind = option.types[0]
    if kind is bool:
        return not option.default
    if kind is Path:
        return "/" + rng.choice(["a b", "ü", "x'y\"z", "c\\d"])
    if kind is str:
        return rng.choice(TEXTS)
    low, high = option.minimum or 0, option.maximum if option.maximum is not None else 10**6
    if kind is int:
        return rng.choice([int(low), int(high), rng.randint(int(low), int(high))])
    return rng.choice([low + (high - low) * f for f in (1e-9, 0.1, 0.5, rng.uniform(0.01, 0.99))])


def _raw(rng: random.Random, tag: str, share: float = 1.0) -> dict[str, dict[str, Any]]:
    raw: dict[str, dict[str, Any]] = {"adapter": {"kind": tag}}
    for option in walk():
        if option.name != "kind" and (not option.tags or tag in option.tags) and rng.random() < share:
            raw.setdefault(option.section, {})[option.name] = _random_value(option, rng)
    return raw


def test_the_default_config_survives_being_written() -> None:
    assert _read_back(Config()) == Config()
    assert _read_back(Config(adapter=NoAdapter())) == Config(adapter=NoAdapter())
    assert _read_back(Config(), with_help=False) == _read_back(Config(), advanced=False) == Config()


@pytest.mark.parametrize("tag", KINDS)
def test_every_option_survives_being_written(tag: str) -> None:
    config = files.build(_raw(random.Random(1), tag), {})
    assert _read_back(config) == config
    for option in walk():
        if not option.tags or tag in option.tags:
            assert hasattr(getattr(config, option.section), option.name)


@pytest.mark.parametrize("seed", range(60))
def test_random_configs_survive_being_written(seed: int) -> None:
    rng = random.Random(seed)
    config = files.build(_raw(rng, rng.choice(KINDS), rng.random()), {})
    for options in ({}, {"with_help": False}, {"advanced": False}):
        assert _read_back(config, **options) == config


def test_help_stands_above_its_option_and_what_was_not_given_is_a_comment() -> None:
    lines = files.render(Config()).splitlines()
    place = lines.index("# alpha =")
    assert "".join(lines[place - 2 : place]) == (
        "# The update is scaled by alpha / rank. Equal to the rank when not given. [more than 0, at most# 4096]"
    )
    assert "alpha" not in tomllib.loads("\n".join(lines))["adapter"]
    assert max(map(len, lines)) <= 100


def test_bom_and_crlf_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b"[train]\r\nsteps = 7\r\n")
    assert files.read(path).train.steps == 7
    path.write_bytes(b"")
    assert files.read(path) == Config()


def test_relative_paths_are_taken_from_where_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (there := tmp_path / "there").mkdir()
    (here := tmp_path / "here").mkdir()
    (there / "my model").mkdir()
    monkeypatch.chdir(here)
    path = there / "a.toml"
    path.write_text(
        '[model]\nbase = "my model"\n[data]\npath = "pics"\n[output]\npath = "/abs"\n[memory]\ncache_path = "~/c"\n'
    )
    config = files.read(Path("../there/a.toml"), {"sample.prompt_file": "p.txt"})
    assert config.model.base == f"{here}/../there/my model"
    assert config.data.path is not None and config.data.path.resolve() == there / "pics"
    assert config.output.path == Path("/abs")
    assert config.memory.cache_path == Path.home() / "c"
    assert config.sample.prompt_file == here / "p.txt"
    path.write_text('[model]\nbase = "owner/name"\n')
    assert files.read(path).model.base == "owner/name"
    assert files.read(path, {"model.base": "../there/my model"}).model.base == f"{here}/../there/my model"


OVERRIDES = [
    ("optimizer.lr", "1e-4", 1e-4),
    ("optimizer.lr", "1", 1.0),
    ("train.clip_norm", "off", "off"),
    ("train.clip_norm", "0.5", 0.5),
    ("train.seed", "9223372036854775807", 2**63 - 1),
    ("train.precision", "bf16", "bf16"),
    ("data.upscale", "false", False),
    ("data.trigger", "true", "true"),
    ("output.name", "007", "007"),
    ("model.base", "pocket", "pocket"),
    ("sample.prompts", "a cat, sitting --w 64", ("a cat, sitting --w 64",)),
    ("sample.prompts", '["a", "b"]', ("a", "b")),
    ("sample.prompts", "[a cat]", ("[a cat]",)),
    ("sample.prompts", "", ("",)),
]


@pytest.mark.parametrize(("path", "typed", "expected"), OVERRIDES)
def test_overrides_are_read_as_their_option_needs(path: str, typed: str, expected: Any) -> None:
    section, _, name = path.partition(".")
    value = getattr(getattr(files.build({}, {path: typed}), section), name)
    assert value == expected and type(value) is type(expected)


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[train]\nsteps = 1\nseed = 5\n")
    config = files.read(path, {"train.steps": "2"})
    assert (config.train.steps, config.train.seed) == (2, 5)


@pytest.mark.parametrize("given", [{}, {"kind": "lora"}])
def test_switching_the_kind_drops_the_other_kinds_options(given: dict[str, str]) -> None:
    raw = {"adapter": {**given, "rank": 8, "text_encoder": True}}
    assert files.build(raw, {"adapter.kind": "none"}).adapter == NoAdapter()
    assert files.build(raw, {"adapter.kind": "lora"}).adapter == Lora(rank=8, text_encoder=True)
    assert raw == {"adapter": {**given, "rank": 8, "text_encoder": True}}


def test_the_order_of_overrides_does_not_matter() -> None:
    overrides = {"adapter.rank": "4", "adapter.kind": "lora"}
    assert files.build({"adapter": {"kind": "none"}}, overrides).adapter == Lora(rank=4)


def test_the_reference_page_names_every_option_once() -> None:
    page = files.render_reference()
    for path in {o.path for o in walk()}:
        assert page.count(f"### {path}\n") == sum(o.path == path for o in walk()), path


def test_all_faults_of_overrides_come_at_once() -> None:
    with pytest.raises(UserError) as caught:
        files.build({}, {"train.clip_norm": "of", "nope": "1", "optimizer.lr": "x", "learning_rate": "3"})
    assert sorted(f.field for f in caught.value.findings) == ["learning_rate", "nope", "optimizer.lr", "train.clip_norm"]
    assert "Did you mean optimizer.lr?" in str(caught.value) and "(," not in str(caught.value)


def _values(rng: random.Random, tag: str) -> dict[str, str]:
    """A valid typed text for every option of a variant, drawn from all that it may be."""
    raw = _raw(rng, tag)
    by_path = {o.path: o for o in walk() if not o.tags or tag in o.tags}
    return {path: files.as_typed(o, raw[o.section][o.name]) for path, o in by_path.items() if o.name in raw[o.section]}


@pytest.mark.parametrize("tag", KINDS)
@pytest.mark.parametrize("seed", range(15))
def test_typed_values_survive_config_and_toml(seed: int, tag: str) -> None:
    config = files.build({}, _values(random.Random(seed), tag))
    values = files.overrides_of(config)
    assert files.build({}, values) == config
    assert files.overrides_of(_read_back(config)) == values
    assert all(isinstance(v, str) for v in values.values())


TYPED = {
    "train.seed": ["9223372036854775807"],
    "optimizer.eps": ["1e-300", "5e-324"],
    "optimizer.weight_decay": ["0.0", "1.0"],
    "train.clip_norm": ["off", "1e+300", "5.0"],
    "objective.weighting": ["min_snr", "debiased"],
    "data.trigger": ["", "true", "1e-4", "[x]", "猫 'x' \"y\"", "two\nlines"],
    "output.author": ["", " "],
    "output.name": ["", "007", "off"],
    "model.base": ["/a/b.safetensors", "owner/name"],
    "data.path": ["/a b/ü", "/x'y"],
    "sample.prompts": ['["a","b"]', '[""]', '["[x]"]', '["a\\nb","\\\\"]', '["猫 --w 64"]'],
    "data.caption_extensions": ["[]"],
    "data.buckets": ["false"],
    "adapter.kind": ["none"],
}


@pytest.mark.parametrize(("path", "typed"), [(p, t) for p, texts in TYPED.items() for t in texts])
def test_typed_texts_come_back_as_they_were(path: str, typed: str) -> None:
    values = files.overrides_of(_read_back(files.build({}, {path: typed})))
    assert values == {path: typed}


@pytest.mark.parametrize(
    "typed", ["nan", "inf", "1e400", "9" * 401, "0x" + "f" * 5000, "9" * 5000, "x" * (2 << 20), "[" * 9000]
)
@pytest.mark.parametrize(
    "path", ["train.seed", "train.steps", "optimizer.lr", "sample.every_steps", "output.state_every_steps"]
)
def test_impossible_numbers_are_refused_at_their_field(path: str, typed: str) -> None:
    with pytest.raises(UserError) as caught:
        files.build({}, {path: typed})
    assert [f.field for f in caught.value.findings] == [path]
