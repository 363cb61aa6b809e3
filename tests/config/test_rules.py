"""adapter.rules: what their texts mean, which of several counts, and what is said of those that mean nothing."""

from __future__ import annotations

import pytest

from limner.config.rules import Effect, effect, parse, require_use
from limner.errors import UserError

NAMES = [f"denoiser.{n}" for n in ("down_blocks.0.attn.to_q", "mid_block.proj", "up_blocks.1.attn.to_q")] + ["text_encoder.0"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), [Effect()] * 4),
        (("denoiser.*: off",), [Effect(off=True)] * 3 + [Effect()]),
        (("*.to_q : rank=8 alpha=4.5",), [Effect(rank=8, alpha=4.5), Effect(), Effect(rank=8, alpha=4.5), Effect()]),
        # later ones take precedence, each thing for itself
        (("*: rank=8 lr_factor=2", "*.to_?: rank=4"), [Effect(rank=4, lr_factor=2), Effect(rank=8, lr_factor=2)] * 2),
        # and take an "off" back
        (("*: off", "*.mid_block.*: lr_factor=1"), [Effect(off=True), Effect(), Effect(off=True), Effect(off=True)]),
        (("*: lr_factor=0.5", "denoiser.up_blocks.[12].*: off"), [Effect(lr_factor=0.5)] * 2 + [Effect(True, lr_factor=0.5)]),
    ],
)
def test_what_holds_for_a_layer(texts: tuple[str, ...], expected: list[Effect]) -> None:
    found = [effect(parse(texts, ranks=True), name) for name in NAMES]
    assert found[: len(expected)] == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no pattern"),
        ("off", "no pattern"),
        (": off", "no pattern"),
        ("denoiser.*:", "says nothing"),
        ("*: on", "'on'"),
        ("*: rank=0", "rank=0"),
        ("*: rank=1025", "rank=1025"),
        ("*: rank=2.5", "rank=2.5"),
        ("*: alpha=nan", "alpha=nan"),
        ("*: alpha=0", "alpha=0"),
        ("*: lr_factor=-1", "lr_factor=-1"),
        ("*: lr_factor=inf", "lr_factor=inf"),
        ("*: dim=3", "known are off and rank="),
        ("*: rank=4 rank=8", "twice"),
        ("*: off rank=8", "something else"),
    ],
)
def test_what_means_nothing(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        parse(("*: off", text), ranks=True)
    assert [f.field for f in caught.value.findings] == ["adapter.rules"]


def test_ranks_where_there_are_none() -> None:
    with pytest.raises(UserError, match="have no rank"):
        parse(("*: rank=4",), ranks=False)
    assert effect(parse(("*: lr_factor=3",), ranks=False), "x").lr_factor == 3


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse(("a", "*: off", "b: c"), ranks=True)
    assert len(caught.value.findings) == 2


def test_rules_that_fit_nothing_or_everything() -> None:
    with pytest.raises(UserError, match=r"'denoiser.nowhere.\*: off' fits no layer.*for example denoiser"):
        require_use(parse(("*.to_q: off", "denoiser.nowhere.*: off"), ranks=True), NAMES)
    with pytest.raises(UserError, match="every layer off"):
        require_use(parse(("*: off",), ranks=True), NAMES)
    require_use(parse(("*: off", "*.proj: rank=2"), ranks=True), NAMES)
