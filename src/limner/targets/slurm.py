"""Slurm, by submitit: it writes the batch script, submits it, asks how the job stands, and puts it back into the queue when
its time is up. The job's folder lies on a file system that both see, as Slurm's users have it.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from limner import disk, processes
from limner.config import Launch
from limner.errors import printable, wrong
from limner.runs import LIVE, Run, State
from limner.targets import there
from limner.targets.asked import num_gpus, partition, sbatch_options
from limner.targets.job import Files, Job, Seen
from limner.targets.shared import SharedFiles

_ASK_SECONDS = 15.0
"""How often Slurm's accounting is asked; its administrators mind more. The end is seen earlier, in the job's folder."""
_SAVING_SECONDS = 80.0
"""Slurm warns 90 seconds before it ends a job: submitit's default."""
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING", "RESIZING", "SUSPENDED")


class Training:
    """What submitit stores and calls where the job runs."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self) -> int:
        return there.train(Path(self.folder))

    def checkpoint(self) -> Any:
        """Called when the job must end for now: has the trainer save its state; how the job goes on."""
        from submitit.helpers import DelayedSubmission

        run = Run(Path(self.folder))
        run.request("stop")
        until = time.monotonic() + _SAVING_SECONDS
        while State.read(run.path / "state.json").status in LIVE and time.monotonic() < until:
            time.sleep(0.2)
        before = State.read(run.path / "state.json")
        run.write_state(State("queued", step=before.step, steps=before.steps))
        return DelayedSubmission(self)


class SlurmTarget:
    """A run's job of Slurm, or of submitit's stand-in on this machine."""

    def __init__(self, job: Job, launch: Launch) -> None:
        try:
            import submitit
        except ImportError:
            raise wrong("launch.target", "submitit is not installed here.", "Install it: pip install limner[slurm]") from None
        self._submitit, self._job, self._launch = submitit, job, launch
        self.files: Files = SharedFiles(Path(job.folder))
        self._asked, self._answer = 0.0, Seen("unknown")

    @property
    def _folder(self) -> Path:
        return Path(self._job.folder) / "submitit"

    def submit(self, package: Path) -> Job:
        asked = self._launch
        options: dict[str, Any] = {"cpus_per_task": asked.job_cpus, "mem_gb": asked.job_memory_gib}
        options |= {"gpus_per_node": num_gpus(asked) or None, "slurm_partition": partition(asked)}
        more = sbatch_options(asked)
        try:
            executor = self._submitit.AutoExecutor(folder=self._folder, cluster=self._job.where)
            executor.update_parameters(
                name="limner", timeout_min=asked.slurm_minutes, nodes=1, tasks_per_node=1, slurm_additional_parameters=more,
                **{name: value for name, value in options.items() if value is not None},
            )  # fmt: skip
            job = executor.submit(Training(str(package)))
        except (RuntimeError, ValueError, OSError, self._submitit.core.utils.FailedJobError) as error:
            raise wrong("launch.target", f"the job was not taken: {printable(error, 200)}", "Mend what it says.") from None
        started = 0.0
        if self._job.where == "local":
            with contextlib.suppress(psutil.Error):
                started = psutil.Process(int(job.job_id)).create_time()
        self._job = replace(self._job, id=str(job.job_id), process_started=started)
        return self._job

    def poll(self) -> Seen:
        if disk.read_json(Path(self._job.folder) / "exit.json") is not None:
            return Seen("ended")
        if self._job.where == "local":
            alive = processes.is_alive(int(self._job.id), self._job.process_started)
            return Seen("running") if alive else Seen("ended", "its process is gone")
        if time.monotonic() - self._asked > _ASK_SECONDS:
            self._submitit.SlurmJob.watcher.clear()  # it takes a job's end for final: one that was put back goes on
            word = str(self._slurm_job().get_info(mode="force").get("State", "UNKNOWN"))
            self._asked, self._answer = time.monotonic(), _seen(word)
            if word.startswith("PREEMPTED") and State.read(Path(self._job.folder) / "state.json").status == "queued":
                self._answer = Seen("waiting", word)  # as `checkpoint` left it
        return self._answer

    def stop(self) -> None:
        if self._job.where == "slurm":
            self._slurm_job().cancel()
        elif processes.is_alive(int(self._job.id), self._job.process_started):
            process = psutil.Process(int(self._job.id))
            for one in [*process.children(recursive=True), process]:
                with contextlib.suppress(psutil.Error):
                    one.kill()

    def forget(self) -> None:
        """Nothing: what lies on the shared file system can be seen."""

    def _slurm_job(self) -> Any:
        return self._submitit.SlurmJob(folder=self._folder, job_id=self._job.id)


def _seen(word: str) -> Seen:
    """What a state of Slurm's accounting means."""
    first = (word.split() or ["UNKNOWN"])[0].rstrip("+")
    if first in _WAITING:
        return Seen("waiting", word)
    if first in ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED"):
        return Seen("running", word)
    return Seen("unknown", word) if first == "UNKNOWN" else Seen("ended", f"Slurm says {word}")
