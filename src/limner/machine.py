"""What this machine can do: devices, precisions, memory. Found out by a child process, asked once and cached.

The child imports torch; whoever asks does not.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from limner import disk
from limner.errors import Finding, UserError

ASKED_AGAIN_SECONDS = 60.0
"""How long a failure stands before the child process is started again: it imports torch, and may take two minutes."""


KINDS = ("cpu", "mps", "cuda")
"""From the slowest on."""


@dataclass(frozen=True)
class Device:
    """One device that can train."""

    kind: str  # cpu | cuda | mps
    name: str
    memory_mib: int
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """The machine as the trainer will see it."""

    torch: str
    torch_build: str  # cpu, or the version of CUDA/ROCm it was built for
    devices: tuple[Device, ...]
    cores: int
    memory_mib: int
    gpu_without_torch: str  # name of a GPU that is present but that this torch cannot use, else ""

    def kind(self, asked: str | None) -> str:
        """The kind of device that is used: the one that was asked for, or the best."""
        return asked or self.best().kind

    def best(self) -> Device:
        """The device that is used when none is asked for."""
        return max(self.devices, key=lambda d: KINDS.index(d.kind))

    def count(self, kind: str) -> int:
        return sum(d.kind == kind for d in self.devices)

    def first(self, kind: str) -> Device | None:
        return next((d for d in self.devices if d.kind == kind), None)


class NoAnswer(UserError):
    """The machine could not be asked: torch is broken here, or too slow."""


def describe(home: Path, *, refresh: bool = False) -> Machine:
    """This machine; from the cache in `home` as long as interpreter, torch and visible devices are the same.

    Raises NoAnswer, which is kept there as well for ASKED_AGAIN_SECONDS: all who ask in that time are given it at once.
    """
    path = home / "machine.json"
    cached = None if refresh else disk.read_json(path, is_ours=True)
    if isinstance(cached, dict) and cached.get("key") == key():
        with contextlib.suppress(KeyError, TypeError, AttributeError):  # damaged: asked anew, and written over
            if "failed" not in cached or 0 <= time.time() - cached["time"] < ASKED_AGAIN_SECONDS:
                return _from_json(cached)
    try:
        found = {"machine": _ask()}
    except NoAnswer as error:
        found = {"failed": asdict(error.findings[0]), "time": time.time()}
    with contextlib.suppress(OSError):  # a home that cannot be written is preflight's to report
        if path.is_dir():
            disk.set_aside(path)
        disk.write_json(path, {"key": key(), **found})
    return _from_json(found)


def key() -> str:
    """Changes with whatever may change what is known of the machine."""
    return f"{sys.executable} {_torch_version()} {visible_gpus()} {platform.node()} {_boot()}"


VISIBLE = "LIMNER_VISIBLE_GPUS"
"""In the environment of a trainer that is given some of the GPUs: what was visible to whoever started it."""


def visible_gpus() -> str:
    """CUDA_VISIBLE_DEVICES as the machine was asked with."""
    return os.environ.get(VISIBLE) or str(os.environ.get("CUDA_VISIBLE_DEVICES"))


def _ask() -> dict:
    """The probe's answer. Raises NoAnswer with its last words if torch cannot even be imported."""
    asked, remedy = [sys.executable, "-m", "limner.engine.probe"], "Install it again; the README says how."
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise NoAnswer([Finding("torch", "gives no answer in two minutes.", remedy)]) from None
    try:
        return json.loads(answer.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        words = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        raise NoAnswer([Finding("torch", f"cannot be used here: {words}", remedy)]) from None


def _from_json(raw: dict) -> Machine:
    """The machine that is kept, or NoAnswer if a failure is."""
    if "failed" in raw:
        raise NoAnswer([Finding(**raw["failed"])])
    found = raw["machine"]
    devices = tuple(Device(**d) for d in found["devices"])
    numbers = (found["cores"], found["memory_mib"], *(d.memory_mib for d in devices))
    if not devices or any(d.kind not in KINDS for d in devices) or any(type(n) is not int for n in numbers):
        raise TypeError("no description of a machine")
    return Machine(**{**found, "devices": devices})


def _torch_version() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _boot() -> int:
    """Minutes-precise time of the last start: drivers and cards change with it."""
    import psutil

    return int(psutil.boot_time()) // 120
