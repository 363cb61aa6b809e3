"""Weights in a prompt, in A1111's grammar: which words the picture shall follow more, and which less.

`(word)` is 1.1, `((word))` 1.21, `(word:1.3)` 1.3, `[word]` 1/1.1, one in another multiplied; `\\(`, `\\)`, `\\[`, `\\]` and
`\\\\` stand for the characters themselves. Brackets without a partner, and all else, are plain text.
"""

from __future__ import annotations

import re
from itertools import groupby

Pieces = list[tuple[str, float]]
"""A text piece by piece, and each piece's weight."""

_MAX_DEPTH, _MAX_LENGTH = 500, 100_000
"""What is opened deeper or longer is plain text: no weight means anything there, and each costs all that is within it."""
_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_OPENER = {")": "(", "]": "["}
_PART = re.compile(
    r"\\[\\()\[\]]"
    r"|:\s*(?P<weight>[+-]?(?:\d{1,4}(?:\.\d{0,9})?|\.\d{1,9}))\s*\)"
    r"|[^\\()\[\]:]+"
    r"|.",
    re.ASCII | re.DOTALL,
)


def parse(text: str) -> Pieces:
    """The pieces of a prompt; neighbours of equal weight are one, so a prompt without weights is one piece."""
    if len(text) > _MAX_LENGTH:
        return [(text, 1.0)]
    pieces: list[list] = []
    open_ = {"(": list[int](), "[": list[int]()}
    for part in _PART.finditer(text):
        said, weight = part[0], part["weight"]
        opener = "(" if weight else _OPENER.get(said)
        if opener and open_[opener]:
            # what was taken for text turns out to open a group that ends here
            start = open_[opener].pop()
            pieces[start][0] = ""
            for piece in pieces[start:]:
                piece[1] *= float(weight) if weight else _FACTORS[opener]
            continue
        if said in open_ and len(open_[said]) < _MAX_DEPTH:
            open_[said].append(len(pieces))
        is_escaped = said[0] == "\\" and len(said) == 2
        pieces.append([said[1] if is_escaped else said, 1.0])
    groups = groupby((p for p in pieces if p[0]), key=lambda p: p[1])
    return [("".join(p[0] for p in group), weight) for weight, group in groups]
