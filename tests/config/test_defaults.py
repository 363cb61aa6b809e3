"""What the page proposes is a value like any other: it reads back, and it follows the pictures."""

from __future__ import annotations

import pytest

from limner.config import defaults, files


@pytest.mark.parametrize(
    ("trigger", "captions", "prompts"),
    [
        (None, [], None),
        (None, ["", ""], None),
        ("zwx", ["", ""], ("zwx",)),
        (None, ["a", "a", "b", "c"], ("a", "b")),
        ("zwx", ["a cat", "ZWX on a mat"], ("ZWX on a mat",)),
        ("zwx", ["a cat"], ("zwx",)),
        (None, ["a --w 1", '猫 "x" \\'], ('猫 "x" \\',)),
    ],
)
def test_proposals(trigger: str | None, captions: list[str], prompts: tuple[str, ...] | None) -> None:
    proposed = defaults.proposals(trigger, captions, 1203)
    if prompts is None:
        assert proposed == {}
    else:
        sample = files.build({}, proposed).sample
        assert (sample.prompts, sample.every_steps) == (prompts, 240)


def test_very_short_runs_are_painted_too() -> None:
    assert defaults.proposals("a", [], 3)["sample.every_steps"] == "1"
