"""The trainer process: `python -m limner.engine RUN_FOLDER`. One of the two places that may catch everything."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import filelock
import psutil

from limner import changes, disk, fitting, garbage, hung, machine, runs, space
from limner.config import defaults
from limner.engine import beginning
from limner.engine.beginning import Beginning
from limner.engine.stopping import StopFlag
from limner.engine.together import called, leave_reason
from limner.engine.watchdog import Watchdog
from limner.errors import StopRequested, UserError, printable
from limner.runs import Run

_ABANDONED_SECONDS = 24 * 3600.0
"""How long nobody has touched what is taken for left behind, where others may be writing."""
_ENDING_SECONDS = 120.0


class Prefixed(io.TextIOBase):
    """A stream that begins every line with who speaks."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream, self._prefix, self._is_new = stream, prefix, True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._stream.write(self._prefix + line if self._is_new else line)
            self._is_new = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


def main(folder: str) -> int:
    """Train the run in `folder`, from its newest training state if it has one.

    Returns the exit code: 0 done, or stopped by a request; 128 + the signal if it was stopped by one (143, 130); 2 where the
    user can mend it; 1 for all else.
    """
    flag = StopFlag()
    run = Run(Path(folder).absolute())
    rank = int(os.environ.get("RANK", "0"))
    is_main = os.environ.get("LOCAL_RANK", str(rank)) == "0"  # of this machine
    if rank:
        prefix = f"[{called(rank, int(os.environ['WORLD_SIZE']))}] "
        sys.stdout, sys.stderr = Prefixed(sys.stdout, prefix), Prefixed(sys.stderr, prefix)
    lock = run.hold()
    try:
        if is_main:
            lock.acquire()
    except filelock.Timeout:
        said = f"{run.id} is being trained by another process already."
        print(f"error: {said}", file=sys.stderr)
        leave_reason(said, 2, is_echo=False)
        return 2
    except OSError as error:  # where there was no room to make the lock, nobody holds it
        return _not_started(run, error, is_ours=is_main and error.errno in disk.FULL)
    watchdog = Watchdog(run, is_main=is_main, is_stopping=lambda: flag.is_set)
    watchdog.start()
    try:
        if is_main:
            run.drop_requests(before=psutil.Process().create_time() - 1)  # a process's start is known to the second only
            run.write_state(run.starting(os.getpid()))  # now: importing torch takes seconds
        begun = beginning.begin(run)
        with garbage.uncollected():
            from limner.engine.journal import Journal

        journal = Journal(run, is_main=is_main, sign=watchdog.sign)
    except (OSError, ImportError) as error:
        watchdog.stop()
        code = _not_started(run, error, is_ours=is_main)
        lock.release()
        return code
    try:
        config = run.config()
        waits = config.launch.timeout_seconds if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0
        watchdog.expect(compiles=config.speed.compile != "off", waits_seconds=waits)
        return _train_as_fits(run, journal, flag, begun)
    except UserError as error:
        return _refused(journal, error)
    except Exception as error:
        from limner.engine import ends, runtime

        echo = runtime.lost(error)
        if not echo and (known := ends.in_words(error, run, journal.state.phase)) is not None:
            return _refused(journal, known)
        with contextlib.suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        said = f"{printable(f'{type(error).__name__}: {error}', 400)}. The log has the details."
        return _failed(journal, echo or said, 1, is_echo=bool(echo))
    finally:
        watchdog.stop()
        lock.release()


def _not_started(run: Run, error: Exception, *, is_ours: bool) -> int:
    """Say why nothing could be begun: in the log, and in the state if it `is_ours` and can be written meanwhile."""
    said, code = f"error: {run.id} cannot be started: {printable(error)}", 1
    failed = disk.as_os_error(error, run.path)
    if failed is not None and failed.errno in disk.FULL:
        with contextlib.suppress(UserError):
            said, code = str(space.shortage(run, run.config(), failed)), 2
    with contextlib.suppress(OSError):
        print(said, file=sys.stderr)
    if not leave_reason(said, code, is_echo=False) and is_ours:
        with contextlib.suppress(OSError, UserError):
            run.write_state(replace(run.starting(os.getpid()), status="failed", phase="", error=said))
    return code


def _refused(journal, error: UserError) -> int:
    with contextlib.suppress(OSError):
        for finding in error.findings:
            print(finding, file=sys.stderr)
    return _failed(journal, str(error), error.exit_code)


def _failed(journal, reason: str, code: int, *, is_echo: bool = False) -> int:
    if leave_reason(reason, code, is_echo=is_echo):
        return code
    try:
        journal.say(status="failed", phase="", error=reason)
        journal.event("stop", step=journal.state.step, status="failed", error=reason)
    except (OSError, UserError) as error:
        with contextlib.suppress(OSError):
            print(f"error: the state could not be written either ({printable(error)}).", file=sys.stderr)
    return code


