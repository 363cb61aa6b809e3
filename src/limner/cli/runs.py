"""`limner runs`: what is done with runs that there are."""

from __future__ import annotations

import sys

from cyclopts import App

from limner.cli.words import Options
from limner.errors import wrong

runs_app = App(name="runs", help="List, show, stop, resume, change, queue and delete runs.")


def follow_to_its_end(run) -> int:
    """Put a run into the queue, and show it until it ends."""
    from limner import progress, queue

    queue.enqueue(run)
    return progress.follow(run)


def go_on(run) -> int:
    """Show a run until it ends, whatever became of it since it was asked for: put into the queue again if it ended early."""
    from limner import progress, queue, runner, runs

    status = run.state().status
    if status == "done":
        print(f"{run.id} is finished.")
        return 0
    if status == "waiting":  # whoever served the queue may be gone
        queue.repair()
        runner.ensure_runner()
    elif status not in runs.LIVE:
        queue.enqueue(run)
    return progress.follow(run)


@runs_app.command(name="list")
def runs_list() -> int:
    """List all runs."""
    from limner import damage, runs

    for finding in damage.findings(runs.home()):
        print(finding, file=sys.stderr)
    found = runs.all_runs()
    for run in found:
        state = run.state()
        done = f"{state.step}/{state.steps}" if state.steps else ""
        print(f"{run.id:<44.44} {state.status:<9} {done:>12}")
    if not found:
        print(f"No runs yet in {runs.home() / 'runs'}.")
    return 0


@runs_app.command(name="show")
def runs_show(name: str) -> int:
    """Show one run: its state, its files, the end of its log if it failed."""
    from limner import progress, runs

    return progress.show(runs.find(name))


@runs_app.command(name="stop")
def runs_stop(name: str, *, now: bool = False) -> int:
    """Stop a run after the current step with its state saved, or at once. A waiting one leaves the queue."""
    from limner import jobs, runs

    state = jobs.stop(runs.find(name), now=now)
    print(f"{state.status} at step {state.step} of {state.steps}" if state.pid else f"{state.status}: it had not started")
    return 1 if state.status == "failed" else 0


@runs_app.command(name="resume")
def runs_resume(name: str, *, processes: int | None = None) -> int:
    """Go on with a stopped or failed run from its newest training state.

    Parameters
    ----------
    processes: Train with so many processes from now on. Each step sees the same pictures, whatever their number.
    """
    from limner import queue, runs

    run = runs.find(name)
    if processes is not None:
        queue.set_processes(run, processes)
    return follow_to_its_end(run)


@runs_app.command(name="queue")
def runs_queue() -> int:
    """List the waiting runs in their order, and see to it that they are served."""
    from limner import progress, queue, runner, runs

    queue.repair()
    names = queue.waiting()
    for place, name in enumerate(names, 1):
        print(f"{place:>3}  {name:<44.44} {progress.why_waiting(runs.named(name))}")
    if names:
        runner.ensure_runner()
    if not names:
        print("No run is waiting.")
    return 0


@runs_app.command(name="move")
def runs_move(name: str, position: int) -> int:
    """Give a waiting run another place in the queue; the first is 1."""
    from limner import queue, runs

    run, names = runs.find(name), queue.waiting()
    if run.id not in names:
        raise wrong("run", f"{run.id} is not waiting.", "`limner runs queue` shows which are.")
    if not 1 <= position <= len(names):
        raise wrong("position", f"there is no place {position}.", f"The queue has places 1 to {len(names)}.")
    names.remove(run.id)
    queue.reorder([*names[: position - 1], run.id, *names[position - 1 :]])
    return runs_queue()


def _ask(name: str, what: str) -> int:
    from limner import runs

    run = runs.find(name)
    if run.state().status not in runs.LIVE:
        raise wrong("run", f"{run.id} is not running.", "Only a run that trains can be asked.")
    run.request(what)
    print("Asked; it is done after the current step.")
    return 0


@runs_app.command(name="sample")
def runs_sample(name: str) -> int:
    """Have a running run paint its prompts now."""
    return _ask(name, "sample")


@runs_app.command(name="save")
def runs_save(name: str) -> int:
    """Have a running run save a checkpoint now."""
    return _ask(name, "save")


@runs_app.command(name="change")
def runs_change(name: str, *options: Options) -> int:
    """Change a running run from its next step on: limner runs change last optimizer.lr=5e-5 train.steps=4000

    The learning rate (*0.5 is half of what it is), steps or epochs, prompts, and how often it paints, saves and validates.
    """
    from limner import changes, runs

    run = runs.find(name)
    texts = {}
    for word in options:
        option, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            raise wrong(word, "is not name=value.", "For example: optimizer.lr=5e-5")
        texts[option] = value
    changes.request(run, changes.typed(run, texts))
    print("Asked; it holds from the next step on.")
    return 0


@runs_app.command(name="delete")
def runs_delete(name: str) -> int:
    """Move a run to the trash folder."""
    from limner import runs

    print(f"Moved to {runs.delete(runs.find(name))}")
    return 0
