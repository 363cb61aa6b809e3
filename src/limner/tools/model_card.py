"""A model's page on the Hub: README.md in Markdown, headed by what the Hub itself reads of it in YAML.

Prompts, captions, triggers and metadata are other people's words: in the page they are text, never markup. Every ASCII sign
that may mean something in Markdown is written with a backslash (CommonMark 0.31, section 2.4), line breaks become spaces, and
characters that cannot be seen are spelt out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limner.errors import printable

NAME = "README.md"
_MAX_TEXT = 2000
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_SIGNS = re.compile(r"([!-/:-@\[-`{-~])")


@dataclass(frozen=True)
class Sample:
    """A picture of the page."""

    path: str
    """In the repository."""
    prompt: str
    seed: int | None = None


@dataclass(frozen=True)
class Card:
    """What a page says. All texts as they are found; they are made harmless when it is written."""

    title: str
    kind: str
    """What it is, in words: "A LoRA for Flux.1"."""
    tags: Sequence[str] = ()
    license: str | None = None
    base_model: str | None = None
    trigger: str | None = None
    description: str | None = None
    author: str | None = None
    files: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    """How it was trained: steps, pictures, ..."""
    samples: Sequence[Sample] = ()


def escaped(text: str, limit: int = _MAX_TEXT) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SIGNS.sub(r"\\\1", printable(text, limit).strip())


def is_license(text: str) -> bool:
    """Whether a text can be one of the Hub's short names."""
    return _LICENSE.fullmatch(text) is not None


def render(card: Card) -> str:
    """The page."""
    lines = ["---", _front_matter(card).strip(), "---", "", f"# {escaped(card.title, 200)}", ""]
    lines += [f"{card.kind}, trained with Limner.", ""]
    lines += [escaped(card.description), ""] if card.description else []
    lines += [f"By {escaped(card.author, 200)}.", ""] if card.author else []
    if card.trigger:
        lines += ["## Trigger", "", f"It is called up by **{escaped(card.trigger, 200)}** in the prompt.", ""]
    if card.samples:
        lines += ["## Samples", ""]
        for sample in card.samples:
            seed = "" if sample.seed is None else f" (seed {sample.seed})"
            lines += [f"![A sample]({sample.path})", "", f"{escaped(sample.prompt)}{seed}", ""]
    lines += [*_table("Files", ("file", ""), [(name, "") for name in card.files])]
    lines += [*_table("How it was trained", ("", ""), list(card.facts.items()))]
    lines += [*_table("Settings that are not Limner's defaults", ("option", "value"), list(card.settings.items()))]
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, heads: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    if not any(value for _, value in rows):
        return [f"## {title}", "", *(f"- {escaped(name, 200)}" for name, _ in rows), ""]
    cells = [f"| {escaped(name, 200)} | {escaped(value, 300)} |" for name, value in rows]
    return [f"## {title}", "", f"| {heads[0]} | {heads[1]} |", "|---|---|", *cells, ""]


def _front_matter(card: Card) -> str:
    """What the Hub reads, as its own library writes it."""
    from huggingface_hub import ModelCardData

    told: dict[str, Any] = {"pipeline_tag": "text-to-image", "library_name": "diffusers"}
    told["tags"] = list(dict.fromkeys(printable(tag, 60) for tag in card.tags if tag.strip()))
    if card.license:
        told["license"] = printable(card.license, 60)
    if card.base_model:
        told["base_model"] = printable(card.base_model, 200)
    if card.trigger:
        told["instance_prompt"] = printable(card.trigger)
    if card.samples:
        told["widget"] = [{"text": printable(s.prompt, _MAX_TEXT), "output": {"url": s.path}} for s in card.samples]
    return ModelCardData(**told).to_yaml()
