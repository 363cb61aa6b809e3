"""The GUI's lines of typed arguments: "Additional parameters", which take precedence over the form, and lists of name=value."""

from __future__ import annotations

from limner.config.kohya import command_line
from limner.config.kohya.arguments import SCRIPT
from limner.config.kohya.gui.form import Form, is_secret
from limner.config.kohya.report import Report
from limner.errors import UserError

KEY = "additional_parameters"
_QUOTES = "Its quotes do not match; it was left out."


def read_additional(form: Form) -> None:
    """Make the arguments. Quotes hold words with spaces together, which the GUI cannot do."""
    text = form.text(KEY)
    if text is None:
        return
    said = Report()
    try:
        given = command_line.read(text, said)
    except UserError:
        form.refuse(KEY, _QUOTES)
        return
    for name, value in given.items():
        if name == "network_args" and isinstance(value, list):
            for part in value:
                inner, _, word = str(part).partition("=")
                form.overrule(f"network_args.{inner.strip()}", word.strip(), KEY)
        elif name != SCRIPT and not is_secret(name):
            form.overrule(name, value, KEY)
    if lost := sum(name.startswith("word ") for name in said.lines):
        form.notes[KEY] = f"Left out: {lost} word{'s' * (lost > 1)} behind no flag."
    if not any(KEY in keys for keys in form.made_by.values()):
        form.refuse(KEY, "It holds no flags of sd-scripts but tokens, if any; nothing of it is carried out.")


def read_lists(form: Form) -> None:
    """What the optimiser and the schedule are told: name=value, spaces between."""
    for key in ("optimizer_args", "lr_scheduler_args"):
        text = form.text(key)
        if text is None:
            continue
        try:
            words = command_line.read(f"--{key} {text}", Report()).get(key)
        except UserError:
            form.refuse(key, _QUOTES)
            continue
        if words:
            form.send(key, words, key)
        else:
            form.refuse(key, "It holds no name=value.")
