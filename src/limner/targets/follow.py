"""The follower of a run that is trained elsewhere: submits its job, or finds the one that is out, and follows it to its end."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import replace

from limner.config import Config
from limner.errors import wrong
from limner.runs import LIVE, Run, State
from limner.state import StateTeller
from limner.targets import package
from limner.targets.asked import address
from limner.targets.contents import Contents
from limner.targets.job import Job, NotReached, Seen, Target
from limner.targets.mirror import Mirror
from limner.targets.ray_jobs import RayTarget
from limner.targets.slurm import SlurmTarget

_TARGETS: dict[str, Callable[..., Target]] = {"ray": RayTarget, "slurm": SlurmTarget}
_TICK_SECONDS = 1.0
_SLOW_TICK_SECONDS = 10.0
_GRACE_SECONDS = 10.0
_STOP_AGAIN_SECONDS = 5.0
_FETCH_TRIES = 5
_STOPS = ("stop", "stop-now")


class Follower:
    """One run and its job."""

    def __init__(self, run: Run, config: Config, teller: StateTeller) -> None:
        self.run, self._config, self._teller = run, config, teller
        self._job: Job
        self._target: Target
        self._mirror: Mirror
        self._passed = ""
        self._asked_at, self._stopped_at = 0.0, -_STOP_AGAIN_SECONDS
        self._last_words = ""

    def follow(self) -> State:
        """Submit the job if there is none, follow it; the state in which the run ends. Raises UserError if it is refused."""
        job = Job.read(self.run)
        if job is not None and job.is_open:
            self._attach(job)
            if self._never_came_to_be():
                self._submit()
        else:
            self._submit()
        return self._to_its_end()

    def _attach(self, job: Job) -> None:
        self._job, self._target = job, _TARGETS[job.target](job, self._config.launch)
        self._mirror = Mirror(self.run, self._target.files)
        self._asked_at = time.monotonic()

    def _never_came_to_be(self) -> bool:
        """Whether the follower before was ended while it submitted the job. If that cannot be told, it is taken to be there."""
        try:
            return not self._job.is_submitted and self._target.poll().status == "ended"
        except NotReached:
            return False

    def _submit(self) -> None:
        section = self._config.launch
        name = f"limner-{re.sub(r'[^A-Za-z0-9-]+', '-', self.run.id)[:60]}-{secrets.token_hex(4)}"
        is_shared = section.target == "slurm" or section.shared_path is not None
        folder = self.run.path / "job" if section.shared_path is None else section.shared_path / self.run.id
        self.run.drop_requests(before=time.time() - 60)
        sent = package.prepare(self.run, self._config, folder, is_sent=not is_shared)
        job = Job(
            section.target, address(section) if section.target == "ray" else section.slurm_cluster,
            name if section.target == "ray" else "", str(folder) if is_shared else "", is_shared=is_shared,
        )  # fmt: skip
        archive = folder.with_name("job.zip")
        try:
            if not is_shared:
                package.pack(folder, sent, archive)
            if section.target == "ray":
                job.write(self.run)  # its name is known before it is there
            self._attach(job)
            try:
                self._job = self._target.submit(folder if is_shared else archive)
            except NotReached as error:
                replace(job, is_open=False).write(self.run)
                raise wrong("launch.target", f"{error}.", "See that it runs and that the address is right.") from None
            self._job = replace(self._job, is_submitted=True)
            self._job.write(self.run)
        finally:
            if not is_shared:
                archive.unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
        print(f"submitted to {job.target} at {job.where} as {self._job.id}", flush=True)

    def _to_its_end(self) -> State:
        seen, found, slow = Seen("unknown"), None, False
        while True:
            try:
                self._pass_on(found)
                seen = self._target.poll()
                if seen.status == "ended":
                    return self._end(seen)
                found, self._job = self._mirror.catch_up(self._job)
                self._tell(seen, found)
                slow = False
            except NotReached as error:
                self._say(str(error))
                slow = True
            time.sleep(_SLOW_TICK_SECONDS if slow and not self._job.asked else _TICK_SECONDS)

    # --- what is asked ---

    def _pass_on(self, found: Contents | None) -> None:
        """Pass on what was asked of the run. What cannot be is kept, and tried again."""
        for what in self.run.take_requests():
            if what not in _STOPS:
                self._target.files.ask(what, "")
            elif self._job.asked != "stop-now":
                self._job = replace(self._job, asked=what)
                self._job.write(self.run)
                self._asked_at = time.monotonic()
        for name, text in self.run.take_changes():
            self._target.files.ask(name, text)
        if not self._job.asked:
            return
        trains = found is not None and found.told().status in LIVE
        if trains and self._passed != self._job.asked:
            self._target.files.ask(self._job.asked, "")
            self._passed = self._job.asked
        waited = time.monotonic() - self._asked_at
        if not trains or (self._job.asked == "stop-now" and waited > _GRACE_SECONDS):
            self._stop()

    def _stop(self) -> None:
        if time.monotonic() - self._stopped_at > _STOP_AGAIN_SECONDS:
            self._target.stop()
            self._stopped_at = time.monotonic()

    # --- what is told ---

    def _tell(self, seen: Seen, found: Contents | None) -> None:
        told = found.told() if found is not None else State()
        steps = {"step": told.step, "steps": told.steps or self._teller.state.steps}
        if told.status in LIVE:
            status = "stopping" if self._job.asked else told.status
            self._teller.say(status, told.phase, told.progress, error="", **steps)
        elif told.status == "queued":
            status = "stopping" if self._job.asked else "starting"
            self._teller.say(status, "queued elsewhere" if seen.status == "waiting" else "loading", error="")

    def _say(self, words: str) -> None:
        if words != self._last_words:
            self._last_words = words
            print(f"waiting: {words}", flush=True)
            self._teller.say(error=words)

    def _end(self, seen: Seen) -> State:
        """The job has ended: bring everything, and say how it ended."""
        found, fault = self._last_look()
        told = found.told() if found is not None else State()
        if told.status in ("done", "failed", "stopped"):
            state = replace(self._teller.state, status=told.status, step=told.step, steps=told.steps, error=told.error)
        elif self._job.asked:
            state = replace(self._teller.state, status="stopped", error="")
        else:
            code = found.exit_code if found is not None else None
            said = f"exit code {code}" if code is not None else seen.words
            state = replace(self._teller.state, status="failed", error=f"the job ended: {said}")
        if fault:
            state = replace(state, status="failed", error=f"the job ended, but not all it made was fetched: {fault}")
        if told.status != state.status:
            words = {"error": state.error} if state.status == "failed" else {}
            self.run.end_last_line()
            self.run.event("stop", step=state.step, status=state.status, **words)
        self._close()
        return state

    def _last_look(self) -> tuple[Contents | None, str]:
        fault = ""
        for _ in range(_FETCH_TRIES):
            try:
                found, self._job = self._mirror.catch_up(self._job)
                if found is not None:
                    self._mirror.bring_rest(found)
                return found, ""
            except NotReached as error:
                fault = str(error)
                time.sleep(_TICK_SECONDS)
        return None, fault

    def _close(self) -> None:
        self._job = replace(self._job, is_open=False)
        self._job.write(self.run)
        try:
            self._target.forget()
        except NotReached as error:
            print(f"what the job left on its machine is still there: {error}", flush=True)
