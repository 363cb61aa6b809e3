"""What the terminal shows of a run: one line that renews itself, or plain lines where there is no terminal.

Like every watcher it only reads the run's files; the run goes on without it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator

from limner import disk, jobs, queue, runner
from limner.config import Config
from limner.engine.hints import SENTENCES
from limner.errors import UserError, printable
from limner.estimate import Estimate
from limner.preflight import Records
from limner.runs import LIVE, Run, State

_NEEDED = {
    "step": ("time", "step", "loss"), "memory": ("memory_mib",), "warning": ("message",), "change": ("step", "options"),
    "validation": ("step", "loss"),
}  # fmt: skip
"""What must be said in an event that is shown."""
_PLAIN_SECONDS = 15.0
_WINDOW = 60
_LOOK_SECONDS = 0.2
_RUNNER_SECONDS = 5.0
_EXIT_SECONDS = 5.0
_COLUMNS = 79
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""The exit codes of a trainer that a signal stopped, with its state saved."""


def duration(seconds: float) -> str:
    """A length of time in at most two units: 45 s, 3 min 20 s, 2 h 5 min."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def say_plan(config: Config, records: Records) -> None:
    """One line on what will be done."""
    if records.base is None or records.dataset is None:
        return
    counts = records.dataset.bucket_counts()
    buckets = f"{len(counts)} bucket{'s' * (len(counts) != 1)}"
    what = "the whole model" if config.adapter.trains_base else config.adapter.kind
    if config.embedding.token is not None and config.adapter.kind != "embedding":
        what += " and a word"
    classes = len(records.classes) + len(records.to_paint)
    pictures = f"{records.dataset.num_pictures} pictures{f' and {classes} class pictures' if classes else ''}"
    print(f"{records.base.family} · {what} · {pictures} in {buckets} at {records.dataset.buckets.resolution} px"
          f" · {records.dataset.total_steps} steps of {config.train.batch_size * config.train.accumulation}")  # fmt: skip
    if (reckoned := records.estimate) is not None and records.question is not None:
        device = records.question.device
        for phase in reckoned.phases:
            parts = ", ".join(f"{name} {mib / 1024:.1f}" for name, mib in phase.parts.items() if mib > 51)
            print(f"  {phase.name:<9} {phase.total_mib / 1024:5.1f} GiB{f': {parts}' if parts else ''}")
        beside = f", {reckoned.process_mib / 1024:.1f} of it the libraries" if device == "cpu" else ""
        print(
            f"At most {reckoned.peak_mib(device) / 1024:.1f} GiB{beside}.", _time_words(reckoned, records.dataset.total_steps)
        )
    elif (weighed := records.footprint) is not None:
        text, vae, denoiser, trained = (
            f"{mib / 1024:.1f}" for mib in (weighed.text_mib, weighed.vae_mib, weighed.denoiser_mib, weighed.trained_mib)
        )
        print(f"Weights in GiB: text {text}, then VAE {vae}, then the denoiser {denoiser} and what is trained {trained}.")


def _time_words(reckoned: Estimate, steps: int) -> str:
    if reckoned.seconds_per_step is None:
        return ""
    return f"About {reckoned.seconds_per_step:.2f} s a step, {duration(reckoned.seconds_per_step * steps)} for all."


def saved_files(event: dict) -> list[str]:
    """What a `checkpoint` event says was written."""
    return [event[key] for key in ("path", "embedding") if key in event]


def in_a_line(facts: list[str]) -> str:
    """Facts beside each other, as many as fit into 79 columns, the first ones first."""
    line = facts[0]
    for fact in facts[1:]:
        if len(line) + 2 + len(fact) <= _COLUMNS:
            line += f"  {fact}"
    return line


def _is_whole(event: dict) -> bool:
    """Whether an event says all that is shown of it."""
    return all(name in event for name in _NEEDED.get(event.get("event", ""), ()))


class Watcher:
    """Follows a run's events and renders its progress."""

    def __init__(self, run: Run) -> None:
        self.run = run
        events = run.path / "events.jsonl"
        self._offset = events.stat().st_size if events.exists() else 0  # a resumed run has told its past already
        self._live = sys.stdout.isatty()
        self._recent: list[tuple[float, int, float]] = []  # time, step, loss
        self._memory = 0
        self._speed: dict = {}
        self._hint = ""
        self._last_line = ""
        self._printed = 0.0
        self._runner_seen = -_RUNNER_SECONDS
        self._why_waiting = ""

    def __call__(self) -> None:
        for event, offset in self.run.events(self._offset):
            self._offset = offset
            if _is_whole(event):
                self._take(event)
        state = self.run.state()
        if state.status == "waiting" and time.monotonic() - self._runner_seen > _RUNNER_SECONDS:
            self._why_waiting, self._runner_seen = why_waiting(self.run), time.monotonic()
            runner.ensure_runner()  # again and again: it may have been killed
        line = self.line(state)
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            if line != self._last_line:
                print(f"\r{line[:width]:<{width}}", end="", flush=True)
            self._last_line = line
        elif line != self._last_line and time.monotonic() - self._printed > _PLAIN_SECONDS:
            print(line, flush=True)
            self._printed, self._last_line = time.monotonic(), line  # one that came too soon is printed later

    def _take(self, event: dict) -> None:
        kind = event.get("event")
        if kind == "step":
            if self._recent and event["time"] < self._recent[-1][0]:
                self._recent = []  # the clock was set back: what lies between is no length of time
            self._recent = [*self._recent[-_WINDOW:], (event["time"], event["step"], event["loss"])]
        elif kind == "memory":
            self._memory = event.get("device_mib") or event["memory_mib"]
        elif kind == "speed":
            self._speed = event
            hint = SENTENCES.get(event.get("hint", ""), "")
            if hint and hint != self._hint:
                self._say(f"hint: {hint}")
                self._hint = hint
        elif kind in ("resume", "start"):
            self._recent, self._speed = [], {}
        elif kind == "warning":
            self._say(f"warning: {printable(event['message'], 300)}")
        elif kind == "checkpoint":
            for path in saved_files(event):
                self._say(f"saved {path}")
        elif kind == "change":
            said = ", ".join(f"{name} = {value!r}" for name, value in event["options"].items())
            self._say(f"changed at step {event['step']}: {printable(said, 300)}")
        elif kind == "validation":
            self._say(f"validation loss at step {event['step']}: {event['loss']:.5f}")

    def _say(self, words: str) -> None:
        if self._live:
            print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="")
        print(words, flush=True)
        self._last_line = ""

    def line(self, state: State) -> str:
        """The progress in one line of at most 80 columns."""
        if state.status == "waiting":
            return self._why_waiting
        done, total = state.progress
        if state.status not in LIVE or not state.steps:
            return f"{state.phase or state.status}{f' {done}/{total}' if total and state.status in LIVE else ''}"
        if state.phase != "training":
            return f"step {state.step}/{state.steps}  {state.phase}{f' {done}/{total}' if total else ''}"
        if len(self._recent) < 2:
            return f"step {state.step}/{state.steps}"
        (first_time, first_step, _), (last_time, last_step, _) = self._recent[0], self._recent[-1]
        loss = sum(entry[2] for entry in self._recent) / len(self._recent)
        # events are written about once a second: their times are bunched, their ends are not
        rate = (last_step - first_step) / max(1e-6, last_time - first_time)
        left = duration(max(0, state.steps - last_step) / rate) if rate and last_time > first_time else "?"
        said = [f"step {last_step}/{state.steps}", f"loss {loss:.4f}", f"{rate:.2f} steps/s", f"{left} left"]
        if (used := self._speed.get("utilisation")) is not None:
            said.append(f"{used * 100:.{0 if used > 0.095 else 1}f}% of peak")
        said.append(f"{self._memory} MiB")
        if (images := self._speed.get("images_per_second")) is not None:
            said.append(f"{images:.3g} images/s")
        return in_a_line(said)

    def end(self) -> None:
        if self._live:
            print()


