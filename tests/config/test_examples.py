"""The examples are configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.config import files

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_read(path: Path) -> None:
    assert files.read(path, {}).model.base
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and len(lines) <= 40
