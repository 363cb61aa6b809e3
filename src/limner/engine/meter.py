"""How fast a run is, how much of its device it uses, and what holds it up: data, this process, or the device.

The device is never waited for. On a CUDA device events are put between what it is told, and read when the losses are: the
difference between when the device came to an event and when this process put it there says which of the two was behind.
Time during which the device is behind is the device's; the rest is the host's, or was spent waiting for data. Elsewhere
computing is waited for as it is called, and the device's time is that of the calls.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import torch

from limner.engine import flops, peak
from limner.engine.hints import Hint, Shares, Situation, hint

if TYPE_CHECKING:
    from limner.engine.samples import Batch

_PEAK_AFTER_SECONDS = 5.0
"""Short runs are not kept up by measuring what the device can do at most."""
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.9, 30.0
_BEHIND_SECONDS, _BEHIND_SHARE = 3e-4, 0.03
_MOST_STEPS = 128

Shape = tuple[Any, ...]


@dataclass
class _Step:
    """When a step began, and what of it was spent otherwise than computing; times in seconds of this process's clock."""

    began: float
    waits: list[tuple[float, Any]] = field(default_factory=list)
    """Seconds of each wait for data, and the mark behind it."""
    last: Any = None
    """The mark behind the last gradients."""
    ended: float = 0.0


@dataclass
class _Sums:
    """Of all steps since the last report."""

    seconds: float = 0.0
    steps: int = 0
    images: int = 0
    flops: int = 0
    data_wait: float = 0.0
    host: float = 0.0
    device: float = 0.0


