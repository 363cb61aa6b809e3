"""The GUI's "Additional parameters": a line of sd-scripts' own flags, which take precedence over the form."""

from __future__ import annotations

import re
import shlex
from typing import Any

from limner.config.kohya.form import Form, is_secret

KEY = "additional_parameters"
_SEVERAL = ("network_args", "optimizer_args", "lr_scheduler_args", "text_encoder_lr", "base_weights")


def read_additional(form: Form) -> None:
    """Make the arguments. Quotes hold words with spaces together, as the GUI means to; a backslash stays one."""
    text = form.text(KEY)
    if text is None:
        return
    try:
        words = split(text)
    except ValueError:
        form.refuse(KEY, "its quotes do not match; it was left out.")
        return
    for name, value in _flags(words).items():
        if is_secret(name):
            continue
        if name == "network_args":
            for text in value:
                inner, _, said = str(text).partition("=")
                form.overrule(f"network_args.{inner.strip()}", said.strip(), KEY)
        else:
            form.overrule(name, value, KEY)
    if not any(KEY in keys for keys in form.made_by.values()):
        form.refuse(KEY, "it holds no flags of sd-scripts; nothing of it is carried out.")


def split(text: str) -> list[str]:
    """Words as a shell would part them, without anything else that a shell does. Raises ValueError at an open quote."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    return list(lexer)


def _flags(words: list[str]) -> dict[str, Any]:
    out, name = dict[str, Any](), ""
    for word in words:
        flag = re.fullmatch(r"--([A-Za-z]\w*)(?:=(.*))?", word, re.DOTALL)
        if flag:
            name = flag[1]
            out[name] = [flag[2]] if flag[2] is not None else []
        elif name:
            out[name].append(word)
    return {n: v if n in _SEVERAL else True if not v else v[0] if len(v) == 1 else v for n, v in out.items()}
