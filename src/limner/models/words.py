"""New words in a text: which token ids stand for them.

Ids below zero, which no tokenizer gives: CLIPs of old configurations (`eos_token_id` = 2) take the largest id for a text's end,
so ids behind the vocabulary would move their pooled vector.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Words = Mapping[str, Sequence[int]]
"""Word -> its ids."""


def token_ids(text: str, words: Words, tokenizer: Any) -> list[int]:
    """The ids of a text without start and end. A word is found as a whole and in any case: CLIP reads small letters only."""
    parts = re.split(f"({'|'.join(map(whole, words))})", text, flags=re.IGNORECASE) if words else [text]
    ids = {word.lower(): own for word, own in words.items()}
    return [i for n, part in enumerate(parts) for i in (ids[part.lower()] if n % 2 else _plain(part, tokenizer))]


def _plain(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def whole(word: str) -> str:
    """The pattern of a word where no letter or digit goes on before or behind it."""
    before, behind = (r"(?<!\w)" if re.match(r"\w", word) else "", r"(?!\w)" if re.search(r"\w\Z", word) else "")
    return f"{before}{re.escape(word)}{behind}"