class Meter:
    """Of the main process's loop; in others, `is_on` False, it does nothing.

    begin(images) - {waiting() - counting(batch)} - end(), step by step; `read` where the losses are read back.
    """

    def __init__(self, device: torch.device, precision: str, situation: Situation, *, is_on: bool = True) -> None:
        self.device, self.precision, self.situation, self.is_on = device, precision, situation, is_on
        self.counted: dict[Shape, int] = {}
        """Operations of one micro-batch, by its shape."""
        self.peak: peak.Peak | None = None
        self._clock = _DeviceClock(device) if is_on and device.type == "cuda" else None
        self._open: list[_Step] = []  # since the last reading
        self._images = self._flops = self._steps = 0  # of those
        self._counts = False
        self._sums = _Sums()
        self._age = 0.0
        self._hints: list[Hint | None] = []

    # --- around a step ---

    def begin(self, images: int) -> None:
        """A step begins, over so many pictures, in all processes together."""
        if not self.is_on:
            return
        if len(self._open) < _MOST_STEPS:  # of very fast steps the first tell enough
            self._open.append(_Step(time.perf_counter()))
        self._images += images
        self._steps += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around taking a micro-batch."""
        began = time.perf_counter()
        yield
        if self.is_on and self._steps <= _MOST_STEPS:
            self._open[-1].waits.append((time.perf_counter() - began, self._mark()))

    def knows(self, batch: Batch) -> bool:
        """Whether there is nothing to count."""
        return not self.is_on or _shape(batch) in self.counted

    @contextlib.contextmanager
    def counting(self, batch: Batch) -> Iterator[None]:
        """Around the forward and backward pass of a micro-batch. The first of each shape is counted while it is computed."""
        if not self.is_on:
            yield
            return
        shape = _shape(batch)
        if self.knows(batch):
            yield
        else:
            with flops.counting() as counter:
                yield
            self.counted[shape] = counter.total
            self._counts = True
        self._flops += self.counted[shape]
        if self._steps <= _MOST_STEPS:
            self._open[-1].last = self._mark()

    def end(self) -> None:
        """A step is done. One that was counted is slower than others, as is the first of a shape without that: it is left out,
        with those before it that were not read yet."""
        if not self.is_on:
            return
        if self._steps <= _MOST_STEPS:
            self._open[-1].ended = time.perf_counter()
        if self._counts:
            self._forget()

    def _forget(self) -> None:
        self._open, self._images, self._flops, self._steps, self._counts = [], 0, 0, 0, False

    def _mark(self) -> Any:
        return None if self._clock is None else self._clock.mark()

    # --- once a second ---

    def read(self) -> dict[str, Any] | None:
        """What the steps since the last report were like, for an event; None if none is due.

        Called when what the steps came to was just read back from the device. The longer a run, the rarer are its reports: each
        covers a hundredth of it, but no less than about a second and no more than half a minute.
        """
        if not self._open:
            return None
        now, sums = time.perf_counter(), self._sums
        seconds, told = now - self._open[0].began, self._steps / len(self._open)
        for number, step in enumerate(self._open):
            following = self._open[number + 1].began if number + 1 < len(self._open) else None
            if following is None and told > 1:
                continue  # it would be given the time of all that followed
            self._divide(step, now if following is None else following)
        sums.seconds += seconds
        sums.steps, sums.images, sums.flops = sums.steps + self._steps, sums.images + self._images, sums.flops + self._flops
        self._age += seconds
        last = self._open[-1]
        self._forget()
        if self._clock is not None:
            self._clock.set(last.last)
        is_first = sums.seconds == self._age  # of a short run there may be no other
        if not is_first and sums.seconds < min(_LONGEST_SECONDS, max(_SHORTEST_SECONDS, self._age / 100)):
            return None
        self._sums = _Sums()
        return self._report(sums)

    def _divide(self, step: _Step, until: float) -> None:
        """Give a step's time to whom it was waited for."""
        whole, sums = until - step.began, self._sums
        if self._clock is None:
            waited = sum(seconds for seconds, _ in step.waits)
            device = (step.ended - step.began if self.device.type == "cpu" else whole) - waited
        else:
            behind = max(_BEHIND_SECONDS, _BEHIND_SHARE * whole)
            # a wait costs nothing while the device still has something to do
            waited = sum(seconds for seconds, mark in step.waits if self._clock.lag(mark) < behind)
            device = whole - waited if step.last is not None and self._clock.lag(step.last) >= behind else 0.0
        sums.data_wait += waited
        sums.device += device
        sums.host += whole - waited - device

    def _report(self, sums: _Sums) -> dict[str, Any]:
        rate = sums.flops / sums.seconds / 1e12
        if self.peak is None and self._age > _PEAK_AFTER_SECONDS:
            self.peak = peak.peak(self.device, self.precision)
        if self.peak is not None and self.peak.source == "measured" and rate > self.peak.tflops:
            self.peak = peak.Peak(rate, "measured")  # the machine was busy with something else when it was measured
        whole = sums.data_wait + sums.host + sums.device
        shares = Shares(sums.data_wait / whole, sums.host / whole, sums.device / whole)
        out = {
            "seconds_per_step": sums.seconds / sums.steps,
            "images_per_second": sums.images / sums.seconds,
            "tflops": rate,
            **({"utilisation": rate / self.peak.tflops, "peak_tflops": self.peak.tflops} if self.peak is not None else {}),
            **asdict(shares),
        }
        said = {"peak_source": self.peak.source} if self.peak is not None else {}
        if told := self._settled(hint(shares, self.situation, self._memory_used())):
            said["hint"] = told
        return {name: float(f"{value:.4g}") for name, value in out.items()} | said

    def _memory_used(self) -> float:
        """The most that was used of the device's memory, 0 to 1."""
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            return torch.cuda.max_memory_allocated(self.device) / total
        return psutil.Process().memory_info().rss / psutil.virtual_memory().total

    def _settled(self, found: Hint | None) -> Hint | None:
        """A hint, if it was the same three times running: one second tells little."""
        self._hints = [*self._hints[-2:], found]
        return found if self._hints == [found] * 3 else None


def _shape(batch: Batch) -> Shape:
    """What decides how much there is to compute."""
    return batch.mean.shape, *[tensor.shape for tensor in (batch.cond or {}).values()]


class _DeviceClock:
    """When a CUDA device came to what it was told, by this process's clock. Nothing here waits, but for the first look."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.synchronize(device)
        self._set()

    def mark(self) -> tuple[Any, float]:
        """An event on the current stream, and when it was put there."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event, time.perf_counter()

    def lag(self, mark: tuple[Any, float]) -> float:
        """Seconds from when a mark was put to when the device came to it; without end if it has not yet."""
        event, put = mark
        if not event.query():
            return float("inf")
        lag = self._zero[0].elapsed_time(event) / 1e3 - (put - self._zero[1])
        if lag < 0:  # no device comes to an event before it is put: the clocks drift
            self._zero = mark
        return max(0.0, lag)

    def set(self, last: tuple[Any, float] | None) -> None:
        """Compare the clocks anew, exactly if the device has nothing to do, else by the last mark: CUDA gives the time between
        far events in few digits."""
        if torch.cuda.current_stream(self._device).query():
            self._set()
        elif last is not None and (lag := self.lag(last)) < float("inf"):
            self._zero = (last[0], last[1] + lag)

    def _set(self) -> None:
        self._zero = self.mark()
