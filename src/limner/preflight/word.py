"""The word of an embedding: whether it can be one, and whether there is anything to learn it from."""

from __future__ import annotations

import re
from collections.abc import Iterable

from limner.config import Config
from limner.errors import Finding
from limner.machine import Machine
from limner.models.words import whole
from limner.preflight.records import Records

_UNUSABLE = re.compile(r"[\s,()\[\]{}|:\\]")


def check_word(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    section, word = config.embedding, config.embedding.token
    is_alone = config.adapter.kind == "embedding"
    if word is None:
        if is_alone:
            said = "no word is given, and nothing else is learnt."
            yield Finding("embedding.token", said, 'Set it to a new word that the captions use, such as "zibbo".')
        return
    if not word or _UNUSABLE.search(word):
        said = (
            f"{word!r} cannot be a word: spaces, commas, colons, bars and brackets mean something else in captions and prompts."
        )
        yield Finding("embedding.token", said, "Use letters, digits and signs such as - and _.")
        return
    if section.initial is not None and not section.initial.strip():
        yield Finding("embedding.initial", "is empty.", "Give an ordinary word, or remove it.")
    if config.objective.preserve != "off":
        yield from _preservation(config, word, is_alone)
    if is_alone and config.output.name != word:
        said = f"A1111 and ComfyUI call an embedding by its file's name: the word will be {config.output.name!r} there."
        yield Finding("output.name", said, f"Set it to {word!r}, or rename the file later.", "note")
    captions = [p.caption for p in records.scan.pictures] if records.scan else []
    around = f"{config.data.caption_prefix} {config.data.caption_suffix}"
    if captions and not any(_holds(c, word) for c in (*captions, around)):
        remedy = "Put the word into the captions, or make data.trigger the same for pictures without any."
        yield Finding("embedding.token", f"no caption contains {word!r}, so it cannot be learnt.", remedy)


def _holds(text: str, word: str) -> bool:
    return re.search(whole(word), text, re.IGNORECASE) is not None


def _preservation(config: Config, word: str, is_alone: bool) -> Iterable[Finding]:
    if is_alone:
        said = "has no effect: a word changes nothing under captions without it."
        yield Finding("objective.preserve", said, 'Set it to "off".')
    elif config.data.trigger is not None and config.data.trigger.lower() != word.lower():
        said = f"{word!r} stays in the captions with class words, whose trigger is {config.data.trigger!r}."
        yield Finding("data.trigger", said, f"Set it to {word!r}, so that the class words take its place.", "warning")
