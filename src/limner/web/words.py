"""The page's words in other languages: one JSON file a language, English text -> translation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent / "static" / "words"
LANGUAGES = ("en", *sorted(p.stem for p in FOLDER.glob("*.json")))


@dataclass(frozen=True)
class Words:
    """Translations into one language; a text that has none is said in English."""

    language: str = "en"
    translations: dict[str, str] = field(default_factory=dict)

    def __call__(self, text: str) -> str:
        return self.translations.get(text, text)


def words_of(language: str) -> Words:
    """The words of a language of `LANGUAGES`."""
    if language == "en":
        return Words()
    return Words(language, json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8")))