def _train_as_fits(run: Run, journal, flag: StopFlag, begun: Beginning | None) -> int:
    """Train; when memory runs out, go on in a smaller way from the last finished step, and when what is learnt is no number any
    more, from the last training state without what it was learnt from."""
    from limner.engine import fit
    from limner.engine.watch import Alarm
    from limner.models.given_back import give_back

    alarm: Alarm | None = None
    while True:
        reason = ""
        try:
            return _train(run, journal, flag, alarm, begun)
        except fit.OutOfMemory as error:
            reason, alarm = printable(str(error), 200), None
        except Alarm as error:
            alarm = Alarm(*error.args)
        if reason:
            fit.step_down(run, changes.config_at(run), journal, reason)  # out here, where nothing refers to the step any more
        begun = None
        give_back()


def _train(run: Run, journal, flag: StopFlag, alarm, begun: Beginning | None) -> int:
    with garbage.uncollected():
        from limner.engine import checkpoint, fit, going_back, prepare, runtime, saving, skips, trackers, train

    config = run.config()
    if journal.is_main:
        _tidy_up(run, checkpoint.output_folder(config, run.checkpoints), config.memory.cache_path or runs.home() / "cache")
        if alarm is not None:
            going_back.forget_states(run, alarm)
    if config.launch.num_threads is not None:
        import torch

        torch.set_num_threads(config.launch.num_threads)
    here = machine.describe(runs.home())
    device = here.kind(config.launch.device)
    facts = here.first(device)
    precision = defaults.precision(config, device, facts is not None and facts.bf16)
    process = runtime.start(device, precision, config.launch.timeout_seconds)
    # where several machines train, the main one's folder alone has states and changes
    known = changes.recorded(run), fitting.recorded(run), skips.recorded(run)
    path, faults, made, way, left_out = process.share((*checkpoint.newest_state(run.states), *known))
    first_step = checkpoint.step_of(path) if path is not None else 0
    config = fitting.laid_over(changes.with_changes(config, made, first_step), way or {})
    if process.is_main:
        journal.trackers = trackers.make(config, run)
    if process.is_main and process.world != config.launch.num_processes:
        said = f"trained by {process.world} instead of {config.launch.num_processes} processes; each step is the same"
        journal.event("warning", message=said)
    try:
        with flag.at_once(is_alone=process.world == 1):
            job = prepare.prepare(run, config, process, journal, lambda: flag.is_set, begun)
        job.pending = [c for c in made if c.step > first_step]
        skips.take(job, [*left_out, *_resume(run, job, path, faults, checkpoint, journal)])
        job.alarm = alarm
        finished, reason = False, ""
        try:
            finished = train.train(job, first_step)
        except Exception as error:
            if process.world > 1 or not fit.is_out_of_memory(error):
                raise
            reason = printable(f"{type(error).__name__}: {error}", 200)
        if reason:  # out here the step's tensors are forgotten
            saving.keep_last_step(job)
            raise fit.OutOfMemory(reason)
        journal.flush()
    except StopRequested:
        finished = False  # before the first step: nothing to save, what is cached stays
    if not finished:
        run.take_requests()
    process.close()  # not if it failed: another may be gone, and would be waited for
    status = "done" if finished else "stopped"
    journal.say(status=status, phase="", progress=(journal.state.step, journal.state.steps))
    with contextlib.suppress(OSError):  # all that counts is saved, and the state says so
        journal.event("stop", step=journal.state.step, status=status)
    # a launcher takes any other code of one of several for a failure of all; it has a word of its own
    return 0 if finished or process.world > 1 else flag.exit_code


def _tidy_up(run: Run, *shared: Path) -> None:
    """Delete what a killed trainer left half-written, in the run's own folders and in those that others write into as well."""
    run.end_last_line()
    for folder in (run.path, run.states, run.samples, run.checkpoints):
        disk.sweep(folder)
    for folder in shared:
        disk.sweep(folder, idle_seconds=_ABANDONED_SECONDS)


def _resume(run: Run, job, path: Path | None, faults: list[str], checkpoint, journal) -> list:
    """Take over the newest training state, if there is one; `faults` are those of newer ones. Returns what it leaves out."""
    from limner.engine.skips import Skip

    for fault in faults:
        journal.event("warning", message=f"a damaged training state was passed over: {fault}")
    if path is None:
        # a run starts once: begun again from nothing it resumes at step 0, and what came before counts no more
        began = any(event.get("event") == "start" for event, _ in run.events())
        journal.event("resume" if began else "start", step=0, steps=job.dataset.total_steps)
        return []
    facts = checkpoint.load_state(path, job.adapter, job.optimizer, job.average, job.runtime)
    job.written = list(facts.get("written", []))
    if facts.get("scaler"):
        job.scaler.load_state_dict(facts["scaler"])
    checkpoint.refuse_other_circumstances(facts, job.circumstances())
    job.facts |= facts.get("session", {})
    if facts.get("data", "") != job.dataset.fingerprint():
        said = "pictures or captions changed since the run was stopped; it goes on with them as they are now"
        journal.event("warning", message=said)
    journal.event("resume", step=facts["step"], steps=job.dataset.total_steps)
    if facts.get("watch"):
        job.watch.take(facts["watch"])
    return [Skip.of(told) for told in facts.get("skips", [])]


if __name__ == "__main__":
    code = main(sys.argv[1])
    # a library that does not end with the interpreter must not keep the device: no Python thread could watch it now
    faulthandler.dump_traceback_later(hung.limit(_ENDING_SECONDS), exit=True)
    sys.exit(code)
