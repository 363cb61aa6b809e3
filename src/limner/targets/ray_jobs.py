"""Ray Jobs: a job is submitted to the dashboard of a Ray cluster, and looked at there.

Ray sends a job's files out (its working_dir), but none back. What it does serve are the files among its logs, of any of its
machines and as they are (`ray logs`): a link there leads to the job's folder. Requests go by a second, short job on the same
machine. So nothing but the dashboard's port is needed, and no shared folder.
"""

from __future__ import annotations

import json
import os
import shlex
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from limner.config import Launch
from limner.errors import wrong
from limner.targets import there
from limner.targets.asked import num_gpus
from limner.targets.contents import Contents
from limner.targets.job import Files, Job, NotReached, Seen
from limner.targets.shared import SharedFiles

_SECONDS = 30
_PYTHON = "python"
"""The one that Ray's machines find: that of the environment in which Ray was started there."""
_GIB = 2**30
_STATUS: dict[str, Literal["waiting", "running"]] = {"PENDING": "waiting", "RUNNING": "running"}


class Dashboard:
    """What is asked of Ray's dashboard. Raises NotReached where it does not answer, UserError if Ray is not installed here."""

    def __init__(self, address: str) -> None:
        os.environ.pop("RAY_ADDRESS", None)  # it would take precedence over what the configuration says
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise wrong("launch.target", "Ray is not installed here.", "Install it: pip install limner[ray]") from None
        self._make, self._address = JobSubmissionClient, address
        self._made: Any = None

    @property
    def client(self) -> Any:
        """Ray's own client, which asks for the server's version first."""
        if self._made is None:
            self._made = self._reached(lambda: self._make(self._address))
        return self._made

    def _reached(self, act: Any) -> Any:
        try:
            return act()
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            raise NotReached(f"Ray at {self._address}: {error}") from None

    def info(self, job: str) -> Any:
        """What Ray says of a job; None if it knows none of that name."""
        try:
            return self.client.get_job_info(job)
        except (OSError, RuntimeError) as error:
            if "status code 404" in str(error):
                return None
            raise NotReached(f"Ray at {self._address}: {error}") from None

    def submit(self, name: str, words: list[str], **options: Any) -> None:
        self._reached(lambda: self.client.submit_job(submission_id=name, entrypoint=shlex.join(words), **options))

    def stop(self, job: str) -> None:
        self._reached(lambda: self.client.stop_job(job))

    def file(self, node: str, name: str) -> Iterator[bytes]:
        """A file among the logs of one of the machines."""
        query = urllib.parse.urlencode({"node_id": node, "filename": name, "lines": -1, "timeout": _SECONDS})
        path = f"/api/v0/logs/file?{query}"
        answer = self._reached(lambda: self.client._do_request("GET", path, stream=True, timeout=_SECONDS))
        if answer.status_code != 200:
            raise NotReached(f"Ray has no file {name}: {answer.text[:200]}")
        try:
            yield from answer.iter_content(1 << 20)
        except OSError as error:
            raise NotReached(f"Ray broke off while it sent {name}: {error}") from None


class RayFiles:
    """A job's folder on one of Ray's machines, read over the dashboard."""

    def __init__(self, dashboard: Dashboard, job: str) -> None:
        self._dashboard, self._job, self._node = dashboard, job, ""
        self._folder = ""

    def look(self) -> Contents | None:
        if not self._node:
            info = self._dashboard.info(self._job)
            self._node = (info and info.driver_node_id) or ""
        if not self._node:
            return None
        try:
            found = Contents.from_json(json.loads(self._all(there.INDEX)))
        except NotReached as error:
            if "not found" in str(error):
                return None  # nothing was laid out yet
            raise
        except ValueError as error:
            raise NotReached(f"what the job lays out cannot be read: {error}") from None
        self._folder = found.folder
        return found

    def read(self, name: str, start: int, end: int) -> bytes:
        out = b""
        while start + len(out) < end:
            offset = start + len(out)
            piece = self._all(there.piece_name(name, offset))[offset % there.CHUNK_BYTES :][: end - offset]
            if not piece:
                break
            out += piece
        return out

    def bring(self, name: str, to: Path) -> None:
        with to.open("wb") as out:
            for chunk in self._stream(name):
                out.write(chunk)

    def ask(self, name: str, text: str) -> None:
        self.errand("ask", [self._folder, name, text])

    def forget(self) -> None:
        self.errand("forget", [self._folder])

    def errand(self, what: str, words: list[str]) -> None:
        """Have something done beside the job."""
        if self._node and self._folder:
            name = f"{self._job}-{what}-{time.time_ns():x}"
            selector = {"ray.io/node-id": self._node}
            self._dashboard.submit(name, [_PYTHON, "-m", there.__name__, what, *words], entrypoint_label_selector=selector)

    def _stream(self, name: str) -> Iterator[bytes]:
        return self._dashboard.file(self._node, f"{there.link_name(self._job)}/{name}")

    def _all(self, name: str) -> bytes:
        return b"".join(self._stream(name))


class RayTarget:
    """A run's job of a Ray cluster."""

    def __init__(self, job: Job, launch: Launch) -> None:
        self._job, self._launch, self._dashboard = job, launch, Dashboard(job.where)
        self._sent = RayFiles(self._dashboard, job.id)
        self.files: Files = SharedFiles(Path(job.folder)) if job.is_shared else self._sent
        self._was_seen = False

    def submit(self, package: Path) -> Job:
        asked = self._launch
        runtime = {} if self._job.is_shared else {"working_dir": str(package)}
        doing = ["train", self._job.folder] if self._job.is_shared else ["unpack", self._job.id]
        options = {"entrypoint_num_cpus": asked.job_cpus, "entrypoint_num_gpus": num_gpus(asked) or None}
        options["entrypoint_memory"] = asked.job_memory_gib and asked.job_memory_gib * _GIB
        self._dashboard.submit(
            self._job.id, [_PYTHON, "-m", there.__name__, *doing], runtime_env=runtime,
            **{name: value for name, value in options.items() if value is not None},
        )  # fmt: skip
        return self._job

    def poll(self) -> Seen:
        info = self._dashboard.info(self._job.id)
        if info is None:
            said = f"Ray at {self._job.where} knows no job {self._job.id}: was the cluster restarted?"
            return Seen("ended", said)
        return Seen(_STATUS.get(info.status.value, "ended"), f"Ray says {info.status.value}: {info.message or ''}")

    def stop(self) -> None:
        self._dashboard.stop(self._job.id)

    def forget(self) -> None:
        if not self._job.is_shared:
            self._sent.forget()
