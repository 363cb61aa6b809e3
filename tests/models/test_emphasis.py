"""Weights in prompts: A1111's grammar by examples, and that no word is lost in whatever is typed."""

from __future__ import annotations

import random
import re
import time
from itertools import pairwise

import pytest

from limner.models.emphasis import parse

LESS = 1 / 1.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a cat, 2:3, on a mat: 1.5", [("a cat, 2:3, on a mat: 1.5", 1)]),
        ("a (cat) here", [("a ", 1), ("cat", 1.1), (" here", 1)]),
        ("((cat))", [("cat", 1.21)]),
        ("a (red cat:1.3)b", [("a ", 1), ("red cat", 1.3), ("b", 1)]),
        ("(cat : .5 )", [("cat ", 0.5)]),
        ("(cat:0)(dog:-1.)", [("cat", 0), ("dog", -1)]),
        ("(a:b:2)", [("a:b", 2)]),
        ("[cat]", [("cat", LESS)]),
        ("[[cat]]", [("cat", LESS * LESS)]),
        ("(one (two:2) [three]:3)", [("one ", 3), ("two", 6), (" ", 3), ("three", 3 * LESS)]),
        ("(both [ways) here]", [("both ", 1.1), ("ways", 1.1 * LESS), (" here", LESS)]),
        (r"cat \(animal\) \[x\] \\", [(r"cat (animal) [x] " + "\\", 1)]),
        (r"(cat \(animal\):1.2)", [("cat (animal)", 1.2)]),
        (r"a\b \:1.2)", [(r"a\b \:1.2)", 1)]),
        ("a (cat", [("a (cat", 1)]),
        ("a ((cat)", [("a (", 1), ("cat", 1.1)]),
        ("cat:1.2) [dog", [("cat:1.2) [dog", 1)]),
        ("[cat:1.2]", [("cat:1.2", LESS)]),
        ("[cat:1.2)", [("[cat:1.2)", 1)]),
        ("(cat:1.2.3)(x:)", [("cat:1.2.3x:", 1.1)]),
        ("(cat:99999)", [("cat:99999", 1.1)]),
        ("(a:1)(b:1.0) c", [("ab c", 1)]),
        ("()[](:2)", []),
        ("(zwei\nZeilen:1.1)", [("zwei\nZeilen", 1.1)]),
    ],
)
def test_examples(text: str, expected: list[tuple[str, float]]) -> None:
    found = parse(text)
    assert [t for t, _ in found] == [t for t, _ in expected]
    assert [w for _, w in found] == pytest.approx([w for _, w in expected])


def nested(rng: random.Random, depth: int) -> tuple[str, str]:
    """A prompt with balanced brackets, and its words alone."""
    marked, plain = "", ""
    for _ in range(rng.randint(0, 4)):
        word = rng.choice(["cat", " ", "ü", "1.2", ":", "a:b", "\n", ", "])
        kind = rng.randint(0, 5) if depth else rng.randint(0, 1)
        inner, inside = nested(rng, depth - 1) if depth else ("", "")
        if kind == 0:
            marked, plain = marked + word + ".", plain + word + "."
        elif kind == 1:
            special = rng.choice("()[]\\")
            marked, plain = marked + "\\" + special, plain + special
        elif kind == 2:
            marked, plain = f"{marked}[{inner}]", plain + inside
        elif kind == 3:
            marked, plain = f"{marked}({inner}x)", plain + inside + "x"
        else:
            marked, plain = f"{marked}({inner}:{rng.choice(['1.2', ' .5', '2. '])})", plain + inside
    return marked, plain


def test_the_pieces_joined_are_the_text_without_its_marks() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        marked, plain = nested(rng, 3)
        assert "".join(t for t, _ in parse(marked)) == plain, marked


def test_no_word_is_lost_in_whatever_is_typed() -> None:
    rng = random.Random(2)
    for _ in range(5000):
        text = "".join(
            rng.choice(["(", ")", "[", "]", "\\", ":", "1.2", "cat", " ", "(a:", ":2)"]) for _ in range(rng.randint(0, 14))
        )
        pieces = parse(text)
        assert all(piece for piece, _ in pieces)
        assert all(a[1] != b[1] for a, b in pairwise(pieces))
        joined = "".join(piece for piece, _ in pieces)
        # a weight is the only thing with letters or digits that may go, brackets and backslashes the only others
        assert re.sub(r"[^a-z]", "", joined) == re.sub(r"[^a-z]", "", text)
        if not re.search(r"[()\[\]\\]", text):
            assert joined == text


def test_a_long_and_deep_prompt() -> None:
    depth = 500
    assert parse("(" * depth + "cat")[0] == ("(" * depth + "cat", 1)
    ((text, weight),) = parse("[" * depth + "cat" + "]" * depth)
    assert text == "cat" and weight == pytest.approx(1.1**-depth)


def test_what_would_take_hours_is_plain_text() -> None:
    start = time.process_time()
    assert "".join(text for text, _ in parse("(" * 20_000 + "]" * 40_000 + ")" * 20_000)).count("]") == 40_000
    assert parse("(" * 300_000 + ")" * 300_000) == [("(" * 300_000 + ")" * 300_000, 1.0)]
    assert time.process_time() - start < 5
