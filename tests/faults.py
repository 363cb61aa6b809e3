"""Trainers to which something happens: a full disk, no memory, files that are changed under them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import forked
from limner import disk
from limner.config import Config, files
from limner.runs import Run

NO_SPACE = os.strerror(errno.ENOSPC)


def train(run: Run, fault: Callable[..., None], *values: Any, seconds: float = 120) -> int:
    """Train a run in a process that first calls `fault(*values)`; returns the exit code, minus the signal of one killed."""
    forked.start_server()
    process = forked.CONTEXT.Process(target=_train, args=(str(run.path), os.environ["LIMNER_HOME"], fault, values))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"still running after {seconds} s: {run.tail()}")
    return process.exitcode


def _train(folder: str, home: str, fault: Callable[..., None], values: tuple[Any, ...]) -> None:
    os.environ["LIMNER_HOME"] = home
    forked.to_log(str(Path(folder) / "log.txt"))
    from limner.engine import __main__ as engine

    fault(*values)
    os._exit(engine.main(folder))


# --- what may happen, each before the `count`-th call of a function -----------------------------------------------------


def _before(where: str, count: int, act: Callable[[], object]) -> None:
    from limner.data.cache import Cache
    from limner.engine import checkpoint, paint
    from limner.engine.journal import Journal
    from limner.engine.samples import Samples

    owner, name = {
        "hashes": (Cache, "_some_hashes"),
        "encode": (Samples, "_encode_picture"),
        "cache": (Cache, "put"),
        "step": (Journal, "step"),
        "file": (checkpoint, "save_file"),
        "paint": (paint, "paint"),
        "picture": (paint, "to_image"),
    }[where]
    original, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        is_counted = where != "hashes" or threading.current_thread() is threading.main_thread()  # models are hashed beside
        calls += is_counted
        if is_counted and calls == count:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def fill(where: str, count: int, folder: str, left: int) -> None:
    """The disk that holds `folder` is filled up to `left` bytes, by a file there."""

    def act() -> None:
        there = os.statvfs(folder)
        with open(Path(folder) / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, there.f_bavail * there.f_frsize - left)

    _before(where, count, act)


def delete(where: str, count: int, path: str) -> None:
    """A file or folder is deleted."""
    _before(where, count, lambda: shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path))


def replace(where: str, count: int, path: str, content: bytes) -> None:
    """A file gets another content."""
    _before(where, count, lambda: Path(path).write_bytes(content))


def run_words(where: str, count: int, *words: str) -> None:
    """A program is run."""
    _before(where, count, lambda: subprocess.run(words, check=True))


def no_device_memory(where: str, count: int) -> None:
    """The device's allocator refuses."""

    def act() -> None:
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    _before(where, count, act)


def no_memory(where: str, count: int, mib: int) -> None:
    """The system gives the process no more memory from then on, and of what it has `mib` are left."""
    import ctypes
    import resource

    import torch

    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: what other threads have freed is there for all

    def act() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        for kib in (1024, 16):
            held = list[torch.Tensor]()
            with contextlib.suppress(RuntimeError):
                while True:
                    held.append(torch.empty(kib << 10, dtype=torch.uint8))
            _HELD.extend(held)
        del _HELD[:mib]

    _before(where, count, act)


_HELD: list[Any] = []


def refused_files(where: str, count: int, number: int) -> None:
    """No safetensors file of a checkpoint or a state can be written any more."""
    from limner.engine import checkpoint

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    _before(where, count, lambda: setattr(checkpoint, "save_file", refuse))


def ordinary_user() -> None:
    """The trainer may no more than the bits of a file allow, though root runs it (Linux)."""
    import ctypes

    libc, head, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, sets) == 0
    for i in range(3):
        sets[i] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(head, sets) == 0


# --- disks ------------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A disk of so many MiB, mounted at `folder`; skips the test where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if (
        os.name == "nt"
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


# --- what must hold afterwards ----------------------------------------------------------------------------------------


def leftovers(*folders: Path) -> list[str]:
    """Temporary names, of ours and of libraries, anywhere below."""
    return [str(p) for f in folders if f.exists() for p in f.rglob("*") if p.name.startswith((".tmp", ".taken-tmp"))]


def require_whole(run: Run) -> None:
    """What has a final name is whole, and a training state that was told of is there."""
    from safetensors.torch import load_file

    kept = [p for p in run.states.iterdir() if p.name.startswith("step-")] if run.states.is_dir() else []
    for state in kept:
        assert disk.manifest_faults(state) == [], state
    for file in run.checkpoints.rglob("*.safetensors"):
        load_file(file)
    told = [e["step"] for e, _ in run.events() if e["event"] == "state"]
    assert not told or max(told) in [int(p.name[5:]) for p in kept], (told, kept)


def require_ended(run: Run) -> None:
    """No lock is held, no process is left, the log has no traceback."""
    assert not run.is_locked() and run.state().worker is None
    assert "Traceback" not in run.tail(1 << 20), run.tail(20_000)


# --- what is checked before the start ---------------------------------------------------------------------------------

MOST_MIB = 1500
_MEASURED = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(json.dumps([done.returncode, done.stderr, done.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10]))
"""


def check(chosen: Config, folder: Path, *flags: str) -> tuple[int, str, str, int]:
    """`limner check` in a process of its own: exit code, what it says, and the most memory it had, MiB."""
    (file := folder / "run.toml").write_text(files.render(chosen), encoding="utf-8")
    words = [
        sys.executable,
        "-c",
        _MEASURED,
        sys.executable,
        "-c",
        "from limner.cli import main; main()",
        "check",
        str(file),
        *flags,
    ]
    code, told, said, mib = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return code, told, said, mib
