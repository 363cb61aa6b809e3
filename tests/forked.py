"""Processes forked from a server that has everything imported: one costs a fraction of a second, and not ten.

What they do is what the command does, in a process of its own. Commands themselves are run in tests/test_cli.py,
tests/web/test_server.py, tests/web/test_acceptance.py and tests/e2e/test_lora_run.py.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import multiprocessing
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

CAN_FORK = os.name != "nt"
CONTEXT: Any = multiprocessing.get_context("forkserver" if CAN_FORK else "spawn")
if CAN_FORK:
    CONTEXT.set_forkserver_preload(["preloaded"])
# the server knows of sys.path only this; and it must find what it is to load, else it says nothing and has nothing ready
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])

_AT_IMPORT = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES")
"""What libraries ask the environment for while they are imported: whoever has it otherwise is started truly."""
_address = ""
"""Where the process is asked that forks for `Popen`; known to all that it forks."""


def to_log(path: str) -> None:
    """Send what this process says into a file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


@functools.cache
def start_server() -> None:
    """Start the server of forked processes with what is read once, at a program's start or a library's import: the
    allocator's settings of a trainer, and that the Hub (tests have one of their own) is sent files in the plain way.
    """
    if not CAN_FORK:
        return
    from multiprocessing import forkserver

    from limner.launch import _MALLOC

    told = {**_MALLOC, "HF_HUB_DISABLE_XET": "1"}
    before = {name: os.environ.get(name) for name in told}
    os.environ |= told
    forkserver.ensure_running()
    for name, value in before.items():
        del os.environ[name]
        if value is not None:
            os.environ[name] = value


class Popen(subprocess.Popen[Any]):
    """subprocess.Popen, but `python -m limner...` is forked from what has all of it imported; so are all that it starts."""

    _asked: socket.socket | None = None

    def _execute_child(self, args: Any, *others: Any) -> None:  # type: ignore[override]
        given = inspect.signature(super()._execute_child).bind(args, *others).arguments  # type: ignore[misc]
        environment = dict(os.environ if given["env"] is None else given["env"])
        is_ours = isinstance(args, (list, tuple)) and list(args[:2]) == [sys.executable, "-m"] and args[2].startswith("limner")
        same = all(environment.get(name) == os.environ.get(name) for name in _AT_IMPORT)
        if not is_ours or not same or given["executable"] or given["preexec_fn"] or given["pass_fds"]:
            super()._execute_child(args, *others)  # type: ignore[misc]
            return
        pipes = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        ends = [own if end == -1 else end for own, end in enumerate((given["p2cread"], given["c2pwrite"], given["errwrite"]))]
        words = [str(word) for word in args[2:]]
        asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked.connect(_server())
        folder = os.path.abspath(given["cwd"] or ".")
        said = pickle.dumps((words, environment, folder, given["start_new_session"]))
        socket.send_fds(asked, [said], ends)
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
        self.pid, self._asked, self._child_created = int(asked.recv(20)), asked, True
        self._reading = threading.Lock()

    def _internal_poll(self, *others: Any, **more: Any) -> int | None:
        if self._asked is None:
            return super()._internal_poll(*others, **more)  # type: ignore[misc]
        try:
            return self._wait(0)
        except subprocess.TimeoutExpired:
            return None

    def _wait(self, timeout: float | None) -> int:
        if self._asked is None:
            return super()._wait(timeout)  # type: ignore[misc]
        if not select.select([self._asked], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        with self._reading:
            if self.returncode is None:
                self.returncode = int(self._asked.recv(20) or -signal.SIGKILL)
        return self.returncode


@contextmanager
def forks() -> Iterator[None]:
    """Fork what would be started with `python -m limner...` (on Windows, start it)."""
    if not CAN_FORK:
        yield
        return
    before, subprocess.Popen = subprocess.Popen, Popen  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = before  # type: ignore[misc]


def _server() -> str:
    global _address
    if not _address:
        start_server()
        _address = tempfile.mktemp(prefix="limner-forks-", suffix=".socket")
        ours, its = CONTEXT.Pipe()
        CONTEXT.Process(target=_serve, args=(_address, its)).start()
        ours.recv()
        atexit.register(ours.close)  # before multiprocessing waits for it
    return _address


def _serve(address: str, alive: Connection) -> NoReturn:
    """Fork whoever is asked for, and tell how each ends, until whoever started this is gone."""
    global _address
    _address = address
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(100)
    ended, end = socket.socketpair()
    for side in (ended, end):
        side.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(end.fileno())
    children: dict[int, socket.socket] = {}
    alive.send("ready")
    while True:
        ready = select.select([listener, ended, alive], [], [])[0]
        if alive in ready:
            os.unlink(address)
            os._exit(0)
        if ended in ready:
            ended.recv(1000)
        if listener in ready:
            asking, _ = listener.accept()
            said, descriptors, _, _ = socket.recv_fds(asking, 1 << 20, 3)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for one in (listener, ended, end, alive, asking, *children.values()):
                    one.close()
                words, environment, folder, is_leader = pickle.loads(said)
                _run(words, environment, folder, is_leader, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            with suppress(OSError):  # whoever asked may have been killed meanwhile
                asking.send(str(pid).encode())
            children[pid] = asking
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            with children.pop(pid) as asked, suppress(OSError):  # whoever started it may be gone; it was to go on by itself
                asked.send(str(os.waitstatus_to_exitcode(status)).encode())


def _run(words: list[str], environment: dict[str, str], folder: str, is_leader: bool, descriptors: list[int]) -> NoReturn:
    """Be `python -m WORDS...`."""
    import runpy
    import traceback

    if is_leader:
        os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, encoding="utf-8", errors="replace") for n in (1, 2))  # noqa: SIM115
    subprocess.Popen = Popen  # type: ignore[misc]
    atexit._clear()
    sys.argv = list(words)
    code: Any = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        code = left.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code or 0)
