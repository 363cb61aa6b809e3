"""Where a session begins: at nothing, or at the newest training state that sd-scripts saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.errors import wrong
from limner.runs import Run, State
from limner.sdscripts.collect import is_whole_state

_CONSTANT = ("constant", "constant_with_warmup")


@dataclass(frozen=True)
class Start:
    """Where a session begins."""

    step: int = 0
    state: Path | None = None
    """The folder to go on from."""
    passed_over: tuple[str, ...] = ()
    """Newer states that were not written to their end."""


def start_of(run: Run, before: State) -> Start:
    """Where a run begins or goes on; `before` is what it said of itself last. Raises UserError if its steps are lost."""
    found = sorted((p for p in run.states.glob("step-*") if p.is_dir() and p.name[5:].isdecimal()), reverse=True)
    passed_over = list[str]()
    for folder in found:
        if is_whole_state(folder):
            return Start(int(folder.name[5:]), folder, tuple(passed_over))
        passed_over.append(folder.name)
    if before.step:
        said = f"{run.id} was ended at step {before.step} before sd-scripts had saved a training state; it saves one with each"
        said += " checkpoint only."
        raise wrong("run", said, "Start it anew, with output.save_every_steps.")
    return Start(passed_over=tuple(passed_over))


def arguments(start: Start, given: Mapping[str, Any], known: Mapping[str, Any], total: int) -> dict[str, Any]:
    """What has sd-scripts go on from there; None takes an argument out. Raises UserError where it cannot.

    Scripts that know `initial_step` keep the schedule and the order of the pictures. Only without accumulation do they pass
    over the pictures seen in the epoch that was begun: they count micro-batches there as steps. The others count from 0
    again and bend the schedule over the steps they are given, which is right only for one that is constant.
    """
    if start.state is None:
        return {}
    if start.step >= total > 0:
        raise wrong("run", f"all its {total} steps are done.", "Start a new run to train longer.")
    out: dict[str, Any] = {"resume": str(start.state)}
    if "initial_step" in known and "skip_until_initial_step" in known:
        return out | {"initial_step": start.step} | ({"skip_until_initial_step": True} if _skips(given) else {})
    schedule = given.get("lr_scheduler", "constant")
    if schedule not in _CONSTANT or given.get("lr_scheduler_type"):
        said = f"sd-scripts cannot go on with the schedule {schedule!r} here: this script begins it anew over what is left."
        raise wrong("optimizer.schedule", said, 'Start a new run, with optimizer.schedule = "constant" to be able to resume.')
    return out | {"max_train_steps": total - start.step, "max_train_epochs": None}


def own_first_step(start: Start, given: Mapping[str, Any], batches: int) -> int:
    """What the script itself calls the session's first step; `batches` are the micro-batches of an epoch."""
    return start.step % batches if given.get("skip_until_initial_step") and batches else 0


def _skips(given: Mapping[str, Any]) -> bool:
    return given.get("gradient_accumulation_steps", 1) == 1
