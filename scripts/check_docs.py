"""Fail if the generated reference is not what the schema says today."""

from __future__ import annotations

import sys
from pathlib import Path

from limner.config.files import render_reference

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "options.md"

if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != render_reference():
    sys.exit(f"{PAGE} is out of date: run `make docs`.")
print("docs are fresh")
