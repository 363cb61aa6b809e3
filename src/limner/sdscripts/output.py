"""What sd-scripts says on its terminal, understood: bars of tqdm, phases, files saved, the exception it ended with."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from limner.errors import printable
from limner.runs import Phase

_LONGEST = 1 << 16
# the closing bracket tells that the bar is whole
_BAR = re.compile(
    r"(?:([A-Za-z][A-Za-z ]{0,40}):\s+)?\d{1,3}%\|[^|\r\n]*\|\s*(\d{1,10})/(\d{1,10})\s+\[([^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*)\]"
)
_LOSS = re.compile(r"\b(?:avr_)?loss=(nan|[-+]?inf|[-+.\deE]+)")
_HELD_OUT = re.compile(r"\bval_(?:epoch_)?avg_loss=([-+.\deE]+)")
_EPOCH = re.compile(r"^epoch (\d{1,9})/\d{1,9}\s*$")
_BATCHES = re.compile(r"num batches per epoch[^:]*: (\d{1,10})\s*$")
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?::.*)?")
_BREAK = re.compile(r"\r\n|\n|\r(?!\Z)")  # a carriage return at the very end may be half of a line's end
_LAST_BREAK = re.compile(r"\r\n|\n|\r")
_REFUSED = re.compile(r"\.py: error: (.+)$")
_LAUNCHERS = ("subprocess.CalledProcessError", "CalledProcessError", "ChildFailedError")
"""What the launcher raises because its script failed: no reason of its own."""

_TURNS: tuple[tuple[str, Phase], ...] = (
    ("caching latents", "caching"),
    ("caching text encoder outputs", "caching"),
    ("generating sample images", "sampling"),
    ("saving checkpoint", "saving"),
    ("saving state", "saving"),
    ("saving last state", "saving"),
)


class Lines:
    """Bytes as they come into lines. A line that is drawn anew over itself (carriage return) is a passing one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, chunk: bytes, *, last: bool = False) -> Iterator[tuple[str, bool]]:
        """(text, whether it stays) for each line that is complete; with `last` for the rest too."""
        self._rest += self._decoder.decode(chunk, last)
        start = 0
        while found := (_LAST_BREAK if last else _BREAK).search(self._rest, start):
            text = self._rest[start : found.start()]
            start = found.end()
            if text or found[0] != "\r":
                yield text, found[0] != "\r"
        self._rest = self._rest[start:]
        if len(self._rest) > _LONGEST or (last and self._rest):
            yield self._rest[:_LONGEST], True
            self._rest = ""

    @property
    def unfinished(self) -> str:
        """The line that is being drawn."""
        return self._rest


@dataclass
class Told:
    """What sd-scripts has told so far of one session, from its start or where it was resumed."""

    phase: Phase = "loading"
    progress: tuple[int, int] = (0, 0)
    step: int = 0
    """Steps of this session that are done."""
    total: int = 0
    """Steps that its bar counts to."""
    epoch: int = 0
    batches: int = 0
    """Micro-batches in an epoch."""
    losses: list[tuple[int, float, int]] = field(default_factory=list)
    """(step, its moving average over an epoch, the epoch) that nobody has taken yet; the newest step's may still change."""
    held_out: float | None = None
    """The newest loss of held-out pictures, until it is taken."""
    error: str = ""
    """The last exception that is not the launcher's own."""
    _drawn: tuple[int, str] = (-1, "")
    _in_traceback: bool = False
    _more: int = 0
    """So many further lines of a message that is spread over several."""

    def take(self, text: str, *, is_whole: bool = True) -> None:
        """One line; of one that is still being drawn, only its bars."""
        bars = list(_BAR.finditer(text))
        for bar in bars:
            self._take_bar((bar[1] or "").strip(), int(bar[2]), int(bar[3]), bar[4])
        if not is_whole:
            return
        rest = text[bars[-1].end() :] if bars else text
        self._take_exception(rest)
        plain = rest.lower()
        for words, phase in _TURNS:
            if words in plain:
                self.phase, self.progress = phase, (0, 0)
        if found := _EPOCH.match(rest.strip()):
            self.epoch = int(found[1])
        elif found := _BATCHES.search(rest):
            self.batches = int(found[1])

    def taken_losses(self, *, all_of_them: bool = False) -> list[tuple[int, float, int]]:
        """The losses that will not change any more, each once."""
        count = len(self.losses) if all_of_them else len(self.losses) - 1
        out = self.losses[: max(0, count)]
        self.losses = self.losses[max(0, count) :]
        return out

    def _take_bar(self, name: str, done: int, total: int, rest: str) -> None:
        if name.endswith("validation steps"):
            self.phase, self.progress = "validating", (done, total)
            if found := _HELD_OUT.search(rest):
                self.held_out = _number(found[1])
        elif name == "steps":
            loss = found[1] if (found := _LOSS.search(rest)) else ""
            if (done, loss) == self._drawn:
                return  # tqdm draws a bar that stands still anew after a while, also while something else is done
            self._drawn = done, loss
            self.phase, self.progress = "training", (done, total)
            self.step, self.total = max(self.step, done), total
            if loss and done:
                if self.losses and self.losses[-1][0] == done:
                    self.losses.pop()
                self.losses.append((done, _number(loss), self.epoch))
        elif self.phase in ("caching", "sampling", "loading"):
            self.progress = done, total

    def _take_exception(self, text: str) -> None:
        if "Traceback (most recent call last):" in text:
            self._in_traceback, self._more = True, 0
        elif self._in_traceback and _EXCEPTION.fullmatch(text):
            self._in_traceback = False
            if not text.startswith(_LAUNCHERS) and not text.partition(":")[0].endswith(_LAUNCHERS):
                self.error, self._more = printable(text, 400), 3 if text.endswith(":") else 0
        elif self._more and text.strip():
            self._more -= 1
            self.error = printable(f"{self.error} {text.strip()}", 400)
        elif found := _REFUSED.search(text):
            self.error = printable(found[1], 400)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
