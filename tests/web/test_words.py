"""The page's words: every text it says is in every language's file, and the translated page is whole."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from limner.config import presets
from limner.config.fields import section_types
from limner.config.tools import Tools
from limner.config.tools.base import ToolSection
from limner.engine.hints import SENTENCES
from limner.web import page as the_page
from limner.web import words
from limner.web.form import form_schema
from limner.web.theme import STATIC

MODULES = sorted(STATIC.glob("*.js"))
PYTHON = sorted(Path(words.__file__).parent.glob("*.py"))
LANGUAGES = [language for language in words.LANGUAGES if language != "en"]
CALL = re.compile(r"(?<![\w.])t\(")
LITERAL = re.compile(r"""\bt\(\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*\)""")
LOOKED_UP = ("page.py", "form.py", "presets.py", "tools_tab.py")
"""Python modules whose texts come from elsewhere: titles of tabs and tools, helps of the schema, what presets are for."""


def said_by_modules() -> set[str]:
    """What the page's JavaScript passes through `t`."""
    return {ast.literal_eval(m[1]) for file in MODULES for m in LITERAL.finditer(file.read_text(encoding="utf-8"))}


def said_by_python() -> set[str]:
    """What our Python passes through the `words` of its context, and the titles of the tabs."""
    calls = [argument for file in PYTHON for argument in words_calls(file)]
    return {str(a.value) for a in calls if isinstance(a, ast.Constant)} | {tab.TITLE for tab in the_page.TABS}


def words_calls(file: Path) -> list[ast.expr]:
    """The argument of each call `words(...)` or `context.words(...)`."""
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [c.args[0] for c in calls if "words" in (getattr(c.func, "id", ""), getattr(c.func, "attr", ""))]


def helps() -> set[str]:
    """The texts of the schema, and what presets are for. A new option or preset need not be translated to be shown."""
    sections: list[dict[str, Any]] = [*form_schema(words.Words()), *form_schema(words.Words(), Tools)]
    said = {text for _, _, kind in section_types(Tools) if issubclass(kind, ToolSection) for text in (kind.title, kind.group)}
    said |= {text for s in sections for text in (s["help"], *(o.get("help", "") for o in s["options"]))}
    said |= {presets.about(file) for file in presets.SHIPPED.glob("*.toml")}
    return said - {""}


def translations(language: str) -> dict[str, str]:
    return dict(words.words_of(language).translations)


def marks(text: str) -> list[str]:
    return sorted(re.findall(r"\{\w+\}", text))


def test_there_are_three_languages() -> None:
    assert words.LANGUAGES == ("en", "ja", "zh-CN")


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.name)
def test_only_literals_are_translated(file: Path) -> None:
    """Else nobody could say which texts a language needs."""
    text = file.read_text(encoding="utf-8")
    assert len(CALL.findall(text)) == len(LITERAL.findall(text))


def test_the_page_says_the_trainers_hints() -> None:
    text = (STATIC / "run_words.js").read_text(encoding="utf-8")
    assert {key: f't("{said}")' in text and f'"{key}":' in text for key, said in SENTENCES.items()} == dict.fromkeys(
        SENTENCES, True
    )


def test_only_literals_are_translated_in_python() -> None:
    for file in PYTHON:
        others = [a for a in words_calls(file) if not isinstance(a, ast.Constant)]
        assert not others or file.name in LOOKED_UP, (file.name, [ast.unparse(a) for a in others])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated(language: str) -> None:
    assert {"Train", "Runs", "New run", "All settings"} <= said_by_modules() | said_by_python()
    assert sorted((said_by_modules() | said_by_python()) - translations(language).keys()) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_translated_that_nobody_says(language: str) -> None:
    assert sorted(translations(language).keys() - said_by_modules() - said_by_python() - helps()) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_marks_stay(language: str) -> None:
    """The same {marks}, as often; no translation is empty."""
    wrong = [text for text, said in translations(language).items() if marks(text) != marks(said) or not said.strip()]
    assert wrong == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_file_is_tidy(language: str) -> None:
    """Sorted, one text a line, each once, in plain UTF-8: so that a change of one text is a change of one line."""
    raw = (words.FOLDER / f"{language}.json").read_bytes()
    pairs = json.loads(raw.decode("utf-8"), object_pairs_hook=list)
    assert len(pairs) == len(dict(pairs))
    assert raw.decode("utf-8") == json.dumps(dict(sorted(pairs)), ensure_ascii=False, indent=2) + "\n"


def overflow(page: Page) -> list[str]:
    """What of our panels reaches beyond the window's right edge, unless it lies in a part of theirs that scrolls or clips.

    The page itself never scrolls sideways: Gradio's container clips what is too wide. Where no font has Chinese characters,
    what stands for them is narrower than they are; the letters are then set as far apart as makes up for it.
    """
    return page.evaluate(
        """() => {
          const pen = document.createElement("canvas").getContext("2d");
          pen.font = "100px sans-serif";
          const gap = Math.max(0, 100 - pen.measureText("学").width) / 100;
          const style = Object.assign(document.createElement("style"), { textContent: `* { letter-spacing: ${gap}em }` });
          document.head.append(style);
          const clips = (e) => !e.matches(".limner") && (getComputedStyle(e).overflowX !== "visible" || clips(e.parentElement));
          return [...document.querySelectorAll(".limner .panel *")]
            .filter((e) => e.offsetWidth > 1 && e.getBoundingClientRect().right > innerWidth + 1 && !clips(e.parentElement))
            .map((e) => `${e.tagName} ${e.className}: ${e.textContent.slice(0, 40)}`);
        }"""
    )


@pytest.mark.long
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_speaks_it(language: str, browser: Browser, limner_web: Callable[..., Any]) -> None:
    """Tabs, buttons and helps are translated; at a phone's width nothing is cut."""
    said = translations(language)
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(limner_web("--port", "0", "--language", language, is_forked=True).url)
    train = page.locator("#panel-new-run").get_by_role("button", name=said["Train"], exact=True)
    expect(train).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == language
    for tab in the_page.TABS:
        expect(page.locator(f"#tab-{tab.NAME}-button")).to_have_text(said[tab.TITLE])

    page.get_by_text(said["All settings"], exact=True).click()
    for folded in page.locator("#panel-form details.advanced > summary").all():
        if folded.is_visible():
            folded.click()
    expect(page.get_by_text(said["The pictures, their captions and their sizes."])).to_be_visible()
    assert overflow(page) == []

    page.locator("#tab-runs-button").click()
    expect(page.get_by_text(said["No runs yet. Give Limner some pictures, and their training shows here."])).to_be_visible()
    assert overflow(page) == []
    assert errors == []
    context.close()
