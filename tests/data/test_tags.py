"""Captions as they are shown: sd-scripts' results where nothing is drawn, or the draws are forced; and what always holds."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from limner.config import Data
from limner.data import tags


class Forced:
    """Draws told beforehand: a shuffle turns the list round, a choice takes the last."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)

    def choice(self, seq):
        return seq[-1]

    def shuffle(self, x) -> None:
        x.reverse()


# caption, options, step, epoch, draws, what sd-scripts 0.10.1's process_caption gives under the same draws
KOHYA = [
    ("a cat, sitting", {}, 0, 0, (), "a cat, sitting"),
    ("a cat,sitting", {}, 0, 0, (), "a cat,sitting"),
    ("a cat", {"caption_prefix": "photo of"}, 0, 0, (), "photo of a cat"),
    ("a cat", {"caption_suffix": "4k", "caption_prefix": "x,"}, 0, 0, (), "x, a cat 4k"),
    ("a,b,c,d", {"shuffle_tags": True}, 0, 0, (), "d, c, b, a"),
    (" a , b,c ", {"shuffle_tags": True}, 0, 0, (), "c, b, a"),
    ("a,b,c,d", {"shuffle_tags": True, "keep_tags": 2}, 0, 0, (), "a, b, d, c"),
    ("a,b", {"shuffle_tags": True, "keep_tags": 5}, 0, 0, (), "a, b"),
    ("a,b,c", {"shuffle_tags": True, "keep_tags": 1, "caption_prefix": "p,"}, 0, 0, (), "p, c, b, a"),
    ("a,b|||c,d,e", {"shuffle_tags": True, "keep_separator": "|||"}, 0, 0, (), "a, b, e, d, c"),
    ("a|||b,c|||d,e", {"shuffle_tags": True, "keep_separator": "|||", "keep_tags": 2}, 0, 0, (), "a, c, b, d, e"),
    ("|||b,c|||", {"shuffle_tags": True, "keep_separator": "|||"}, 0, 0, (), "c, b"),
    ("a,b,c", {"shuffle_tags": True, "keep_separator": "|||", "keep_tags": 1}, 0, 0, (), "a, c, b"),
    ("a,b,c,d", {"tag_dropout": 0.5}, 0, 0, (0.4, 0.5, 0.6, 0.1), "b, c"),
    ("a,b,c,d", {"tag_dropout": 0.5, "keep_tags": 1}, 0, 0, (0.9, 0.2, 0.7), "a, b, d"),
    ("a,b,c", {"tag_dropout": 1.0}, 0, 0, (0.9, 0.99, 0.5), ""),
    ("a,b,c", {"tag_dropout": 0.5, "shuffle_tags": True}, 0, 0, (0.1, 0.9, 0.9), "b, a"),
    ("a,b,c,d,e", {"tag_warmup_steps": 10}, 0, 0, (), "a"),
    ("a,b,c,d,e", {"tag_warmup_steps": 10}, 4, 0, (), "a, b"),
    ("a,b,c,d,e", {"tag_warmup_steps": 10, "tag_warmup_least": 2}, 5, 0, (), "a, b, c"),
    ("a,b,c,d,e", {"tag_warmup_steps": 10, "keep_tags": 2}, 9, 0, (), "a, b, c, d"),
    ("a,b,c,d,e", {"tag_warmup_steps": 10}, 10, 0, (), "a, b, c, d, e"),
    ("a,b", {"tag_warmup_steps": 10, "tag_warmup_least": 5}, 3, 0, (), "a, b"),
    ("a,b,c", {"tag_warmup_steps": 10, "shuffle_tags": True}, 5, 0, (), "b, a"),
    ("a;;;b,c", {"secondary_separator": ";;;"}, 0, 0, (), "a,b,c"),
    ("a;;;b,c", {"secondary_separator": ";;;", "shuffle_tags": True}, 0, 0, (), "c, a,b"),
    ("a cat", {"caption_dropout": 0.3}, 0, 0, (0.29,), ""),
    ("a cat", {"caption_dropout": 0.3}, 0, 0, (0.3,), "a cat"),
    ("a cat", {"caption_dropout_epochs": 2}, 0, 0, (), "a cat"),
    ("a cat", {"caption_dropout_epochs": 2}, 0, 1, (), ""),
    ("a cat", {"caption_dropout_epochs": 3, "caption_prefix": "x"}, 0, 5, (), ""),
    ("a {red|green|blue} cat", {"wildcards": True}, 0, 0, (), "a blue cat"),
    ("{a|b} {c} {|d}", {"wildcards": True}, 0, 0, (), "b c d"),
    ("a {{kept}} {x|y}", {"wildcards": True}, 0, 0, (), "a {kept} y"),
    ("first\nsecond", {"wildcards": True}, 0, 0, (), "second"),
    ("a {b", {"wildcards": True}, 0, 0, (), "a {b"),
    ("a {b|c}", {}, 0, 0, (), "a {b|c}"),
    ("{a|b},c", {"wildcards": True, "shuffle_tags": True}, 0, 0, (), "c, b"),
]


