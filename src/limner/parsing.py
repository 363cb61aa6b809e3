"""TOML and JSON of strangers as values: what would take hours or gigabytes to read is refused before it is read."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable
from typing import Any

_PART = r"""(?:(?<![\w-])[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_NAME = re.compile(rf"(?:^|[\[{{,])[ \t]*+{_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{32}}", re.ASCII | re.MULTILINE)
"""tomllib walks along a dotted name once for each of its parts: of one megabyte it would take days."""
_LONG_NUMBER = re.compile(r"(?<!\w)0[xob][0-9A-Fa-f_]{3500}")
"""Python bounds the digits of decimal numbers alone, and then cannot write the others out."""
MAX_JSON_BYTES = 512 << 20
_BYTES = {"{": 200, "[": 72, ",": 104}
"""The most memory that what begins there takes in CPython: a small dict, a list, a number or short text and its place."""
_IN_TEXT = ', \\"'
"""JSON within a text, as LoRAs have their tags: no comma of the JSON itself stands before a backslash."""


def toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ValueError, whatever is wrong with it."""
    if _LONG_NAME.search(text):
        raise ValueError("a name has more than 32 parts")
    if _LONG_NUMBER.search(text):
        raise ValueError("a number has thousands of digits")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_value(
    text: str | bytes,
    *,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    constant: Callable[[str], Any] | None = None,
) -> Any:
    """The value of a JSON text; `pairs` makes its objects, `constant` what stands for NaN and the infinities.

    Raises ValueError, whatever is wrong with it, be it that text and values would take more than MAX_JSON_BYTES of memory:
    three bytes are a list of 64.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    values = sum(text.count(sign) * size for sign, size in _BYTES.items()) - text.count(_IN_TEXT) * _BYTES[","]
    if sys.getsizeof(text) + values > MAX_JSON_BYTES:
        raise ValueError("it holds more values than there is any use for")
    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
