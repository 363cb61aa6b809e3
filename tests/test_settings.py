"""`settings.toml`: kept as the user wrote it; damage is reported, never fatal."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from limner import settings
from limner.settings import Settings
from limner.web import words

FULL = Settings(
    pictures=Path("/data/pictures"), models=Path("/data/models"), output=Path("/data/out"),
    roots=(Path("/a"), Path("/b")),
    hosts=("studio.example",), theme="dark", language="ja",
    defaults={"optimizer.lr": "1e-4", "train.steps": "0", "output.name": ""},
)  # fmt: skip


def test_nothing_there_is_no_fault(home: Path) -> None:
    assert settings.read(home) == (Settings(), [])


def test_what_is_written_is_read_again(home: Path) -> None:
    settings.write(home, FULL)
    assert settings.read(home) == (FULL, [])
    settings.write(home, Settings())
    assert settings.read(home) == (Settings(), [])


def test_comments_and_unknown_keys_stay(home: Path) -> None:
    home.mkdir()
    path = home / settings.NAME
    path.write_text(
        '# mine\ntheme = "light"  # I like it\nfuture = 3\n[defaults]\n'
        '# slow is good\n"optimizer.lr" = "1e-4"\n"train.steps" = "9"\n'
    )
    kept, findings = settings.read(home)
    assert [f.field for f in findings] == ["settings.toml: future"]
    settings.write(home, replace(kept, language="ja", defaults={"optimizer.lr": "2e-4"}))
    text = path.read_text()
    assert all(line in text for line in ("# mine", "# I like it", "future = 3", "# slow is good", '"optimizer.lr" = "2e-4"'))
    assert "train.steps" not in text
    assert settings.read(home)[0] == Settings(theme="light", language="ja", defaults={"optimizer.lr": "2e-4"})


@pytest.mark.parametrize(
    "content",
    [
        b"theme = ",
        b"\xff\xfe\x00",
        b"a = 1\na = 2",
        b"x = " + b"[" * 5000,
        b"theme" + b".a" * 5000 + b" = 1",
        b"#" * (settings.LIMIT_BYTES + 1),
    ],
)
def test_a_damaged_file_is_kept_aside(home: Path, content: bytes) -> None:
    home.mkdir()
    (home / settings.NAME).write_bytes(content)
    for rename in (False, True):
        assert (home / settings.NAME).read_bytes() == content
        kept, [finding] = settings.read(home, aside=rename)
        assert kept == Settings() and finding.severity == "warning" and "damaged" in finding.message
    [aside] = home.glob("settings.toml.damaged-*")
    assert aside.name in finding.remedy and aside.read_bytes() == content
    settings.write(home, FULL)
    assert settings.read(home) == (FULL, [])


@pytest.mark.parametrize(
    "line",
    [
        "theme = 'pink'", "theme = 1", "theme = []", "language = 'xx'", "language = ['en']", "pictures = 3",
        "pictures = 'here'", "models = ['/x']", "output = \"/a\\u0000b\"",
        "roots = '/x'", "roots = [1]",
        "roots = ['relative']", "hosts = 'x'", "defaults = 3", "defaults = { 'a.b' = 3 }",
        "[defaults]\na.b = '3'", "unknown = 1",
        "pictures = '~nobody-of-that-name/x'", "theme = inf", "theme = 1979-05-27",
        "defaults" + ".a" * 30 + " = 1", "theme" + ".a" * 30 + " = 1",
    ],
)  # fmt: skip
def test_a_wrong_key_is_reported_and_the_others_count(home: Path, line: str) -> None:
    home.mkdir()
    (home / settings.NAME).write_text(
        "output = '/data/out'\n" * ("output" not in line) + "theme = 'dark'\n" * ("theme" not in line) + line
    )
    kept, [finding] = settings.read(home)
    assert finding.severity == "warning" and finding.field.split(": ")[1] in line
    assert kept == Settings(
        output=Path("/data/out") if "output" not in line else None, theme="dark" if "theme" not in line else "system"
    )


def test_wrong_values_are_left_to_be_mended(home: Path) -> None:
    home.mkdir()
    wrong = "pictures = 'here'\ntheme = 3\nhosts = ['a', 5]\nlanguage = \"ja\"\n\n[defaults]\na.b = 3\n"
    (home / settings.NAME).write_text(wrong)
    settings.write(home, replace(settings.read(home)[0], theme="dark", language="en"))
    assert tomllib.loads((home / settings.NAME).read_text()) == {
        "pictures": "here", "theme": "dark", "hosts": ["a", 5], "defaults": {"a": {"b": 3}},
    }  # fmt: skip
    settings.write(home, replace(FULL, language="en"))
    assert settings.read(home) == (replace(FULL, language="en"), [])


def test_an_unreadable_file_is_reported(home: Path) -> None:
    (home / settings.NAME).mkdir(parents=True)
    for aside, said in ((False, "it is a folder"), (True, "it is a folder")):
        kept, [finding] = settings.read(home, aside=aside)
        assert kept == Settings() and said in finding.message
    assert len(list(home.glob("settings.toml.damaged-*"))) == 1
    (home / settings.NAME).symlink_to(settings.NAME)
    kept, [finding] = settings.read(home, aside=True)
    assert kept == Settings() and "cannot be read" in finding.message and (home / settings.NAME).is_symlink()


def test_an_empty_folder_is_none(home: Path) -> None:
    assert settings.parse({"pictures": ""}) == (Settings(), [])


def test_the_page_has_words_only_for_languages_of_the_settings() -> None:
    assert set(words.LANGUAGES) <= set(settings.LANGUAGES)