@pytest.mark.parametrize(("caption", "options", "step", "epoch", "draws", "expected"), KOHYA)
def test_as_sd_scripts_has_it(caption, options, step, epoch, draws, expected) -> None:
    forced = Forced(*draws)
    assert tags.shown(caption, Data(**options), forced, epoch=epoch, step=step) == expected
    assert not forced.values, "as many draws as there"


# where sd-scripts does it wrong: joined by commas whatever parted them, the sign left in the text, a prefix for one line only
OTHERWISE = [
    ("a;b;c", {"shuffle_tags": True, "caption_separator": ";"}, "c; b; a"),
    ("a b c", {"shuffle_tags": True, "caption_separator": " "}, "c b a"),
    ("a. b. c", {"shuffle_tags": True, "caption_separator": ". "}, "c. b. a"),
    ("a,b|||c", {"keep_separator": "|||"}, "a, b, c"),
    ("a, ,b,,", {"shuffle_tags": True}, "b, a"),
    ("first\nsecond", {"wildcards": True, "caption_prefix": "p", "caption_suffix": "s"}, "p second s"),
    ("", {"caption_prefix": "p"}, "p"),
    ("a, b", {"shuffle_tags": True, "caption_separator": ""}, "a, b"),
]


@pytest.mark.parametrize(("caption", "options", "expected"), OTHERWISE)
def test_otherwise_than_sd_scripts(caption, options, expected) -> None:
    assert tags.shown(caption, Data(**options), Forced(), epoch=0, step=0) == expected


def test_what_cannot_vary_is_its_plain_self() -> None:
    for caption in ("a, b|||c", "", "x;;;y", "{a|b}"):
        for options in ({}, {"caption_prefix": "p", "secondary_separator": ";;;"}, {"keep_separator": "|||", "keep_tags": 1}):
            data = Data(**options)
            assert not tags.varies(data) and not tags.drops(data)
            assert tags.shown(caption, data, random.Random(0), epoch=3, step=9) == tags.plain(caption, data)


@pytest.mark.parametrize("name", ["shuffle_tags", "tag_dropout", "wildcards", "tag_warmup_steps"])
def test_what_may_vary_says_so(name: str) -> None:
    data = Data(**{name: {"tag_dropout": 0.5, "tag_warmup_steps": 9}.get(name, True)})
    assert tags.varies(data)
    texts = {tags.shown("a,b,c,{d|e}", data, tags.draw_for(0, step, 0), epoch=0, step=step) for step in range(20)}
    assert len(texts) > 1


def test_shuffling_keeps_every_tag_and_the_first_ones() -> None:
    data = Data(shuffle_tags=True, keep_tags=2)
    words = [f"tag {i}" for i in range(8)]
    places = Counter()
    for step in range(600):
        text = tags.shown(", ".join(words), data, tags.draw_for(5, step, 1), epoch=0, step=step).split(", ")
        assert sorted(text) == words and text[:2] == words[:2]
        places[text.index("tag 5")] += 1
    assert set(places) == set(range(2, 8)) and min(places.values()) > 60  # 100 expected, deviation 9


def test_shares_are_those_asked_for() -> None:
    dropped = [tags.shown("a,b", Data(caption_dropout=0.25), tags.draw_for(1, s, 0), epoch=0, step=s) for s in range(2000)]
    assert 0.21 < dropped.count("") / 2000 < 0.29  # 4 standard deviations
    text = ", ".join("abcdefghij")
    left = [tags.shown(text, Data(tag_dropout=0.3), tags.draw_for(1, s, 0), epoch=0, step=s) for s in range(400)]
    assert 0.67 < sum(len(t.split(", ")) for t in left) / 4000 < 0.73


def test_a_draw_is_a_function_of_seed_step_and_position() -> None:
    data = Data(shuffle_tags=True, tag_dropout=0.1, caption_dropout=0.1)

    def drawn(seed: int, position: int) -> list[str]:
        return [tags.shown("a,b,c,d,e", data, tags.draw_for(seed, s, position), epoch=0, step=s) for s in range(30)]

    assert drawn(0, 0) == drawn(0, 0)
    assert drawn(0, 0) != drawn(0, 1) and drawn(0, 0) != drawn(1, 0)
