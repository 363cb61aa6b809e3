"""Whether what a run learns is still made of numbers: the losses and gradients' norms of its steps, looked at late.

They are copied to this process's memory while the device goes on, and looked at when they are there, at the latest six steps
later. Of several processes each looks at the same sums after the same number of steps, so that all decide alike unasked.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

import torch
from torch import Tensor

from limner.engine.aside import Copies
from limner.engine.runtime import Runtime

LATE = 6
"""Steps after which a step is looked at, even if that has to be waited for."""
RUNNING = 4
"""Steps running whose loss is far too large: one alone may be chance."""
TIMES = 1e4
"""Far too large is a loss of so many times the median of those before. A picture's weight may be a million times another's
(`weighting.inverse_square`), so that a healthy run comes to that now and then, but not several times running."""
HEALTHY = 1e4
"""No run is healthy whose median is above this: what is to be predicted has a variance of about one."""
_KEPT, _ENOUGH = 100, 8


class Alarm(Exception):
    """What a run learns is no number any more, or has exploded."""

    def __init__(self, step: int, said: str, noticed: int) -> None:
        super().__init__(step, said, noticed)
        self.step, self.said, self.noticed = step, said, noticed
        """The step (from 1) where it began, what was seen there, and the step at which it was."""


class Watch:
    """Looks at every finished step. A loss or a norm that is not finite is an alarm; a loss far above the others is one if
    those of the next steps are, too."""

    def __init__(self, runtime: Runtime) -> None:
        self._is_alone = runtime.world == 1
        # Metal has no copies that go on beside the rest: each one waits for all that was ordered
        self._together = 1 if runtime.device.type in ("cpu", "cuda") else LATE
        self._noted: list[tuple[int, Tensor]] = []
        self._coming: deque[tuple[list[int], Tensor, Copies]] = deque()
        self._usual: deque[float] = deque(maxlen=_KEPT)
        self._above: list[int] = []
        self._now = 0

    def note(self, step: int, loss: Tensor, norm: Tensor | None) -> None:
        """A step is finished. Its loss and norm (of gradients, before they were limited; None if it tells nothing) are scalars
        on the device. Raises Alarm for a step up to this one."""
        pair = [loss.detach().float(), loss.new_zeros(()).float() if norm is None else norm.detach().float()]
        self._noted.append((step, torch.stack(pair)))
        self._now = step
        if len(self._noted) == self._together:
            self._copy()
        while self._coming and (self._coming[0][0][0] <= step - LATE or (self._is_alone and self._coming[0][2].have_arrived)):
            self._look()

    def settle(self) -> None:
        """Look at every step so far. Raises Alarm."""
        if self._noted:
            self._copy()
        while self._coming:
            self._look()

    def told(self) -> dict[str, Any]:
        """What a resumed run must know to decide alike; of settled steps."""
        return {"usual": list(self._usual), "above": list(self._above)}

    def take(self, told: dict[str, Any]) -> None:
        """Take over what `told` gave."""
        self._usual.extend(told["usual"])
        self._above = list(told["above"])

    def _copy(self) -> None:
        copies = Copies()
        self._coming.append(([s for s, _ in self._noted], copies.take(torch.stack([pair for _, pair in self._noted])), copies))
        self._noted = []

    def _look(self) -> None:
        steps, pairs, copies = self._coming.popleft()
        copies.wait()
        for step, (loss, norm) in zip(steps, pairs.tolist(), strict=True):
            if not math.isfinite(loss):
                raise Alarm(step, f"the loss at step {step} is not a number any more", self._now)
            if not math.isfinite(norm):
                raise Alarm(step, f"the gradients at step {step} are not numbers any more", self._now)
            self._compare(step, loss)

    def _compare(self, step: int, loss: float) -> None:
        usual = statistics.median(self._usual) if len(self._usual) >= _ENOUGH else HEALTHY
        if loss <= TIMES * min(usual or HEALTHY, HEALTHY):
            self._usual.append(loss)
            self._above = []
            return
        self._above.append(step)
        if len(self._above) == RUNNING:
            first = self._above[0]
            raise Alarm(first, f"the loss exploded from step {first} on: it is {loss:.3g} at step {step}", self._now)