def why_waiting(run: Run) -> str:
    """What a waiting run waits for, in words."""
    if said := run.state().error or runner.fault():
        return f"waiting: {printable(said, 200)}"
    try:
        device = runner.device_of(run)
    except UserError:
        return "waiting"  # the runner will say what is wrong with it
    busy = runner.live_runs().get(device)
    return f"waiting for {busy.id} to finish on {device}" if busy else "waiting to be started"


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: the machine is wanted back, or a container is stopped."""


def follow(run: Run) -> int:
    """Show an enqueued run until it ends, then say how; returns the exit code for the terminal.

    ctrl-C and SIGTERM ask for a polite stop, or take a run that waits out of the queue; a second one ends the trainer at once.
    Then the exit code of a stopped run is 130 or 143, so that no script takes it for finished.
    """
    print(f"Run {run.id} in {run.path}")
    watch = Watcher(run)
    asked = stopped_by = 0
    with _terminable():
        while True:
            try:  # the whole turn: a signal may come at any moment of it
                if run.state().status not in (*LIVE, "waiting"):
                    break
                watch()
                time.sleep(_LOOK_SECONDS)
            except KeyboardInterrupt as signalled:
                stopped_by = signal.SIGTERM if isinstance(signalled, _Terminated) else signal.SIGINT
                if asked:
                    jobs.stop_at_once(run)
                elif not queue.remove(run):
                    jobs.request_stop(run)
                    asked = True
                    said = f"Stopping{_what_is_kept(run)}. Press ctrl-C again to stop at once."
                    print(f"\n{said}", file=sys.stderr)
    watch()
    watch.end()
    code = _say_end(run)
    return 128 + stopped_by if code == 0 and stopped_by and run.state().status == "stopped" else code


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM raises `_Terminated`."""

    def terminate(number: int, frame: object) -> None:  # noqa: ARG001
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _what_is_kept(run: Run) -> str:
    with contextlib.suppress(UserError):
        if run.config().launch.trainer != "limner":
            return "; sd-scripts keeps what it last saved"
    return " after this step; its state will be saved"


