"""Tiny models without files for CLIP's tokenizer, so that the package's own is taken, which is read only once: for tests that
make the same model again and again. Read only."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import tiny


@cache
def model(family: str) -> Path:
    """A diffusers folder, called as the family."""
    above = Path(tempfile.mkdtemp(prefix="limner-bare-"))
    atexit.register(shutil.rmtree, above, ignore_errors=True)
    folder = tiny.build(above / family, family=family)
    for tokenizer in folder.glob("tokenizer*"):
        if "T5" not in (tokenizer / "tokenizer_config.json").read_text("utf-8"):
            shutil.rmtree(tokenizer)
    return folder
