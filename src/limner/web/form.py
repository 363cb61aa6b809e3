"""The form "All settings": every option of the schema, as the browser needs it. Drawn by `static/form.js`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from limner.config import Config, Section
from limner.config.fields import Option, section_types, walk
from limner.config.files import as_typed
from limner.web.context import Context
from limner.web.panel import panel
from limner.web.words import Words


def build(context: Context) -> gr.HTML:
    """Put the form into the page being built."""
    return panel("form", schema=form_schema(context.words))


def form_schema(words: Words, model: type[Section] = Config) -> list[dict[str, Any]]:
    """Sections with their options, in the schema's order; all values as typed text, all texts in the page's language."""
    names = list(dict.fromkeys(name for name, _, _ in section_types(model)))
    about = {name: variant.__doc__ for name, tag, variant in section_types(model) if tag is None}
    return [
        {
            "name": name,
            "help": words(" ".join((about.get(name) or "").split())),
            "options": [_option(o, words) for o in walk(model) if o.section == name],
        }
        for name in names
    ]


def _option(option: Option, words: Words) -> dict[str, Any]:
    """One option. What is empty or false is left out: the browser reads it as such. So is a default that is not given."""
    said = {
        "path": option.path,
        "tags": option.tags,
        "input": _input(option),
        "help": words(option.help),
        "optional": option.optional,
        "choices": option.choices,
        "expects": _expects(option),
        "unit": option.unit,
        "kohya": option.kohya,
        "inverted": option.inverted,
        "advanced": option.advanced,
        "files": option.holds_files,
        "required": option.is_required,
        "when": option.when,
    }
    default = {} if option.default is None else {"default": as_typed(option, option.default)}
    return {key: value for key, value in said.items() if value} | default


def _expects(option: Option) -> str:
    """What may be written, as its message would say it."""
    return ", ".join(w for w in (option.type_words(), option.range_words()) if w)


def _input(option: Option) -> str:
    """Which kind of input takes the option's value."""
    if option.is_list:
        return "list"
    if option.choices and not option.types:
        return "choice"
    if bool in option.types:
        return "switch"
    if Path in option.types:
        return "path"
    return "text" if str in option.types else "number"
