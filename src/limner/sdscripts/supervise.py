"""One session of sd-scripts from its start to its end: its words become the run's state and events, requests are answered."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable

from limner import disk
from limner.config import Config
from limner.errors import printable
from limner.machine import Machine
from limner.runs import Run
from limner.sdscripts import resume
from limner.sdscripts.assemble import Assembled, assemble
from limner.sdscripts.child import Child
from limner.sdscripts.collect import Collector
from limner.sdscripts.output import Lines, Told
from limner.sdscripts.record import Record

_LOOK_SECONDS = 0.2
_COLLECT_SECONDS = 0.5
_MEMORY_SECONDS = 5.0
_BAR_SECONDS = 10.0
"""A bar that is drawn anew many times a second comes into the log so often."""
_SAVE_SECONDS = 900.0
"""So long a save that was begun may go on after a stop was asked for."""
_POLITE = ((signal.SIGINT, 15.0), (signal.SIGTERM, 5.0))
_AT_ONCE = ((signal.SIGTERM, 3.0),)


class Supervisor:
    """Starts sd-scripts for a run and looks after it. `asked` tells what signals asked of this process: "", stop, stop-now."""

    def __init__(self, run: Run, config: Config, record: Record, asked: Callable[[], str]) -> None:
        self.run, self.config, self.record, self._asked = run, config, record, asked
        self.lines, self.told = Lines(), Told()
        self._stop = ""
        self._stop_since = 0.0
        self._stages: list[tuple[signal.Signals, float]] = []
        self._stage_until: float | None = None
        self._bar_written = 0.0
        self._is_nan_said = False

    def train(self, machine: Machine) -> tuple[bool, str]:
        """Run one session. Returns (whether it came to the end of the training, why not: "" where it was asked to stop)."""
        before = self.record.state
        start = resume.start_of(self.run, before)
        job = assemble(self.config, self.run.path, machine, start, before.steps)
        self._tell_before(job, start)
        job.write()
        job.output.mkdir(parents=True, exist_ok=True)
        command = {"argv": job.words, "environment": job.environment, "folder": str(job.checkout)}
        disk.write_json(self.run.path / "command.json", command)
        self.start, self.job = start, job
        self.collector = Collector(
            job.output, self.config.output.path or self.run.checkpoints, self.record, self.config.output.name, start.step,
            prompts=[p.text for p in job.prompts],
        )  # fmt: skip
        self.child = Child(job.words, job.checkout, job.environment)
        try:
            self._watch()
        finally:
            self.child.signal(None)  # whatever ends this ends it too, and what it left behind
        finished = self.child.exit_code == 0 and not (self._stop and not self._is_at_end())
        self.collector.look(self.told, finished=self.child.exit_code == 0)
        has_final = self.collector.has_final
        self.collector.close()
        if finished and has_final:
            return True, ""
        return False, "" if self._stop else self._why_failed()

    def _tell_before(self, job: Assembled, start: resume.Start) -> None:
        for name in start.passed_over:
            self.record.warn(f"a damaged training state was passed over: {name}")
        steps = job.total_steps or self.record.state.steps
        began = any(event.get("event") == "start" for event, _ in self.run.events())
        self.record.event("resume" if began else "start", step=start.step, steps=steps)
        for finding in (f for f in job.findings if f.severity != "note"):
            self.record.warn(f"{finding.field}: {finding.message} {finding.remedy}".strip())
        plan = {"family": job.base.family, "base": str(job.base.path), "device": job.device, "trainer": "sd-scripts"}
        plan |= {"script": job.script, "lr": job.arguments.get("unet_lr") or job.arguments.get("learning_rate")}
        disk.write_json(self.run.path / "plan.json", plan)
        self.record.say("running", "loading", step=start.step, steps=steps)

    def _watch(self) -> None:
        collected = measured = time.monotonic()
        while not self.child.has_ended:
            self._hear(self.child.output(_LOOK_SECONDS))
            self._answer()
            now = time.monotonic()
            if now - collected > _COLLECT_SECONDS:
                collected = now
                self.child.all_processes()
                self.collector.look(self.told)
            if now - measured > _MEMORY_SECONDS and self.told.phase == "training":
                measured = now
                self.record.event("memory", step=self._step, memory_mib=self.child.memory_mib())
        self._hear(b"", last=True)

    @property
    def _step(self) -> int:
        return self.start.step + self.told.step

    def _is_at_end(self) -> bool:
        return self.told.total > 0 and self.told.step >= self.told.total

    # --- what it says -------------------------------------------------------------------------------------------------

    def _hear(self, chunk: bytes, *, last: bool = False) -> None:
        for text, stays in self.lines.feed(chunk, last=last):
            self.told.take(text)
            self._log(text, stays)
        self.told.take(self.lines.unfinished, is_whole=False)
        self._publish(last=last)
        sys.stdout.flush()

    def _log(self, text: str, stays: bool) -> None:
        """Write to the log: all that stays, and of bars the newest state once in a while."""
        try:
            if stays:
                print(text)
            elif time.monotonic() - self._bar_written > _BAR_SECONDS:
                print(text)
                self._bar_written = time.monotonic()
        except OSError:
            pass  # a full disk: the training may still come to its end, and must not wait for its words to be read

    def _publish(self, *, last: bool) -> None:
        told = self.told
        self.collector.own_first_step = resume.own_first_step(self.start, self.job.arguments, told.batches)
        for step, loss, epoch in told.taken_losses(all_of_them=last):
            if math.isfinite(loss):
                self.record.event("step", step=self.start.step + step, loss=loss, epoch=epoch)
            elif not self._is_nan_said:
                self._is_nan_said = True
                self.record.warn("the loss is not a number any more; sd-scripts goes on, but learns nothing. Stop the run.")
        if told.held_out is not None and told.phase != "validating":
            if math.isfinite(told.held_out):
                self.record.event("validation", step=self._step, loss=told.held_out)
            told.held_out = None
        steps = max(self.record.state.steps, self._step, 0 if self.start.state is not None else told.total)
        progress = (self._step, steps) if told.phase == "training" else told.progress
        state = self.record.state
        if (told.phase, progress, self._step, steps) != (state.phase, state.progress, state.step, state.steps):
            self.record.say(None, told.phase, progress, step=self._step, steps=steps)

    # --- what is asked ------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        requests = self.run.take_requests()
        for what in ("sample", "save"):
            if what in requests:
                said = {"sample": "paints when sample.every_steps says", "save": "saves when output.save_every_steps says"}
                self.record.warn(f"sd-scripts cannot be asked while it trains: it {said[what]}, and not at any other time")
        for name, _ in self.run.take_changes():
            self.record.warn(f"sd-scripts cannot be changed while it trains: {printable(name)} was not taken over")
        asked = self._asked()
        if "stop-now" in requests or asked == "stop-now":
            self._begin_stop("stop-now")
        elif "stop" in requests or asked == "stop":
            self._begin_stop("stop")
        if self._stop:
            self._go_on_stopping()

    def _begin_stop(self, how: str) -> None:
        if self._stop == how or self._stop == "stop-now":
            return
        self._stop, self._stop_since, self._stage_until = how, time.monotonic(), None
        self._stages = list(_POLITE if how == "stop" else _AT_ONCE)
        states = sorted(p.name for p in self.run.states.glob("step-*"))
        kept = f"its last training state is of step {int(states[-1][5:])}" if states else "it has saved no training state yet"
        self.record.warn(f"sd-scripts cannot save when it is stopped: {kept}; what came after is lost")
        self.record.say("stopping", self.told.phase, self.told.progress)

    def _go_on_stopping(self) -> None:
        now = time.monotonic()
        if self._stop == "stop" and self.told.phase == "saving" and now - self._stop_since < _SAVE_SECONDS:
            return  # a save that was begun is worth waiting for
        if self._stage_until is not None and now < self._stage_until:
            return
        if self._stages:
            number, seconds = self._stages.pop(0)
            self.child.signal(number)
            self._stage_until = now + seconds
        else:
            self.child.signal(None)

    def _why_failed(self) -> str:
        """The reason in words: its own last exception, not that of the launcher around it."""
        code, said = self.child.exit_code, self.told.error
        if "OutOfMemoryError" in said or "out of memory" in said:
            return f"The device ran out of memory. Set memory.checkpointing = true, or a smaller train.batch_size. ({said})"
        if said:
            return f"sd-scripts: {said}"
        if code == 0:
            return "sd-scripts ended without writing a model; the log says why."
        if code < 0 or code in (137, 143):
            number = -code if code < 0 else code - 128
            return f"sd-scripts was killed (signal {number}); often the computer ran out of memory."
        return f"sd-scripts ended with exit code {code}; the log says why."
