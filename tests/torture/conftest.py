"""The long form of what tests/ has in short: `make torture` alone runs it, or whoever names this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out of a run of all tests."""
    given = config.invocation_params
    asked = [Path(given.dir, word.partition("::")[0]) for word in given.args if not word.startswith("-")]
    return None if any(path.absolute().is_relative_to(HERE) for path in asked) else True
