"""TOML as sd-scripts' reader takes it: the package `toml` 0.10.2, which misreads some texts that are good TOML.

Measured: a text in double quotes that begins with a quotation mark is read as empty; it is put into single quotes. A comma at
the head of a text in a list is taken for the next item; it is escaped. What has no such way out is told by :func:`misread`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import tomlkit
from tomlkit.items import String, StringType, Trivia


def dumps(values: Mapping[str, Any]) -> str:
    """The text of a document. Values are plain: texts, numbers, booleans, lists and tables of them."""
    document = tomlkit.document()
    for key, value in values.items():
        document[key] = _plain(value)
    return tomlkit.dumps(document)


def misread(value: Any) -> Iterator[str]:
    """The texts that would be read as something else, however they are written."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for entry in value:
            yield from misread(entry)
    elif isinstance(value, str):
        is_escaped = _begins_with_comma(value) or not value.replace("\n", "").replace("\t", "").isprintable()
        if (value.startswith('"') and not _is_literal(value)) or (is_escaped and "\\u" in value):
            yield value


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _text(value: str) -> String:
    if value.startswith('"') and _is_literal(value):
        return String(StringType.SLL, value, value, Trivia())
    inner = json.dumps(value, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")  # else JSON's escapes are TOML's
    if _begins_with_comma(value):
        inner = inner.replace(",", "\\u002c", 1)
    return String(StringType.SLB, value, inner, Trivia())


def _begins_with_comma(value: str) -> bool:
    return value.lstrip().startswith(",")


def _is_literal(value: str) -> bool:
    """Whether a text can stand in single quotes; a backslash there is taken for an escape, if it is the last sign."""
    return "'" not in value and "\\" not in value and value.isprintable()
