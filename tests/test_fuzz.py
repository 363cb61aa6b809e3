"""The parsers of strangers' texts under random ones: nothing but words comes of them. For long: tests/torture/test_fuzz.py."""

from __future__ import annotations

import pytest

hypothesis = pytest.importorskip("hypothesis")

import fuzz_targets  # noqa: E402
import fuzzing  # noqa: E402

EXAMPLES = {
    "header": 400, "prompt": 600, "prompt_file": 150, "caption": 300, "weights": 400, "kohya": 150, "configuration": 80,
    "subsets": 150, "metadata": 200, "program": 600, "archive": 150,
}  # fmt: skip


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_nothing_but_words(name: str) -> None:
    assert fuzzing.run(name, EXAMPLES[name], seed=None) >= EXAMPLES[name] // 2
