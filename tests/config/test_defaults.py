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


@pytest.mark.parametrize(
    ("adapter", "embedding", "optimizer", "rates"),
    [
        ("lora", {}, {}, (1e-4, 5e-3)),
        ("embedding", {}, {}, (5e-3, 5e-3)),
        ("embedding", {"lr": 0.01}, {"lr": 1.0}, (0.01, 0.01)),
        ("lora", {"lr": 0.01}, {"lr": 3e-4}, (3e-4, 0.01)),
        ("embedding", {}, {"kind": "prodigy"}, (1.0, 1.0)),
    ],
)
def test_a_word_has_a_rate_of_its_own(adapter: str, embedding: dict, optimizer: dict, rates: tuple[float, float]) -> None:
    raw = {"adapter": {"kind": adapter}, "embedding": {"token": "zibbo", **embedding}, "optimizer": optimizer}
    config = files.build(raw, {})
    assert (defaults.learning_rate(config, False), defaults.embedding_rate(config.embedding, config.optimizer)) == rates
