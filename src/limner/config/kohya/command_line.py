"""A pasted command line of sd-scripts: what a shell would make of its words, without one. Nothing is expanded or run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from limner.config.kohya.arguments import SCRIPT
from limner.config.kohya.reader import ACCELERATE
from limner.config.kohya.report import Report
from limner.config.kohya.scripts import SCRIPTS, arguments
from limner.errors import wrong

_MOST_WORDS = 20_000
_ACCELERATE_FLAGS = {
    "multi_gpu", "cpu", "use_deepspeed", "use_fsdp", "use_megatron_lm", "tpu", "same_network", "no_python", "m", "module",
    "dynamo_use_dynamic", "dynamo_use_fullgraph", "debug", "quiet",
}  # fmt: skip
"""Flags of `accelerate launch` that take no value."""
_LINE_END = re.compile(r"[ \t]*(?:\n|\Z)")
_COMPILING = {"dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic"}
"""Taken under names that tell them from those of sd-scripts."""


def is_one(text: str) -> bool:
    """Whether a text looks like a command that starts one of sd-scripts' trainers, or like arguments of one."""
    start = text.lstrip()
    return start.startswith("--") or ("--" in text and any(name in text for name in SCRIPTS))


def read(text: str, report: Report) -> dict[str, Any]:
    """The arguments by name, the script among them as `_script`. What stands before the script is said in the report as
    `accelerate.name`. Raises UserError where quotes do not end."""
    words = _words(text)
    at = next((i for i, word in enumerate(words) if _script_of(word)), None)
    out = dict[str, Any]()
    if at is not None:
        out[SCRIPT] = _script_of(words[at])
        out |= _launcher(words[:at], report)
    rest = words if at is None else words[at + 1 :]
    for name, values in _flags(rest, report):
        out[name] = _value(name, values, report)
    return out


def _script_of(word: str) -> str:
    name = word.replace("\\", "/").rpartition("/")[2]
    return name if name in SCRIPTS else ""


def _flags(words: list[str], report: Report) -> Iterator[tuple[str, list[str]]]:
    """(name, its values) of each flag; what belongs to none is said."""
    name, values, lost = "", list[str](), 0
    for word in words:
        if word.startswith("--") and len(word) > 2:
            if name:
                yield name, values
            name, equals, value = word[2:].partition("=")
            name, values = name.replace("-", "_"), [value] if equals else []
        elif name and not _is_full(name, values):
            values.append(word)
        else:
            lost += 1
            report.say(f"word {lost}", word, "unknown", why="It stands behind no flag.")
    if name:
        yield name, values


def _is_full(name: str, values: list[str]) -> bool:
    known = arguments().get(name)
    if known is None:
        return len(values) >= 1
    return not known.is_list and len(values) >= (0 if known.kind == "flag" else 1)


def _value(name: str, values: list[str], report: Report) -> Any:
    known = arguments().get(name)
    if known is not None and known.is_list:
        return values
    if not values:
        if known is not None and known.kind != "flag":
            report.say(name, None, "unsupported", why="It has no value.")
            return None
        return True
    return values[0]


def _launcher(words: list[str], report: Report) -> dict[str, Any]:
    """The flags of `accelerate launch`: those that Limner has are arguments, the others are said."""
    out, name = dict[str, Any](), ""
    said = dict[str, Any]()
    for word in words:
        if word.startswith("-") and len(word) > 1:
            name, equals, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            said[name] = value if equals else True
            name = "" if equals or name in _ACCELERATE_FLAGS else name
        elif name:
            said[name], name = word, ""
        elif "=" in word:
            report.say(word, None, "idle", why="It is a variable of the environment.")
    for name, value in said.items():
        if name in ACCELERATE:
            out[name] = value
        elif name in _COMPILING:
            out[f"accelerate.{name}"] = value
        else:
            why = "It is a flag of `accelerate launch`; Limner starts its processes itself."
            report.say(f"accelerate.{name}", value, "idle", why=why)
    return out


def _words(text: str) -> list[str]:
    """The words of a command, for a shell of Linux, cmd or PowerShell: their marks for lines that go on (\\, ^, `) are left
    out, quotes hold a word together, and a backslash is one of a Windows path unless a quote or a space follows it."""
    words, word, quote, i = list[str](), list[str](), "", 0
    is_word = False
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    while i < len(text):
        c, after = text[i], text[i + 1 : i + 2]
        i += 1
        if quote:
            if c == quote:
                quote = ""
            elif c == "\\" and quote == after == '"' and _goes_on(text, i):
                word.append(after)
                i += 1
            else:
                word.append(c)
        elif c in "\"'":
            quote, is_word = c, True
        elif c in "\\^`" and (end := _LINE_END.match(text, i)):
            i = end.end()
        elif c.isspace():
            words += ["".join(word)] if is_word else []
            word, is_word = [], False
        else:
            is_escape = c == "\\" and after and after in "\"' "
            word.append(after if is_escape else c)
            i, is_word = i + bool(is_escape), True
        if len(words) > _MOST_WORDS:
            raise wrong("command line", f"has more than {_MOST_WORDS} words.", "Paste the command alone.")
    if quote:
        raise wrong("command line", f"a quotation mark {quote} does not end.", "Paste the whole command.")
    return [*words, "".join(word)] if is_word else words


def _goes_on(text: str, i: int) -> bool:
    """Whether the quote at `i` is one that is meant, and not the end of a Windows folder such as "C:\\data\\"."""
    after = text[i + 1 : i + 2]
    return bool(after) and not after.isspace()
