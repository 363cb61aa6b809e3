"""The GUI's text box of sample prompts: kohya's lines, which Limner's own prompts are too."""

from __future__ import annotations

import re

from limner.config.kohya.gui.form import Form
from limner.config.prompts import Prompt, parse
from limner.errors import UserError

_KEY = "sample_prompts"
_BLANK = Prompt("", "", 512, 512, 20, None, 0, None, where="sample.prompts")


def read_prompts(form: Form) -> None:
    """Take the prompts one a line; a flag that Limner does not know is left out of its line."""
    text = form.text(_KEY)
    if text is None:
        return
    kept, left_out = list[str](), list[str]()
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            prompt, flags = _known(line.strip())
            kept.append(prompt)
            left_out += flags
    if not kept:
        form.idle(_KEY, "It holds only comments.")
        return
    form.set("sample.prompts", kept)
    why = "kohya writes them to a file that all runs of a folder share; here each run has its own."
    if not form.number("sample_every_n_steps") and not form.number("sample_every_n_epochs"):
        why += " They are painted at the end; kohya paints none without an interval."
    if left_out:
        why += f" Left out, since they cannot be used here: {', '.join(dict.fromkeys(left_out))}."
    form.convert(_KEY, "sample.prompts", why=why)


def _known(line: str) -> tuple[str, list[str]]:
    """(the line with only the flags that Limner knows, the others)."""
    prompt, *pieces = re.split(r"\s--(?=[A-Za-z])", " " + line)
    kept, left_out = prompt.strip(), list[str]()
    for piece in pieces:
        longer = f"{kept} --{piece.strip()}"
        try:
            parse(longer, _BLANK)
        except UserError:
            left_out.append(f"--{piece.split()[0][:40]}")
        else:
            kept = longer
    return kept, left_out