def _say_end(run: Run) -> int:
    code = _exit_code(run)
    state = run.state()
    if state.status == "done" and not code:
        print(f"Done: {state.steps} steps.")
        return 0
    if state.status == "stopped" and not state.pid:
        print(f"Taken out of the queue before it started. Start it with: limner runs resume {run.id}")
        return 0
    if state.status == "stopped" and (not code or code in _STOPPED):
        print(f"Stopped at step {state.step} of {state.steps}. Go on with: limner runs resume {run.id}")
        return 0
    if not run.path.is_dir():
        print(f"error: {run.path} was deleted or moved while it trained.", file=sys.stderr)
        return 2
    for line in (state.error or f"the trainer ended with exit code {code}").split("\n"):
        print(line if line.startswith("error:") else f"error: {printable(line, 600)}", file=sys.stderr)
    print(f"The log: {run.log}", file=sys.stderr)
    return 2 if code == 2 else 1


def _exit_code(run: Run) -> int | None:
    """The trainer's exit code, which the runner notes just after the end; None if it never learns it.

    That of another process is none: two are started where a runner was killed just after it had started one, and one leaves.
    """
    until = time.monotonic() + _EXIT_SECONDS
    while time.monotonic() < until and (state := run.state()).pid:
        ended = disk.read_json(run.path / "exit.json")
        if isinstance(ended, dict) and ended.get("pid") in (state.pid, state.parent):
            return ended.get("code")
        time.sleep(_LOOK_SECONDS)
    return None


def _last_losses(run: Run, count: int = 50) -> list[float]:
    """The losses of the last steps, of which there may be millions."""
    out = deque[tuple[int, float]](maxlen=count)
    for event, _ in run.events():
        step, loss = event.get("step"), event.get("loss")
        if event.get("event") == "resume" and isinstance(step, int):
            out = deque((kept for kept in out if kept[0] <= step), maxlen=count)
        elif event.get("event") == "step" and isinstance(step, int) and isinstance(loss, float):
            out.append((step, loss))
    return [loss for _, loss in out]


def show(run: Run) -> int:
    """Print what is known of a run."""
    state = run.state()
    print(f"{run.id}\n  state   {state.status}{f' ({state.phase})' if state.phase else ''}, step {state.step} of {state.steps}")
    print(f"  folder  {run.path}")
    if state.status == "waiting":
        print(f"  waits   {why_waiting(run)}")
    if losses := _last_losses(run):
        print(f"  loss    {sum(losses) / len(losses):.4f} (mean of the last {len(losses)} steps)")
    validations = list(filter(_is_whole, run.history("validation")))
    if validations:
        print(f"  held out: loss {validations[-1]['loss']:.5f} at step {validations[-1]['step']}")
    for event in filter(_is_whole, run.history("checkpoint")):
        print(*(f"  saved   {path}" for path in saved_files(event)), sep="\n")
    if state.status == "failed":
        print(f"  error   {printable(state.error, 600)}")
        print("\n".join(f"  log     {printable(line, 300)}" for line in run.tail(2000).splitlines()[-8:]))
    return 0
