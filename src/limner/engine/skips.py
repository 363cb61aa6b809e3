"""What a run leaves out since it made no numbers: single pictures for good, or a step as a whole.

Kept as events and in the training state, and applied as a function of the step: what is left out is out in the same steps
however often the run is resumed. The places of the others, and so all that is drawn for them, stay as they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from limner.runs import Run

if TYPE_CHECKING:
    from limner.engine.training import Training


@dataclass(frozen=True)
class Skip:
    """What was decided about a step that made no numbers."""

    step: int
    """From 1."""
    pictures: tuple[int, ...] = ()
    """By their places in the data set: left out from that step on. None: the step is left out, and it alone."""
    data: str = ""
    """The data set's fingerprint: in another one the places are others'."""

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "pictures": list(self.pictures)}

    @staticmethod
    def of(told: dict[str, Any]) -> Skip:
        """What `told` gave. Raises KeyError or TypeError if it is not that."""
        return Skip(int(told["step"]), tuple(map(int, told["pictures"])), str(told["data"]))


def recorded(run: Run) -> list[Skip]:
    """All that a run's events tell of, also those behind the step it is resumed from: it comes there again."""
    return [Skip.of(event["skip"]) for event, _ in run.events() if event.get("event") == "skip" and "skip" in event]


def take(job: Training, found: list[Skip]) -> None:
    """Apply these; in all processes alike. Pictures are forgotten if the data were changed since, maybe to mend them."""
    if not found:
        return
    data = job.dataset.fingerprint()
    job.skips = job.runtime.share([s for s in dict.fromkeys(found) if not s.pictures or s.data == data])


def shown(job: Training, step: int) -> list[tuple[int | None, ...]]:
    """The micro-batches of a step (from 0), None in the place of what is left out."""
    micro_batches = job.dataset.order.step(step)
    if not job.skips:
        return list(micro_batches)
    hidden = {i for skip in job.skips for i in skip.pictures if step + 1 >= skip.step}
    is_out = any(step + 1 == skip.step for skip in job.skips if not skip.pictures)
    if job.runtime.is_sharded:  # all must compute equally often
        is_out = is_out or any(i in hidden for batch in micro_batches for i in batch)
    return [tuple(None if is_out or i in hidden else i for i in batch) for batch in micro_batches]


def num_shown(job: Training, step: int) -> int:
    """How many pictures a step shows, in all processes together."""
    return sum(i is not None for batch in shown(job, step) for i in batch)
