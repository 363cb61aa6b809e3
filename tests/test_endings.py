"""How a trainer can end, each through the real runner: what is said of it is true, and is said within five seconds.

A script stands in for the trainer (tests/tiny_runner.py); it knows `run`, its folder, `say` a state and `home`.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import tiny_runner
from limner import disk, hung, jobs, progress, queue, runner, runs
from limner.config import Config, Launch, Output
from limner.runs import Run, State

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]
SECONDS = 5.0
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Ending:
    """What the trainer does last, and what is true then."""

    name: str
    script: str
    status: str = "failed"
    reason: str = ""
    """The whole of it, as a pattern."""
    code: int | None = None
    """In exit.json."""
    before: Callable[[Run], None] | None = None
    """What was done to the run before it started."""


def killed(name: str) -> Ending:
    number = int(getattr(signal, name))
    script = f"import signal; signal.signal({number}, signal.SIG_DFL); say('running'); os.kill(os.getpid(), {number})"
    if name in ("SIGKILL",):
        script = f"say('running'); os.kill(os.getpid(), {number})"
    words = "crashed" if name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL") else "was killed"
    more = "; the log may have its stacks" if words == "crashed" else UNSAID if name == "SIGKILL" else ""
    return Ending(name.lower(), script, reason=rf"the trainer {words} \(signal {number}\){more}", code=-number)


def exits(code: int, more: str = "") -> Ending:
    return Ending(
        f"exit-{code}", f"say('running'); os._exit({code})", reason=f"the trainer ended with exit code {code}{more}", code=code
    )


def raises(name: str, script: str, last: str, code: int = 1) -> Ending:
    return Ending(name, script, reason=f"the trainer ended with exit code {code}: {last}", code=code)


def from_shell(number: int) -> Ending:
    return exits(128 + number, rf", as a shell says of what was killed \(signal {number}\)")


def put(name: str, text: str) -> Callable[[Run], None]:
    return lambda run: disk.write_text(run.path / name, text)


def spoilt(name: str, text: str, code: int = 0) -> Ending:
    script = f"say('running'); open(os.path.join(run, 'state.json'), 'w').write({text!r}); os._exit({code})"
    return Ending(
        name, script, reason=f"its state file was damaged or removed, and the trainer ended with exit code {code}", code=code
    )


FILE = "open(os.path.join(run, 'checkpoints', 'a.safetensors'), 'w').write('x');"
GONE = r"the trainer is gone \(killed, or the machine was restarted\)"
UNSAID = "; if nobody did that, the computer ran out of memory. Lower .* other programs"
KILLED = rf"the trainer was killed \(signal 9\){UNSAID}"
ASKED = "stop = os.path.join(run, 'control', 'stop')\nwhile not os.path.exists(stop): time.sleep(0.02)\nsay('stopped')"
AGAIN = "os.path.exists(os.path.join(run, 'again')) and (say('done'), os._exit(0)); open(os.path.join(run, 'again'), 'w');"
BEAT = f"say('running'); open(os.path.join(run, {hung.HEARTBEAT!r}), 'w'); import signal;"
ENDINGS = [
    # it says how it ends
    Ending("done", "say('done')", "done", code=0),
    Ending("stopped", "say('stopped')", "stopped", code=0),
    Ending("said-why", "say('failed', error='a reason'); os._exit(1)", reason="a reason", code=1),
    Ending("said-user", "say('failed', error='train.steps: is wrong'); os._exit(2)", reason="train.steps: is wrong", code=2),
    Ending("done-exit-1", "say('done'); os._exit(1)", "done", code=1),
    Ending("done-killed", "say('done'); os.kill(os.getpid(), 9)", "done", code=-9),
    Ending("stopped-exit-1", "say('stopped'); os._exit(1)", "stopped", code=1),
    Ending("failed-exit-0", "say('failed', error='a reason')", reason="a reason", code=0),
    Ending("asked", ASKED, "stopped", code=0, before=put("control/stop", "")),
    # it does not
    Ending("exit-0-no-file", "say('running')", reason="the trainer ended with exit code 0", code=0),
    Ending("exit-0-silent", "", reason="the trainer ended with exit code 0", code=0),
    Ending("exit-0-file", f"say('running'); {FILE}", reason="the trainer ended with exit code 0", code=0),
    Ending("exit-1-file", f"say('running'); {FILE} os._exit(1)", reason="the trainer ended with exit code 1", code=1),
    Ending("stopping", "say('stopping'); os._exit(0)", reason="the trainer ended with exit code 0", code=0),
    Ending("stopping-killed", "say('stopping'); os.kill(os.getpid(), 9)", reason=KILLED, code=-9),
    *map(exits, (1, 2, 3, 126, 127, 255)),
    *map(from_shell, (6, 9, 11, 15)),
    *map(killed, ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGUSR1", "SIGALRM", "SIGXCPU")),
    *map(killed, ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")),
    # Python says it for it
    raises("import-error", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    raises("import-name", "from os import no_such_name", "ImportError: cannot import name 'no_such_name' from 'os'.*"),
    raises("syntax-error", "eval('1 +')", "SyntaxError: .*"),
    raises("name-error", "say('running'); no_such_name", "NameError: name 'no_such_name' is not defined"),
    raises("memory-error", "say('running'); bytearray(1 << 62)", "MemoryError"),
    raises("recursion", "say('running')\ndef f(): f()\nf()", "RecursionError: .*"),
    raises("disk-full", "say('running'); raise OSError(28, 'No space')", r"OSError: \[Errno 28\] No space"),
    raises("own-error", "class Odd(Exception): pass\nraise KeyError('a')", "KeyError: 'a'"),
    raises("said-error", "sys.exit('error: it is wrong')", "error: it is wrong"),
    Ending("says-other", "sys.exit('good bye')", reason="the trainer ended with exit code 1", code=1),
    raises("hostile-error", "raise ValueError('\\x1b[31m\\u202e' + 'x' * 999)", r"ValueError: \\u001b\[31m\\u202ex{200,}…"),
    Ending("in-a-thread", "import threading; say('running'); t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
           reason="the trainer ended with exit code 0: ZeroDivisionError: division by zero", code=0),
    # its state is not to be trusted
    spoilt("half-written", '{"status": "running", "pid": 1'),
    spoilt("emptied", "", code=1),
    spoilt("a-list", "[1, 2]"),
    spoilt("odd-status", '{"status": "excellent", "pid": 1}'),
    Ending("removed", "say('running'); os.remove(os.path.join(run, 'state.json')); os._exit(4)",
           reason="its state file was damaged or removed, and the trainer ended with exit code 4", code=4),
    Ending("pid-reused", "say('running', pid=os.getppid(), process_started=1.0)", reason=GONE, code=0),
    Ending("pid-huge", "say('running', pid=2 ** 70)", reason=GONE, code=0),
    # others hold it, or it holds others
    Ending("launcher", "say('running')\nif os.fork() == 0:\n  time.sleep(0.3)\n  os.kill(os.getpid(), 9)\n", code=0,
           reason="the trainer ended with exit code 0"),
    Ending("hung-word", f"{AGAIN} say('running'); os._exit({hung.EXIT_CODE})", "done", code=0),
    Ending("frozen", f"{AGAIN} {BEAT} os.kill(os.getpid(), signal.SIGSTOP)", "done", code=0),
    Ending("always-hung", f"say('running'); os._exit({hung.EXIT_CODE})", code=hung.EXIT_CODE,
           reason="It hung, and could not say where. It hung 4 times and is not started again by itself."),
    Ending("hung-and-asked", f"say('running'); open(os.path.join(run, 'control', 'stop'), 'w'); os._exit({hung.EXIT_CODE})",
           reason="It hung, and could not say where. It was to stop; resume it .*", code=hung.EXIT_CODE),
    # it never began
    Ending("type-error", "", reason=r"It could not be started: TypeError: argv.*", before=put("fault.txt", "TypeError")),
    Ending("no-python", "", reason=r".*No such file or directory.*", before=put("fault.txt", "/no/such/python")),
    Ending("not-a-program", "", reason=r".*Permission denied.*", before=put("fault.txt", "/")),
    Ending("bad-config", "", reason=r".*train.stepps.*", before=put("config.toml", "[train]\nstepps = 1\n")),
]  # fmt: skip


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("LIMNER_HANG_SECONDS", "1.5")


def enqueued(ending: Ending, device: str = "cpu") -> Run:
    run = runs.create(Config(output=Output(name=ending.name), launch=Launch(device=device)))  # type: ignore[arg-type]
    # when it comes to its end, so that what is said can be timed
    (run.path / "script.py").write_text(f"open(os.path.join(run, 'ends'), 'w').close()\n{ending.script}\n")
    queue.enqueue(run)
    if ending.before is not None:
        ending.before(run)
    return run


def start() -> None:
    runner.ensure_runner(tiny_runner.WORDS)


def wait(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def is_over(run: Run) -> bool:
    return run.state().status in ("done", "stopped", "failed", "queued")


def fault_of(ending: Ending, run: Run) -> str:
    """What is wrong with what is said of an ending; "" if nothing is."""
    state, ended = run.state(), disk.read_json(run.path / "exit.json")
    code = ended["code"] if ended else None
    if state.status != ending.status or code != ending.code:
        return f"{ending.name}: {state.status}, exit code {code}, {state.error!r}"
    if not re.fullmatch(ending.reason, state.error if state.status == "failed" else "", re.DOTALL):
        return f"{ending.name}: {state.error!r}"
    return ""


def test_there_are_sixty() -> None:
    assert len(ENDINGS) + 4 >= 60 and len({e.name for e in ENDINGS}) == len(ENDINGS)


@pytest.mark.long
def test_what_is_said_of_each_ending_is_true_and_said_soon(home: Path) -> None:
    made = {enqueued(ending, DEVICES[n % 3]): ending for n, ending in enumerate(ENDINGS)}
    start()
    seen: dict[Run, float] = {}
    until = time.monotonic() + 60
    while len(seen) < len(made) and time.monotonic() < until:
        for run in [run for run in made if run not in seen]:
            if is_over(run) and not fault_of(made[run], run):
                ends = run.path / "ends"
                seen[run] = time.time() - (ends.stat().st_mtime if ends.exists() else time.time())
        time.sleep(0.2)
    assert len(seen) == len(made), [fault_of(ending, run) for run, ending in made.items() if run not in seen]
    slow = {made[run].name: round(took, 1) for run, took in seen.items() if took > SECONDS}
    print(f"the longest took {max(seen.values()):.1f} s")
    assert not slow
    wait(lambda: runner.fault() == "" and not (home / "runner.json").exists())  # it left in order
    by_name = {ending.name: run for run, ending in made.items()}
    assert "TypeError: argv() is wrong" in by_name["type-error"].tail() and "Traceback" in (home / "runner.log").read_text()
    for name in ("hung-word", "frozen"):
        said = [e["message"] for e, _ in by_name[name].events() if e["event"] == "warning"]
        assert len(said) == 1 and said[0].endswith("It goes on from its newest training state (1 of 3)."), said
    assert by_name["frozen"].state().hangs == 1
    assert tiny_runner.lines(home, "started.txt").count(by_name["always-hung"].id) == 4


@pytest.mark.parametrize("last", ["say('done')", "say('failed', error='a reason')", "os.kill(os.getpid(), 9)", "os._exit(1)"])
def test_whoever_started_it_is_killed(home: Path, last: str) -> None:
    """The truth is known without a runner, and the next command brings one."""
    told = {"say('done')": ("done", ""), "say('failed', error='a reason')": ("failed", "a reason")}
    status, reason = told.get(last, ("failed", "the trainer is gone (killed, or the machine was restarted)"))
    script = f"say('running')\nwhile not os.path.exists(os.path.join(run, 'go')): time.sleep(0.01)\n{last}"
    run, after = enqueued(Ending("orphan", script)), enqueued(Ending("after", "say('done')"))
    start()
    wait(lambda: run.state().status == "running")
    pid = disk.read_json(home / "runner.json")["pid"]
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 10)
    assert run.state().status == "running", "it goes on"
    assert runner.fault() == "the process that starts runs was killed"
    assert progress.why_waiting(after) == f"waiting: {runner.fault()}"
    disk.write_text(run.path / "go", "")
    wait(lambda: (run.state().status, run.state().error) == (status, reason), SECONDS)
    start()
    wait(lambda: after.state().status == "done", 20)
    assert (run.state().status, run.state().error) == (status, reason)
    assert "was killed; this one goes on" in (home / "runner.log").read_text()


def test_a_runner_that_dies_is_seen_and_started_again(home: Path) -> None:
    run = enqueued(Ending("waits", "say('done')"))
    disk.write_text(home / "fault.txt", "")
    start()
    wait(runner.fault)
    assert runner.fault().startswith("the process that starts runs died: TypeError: the queue is wrong (the log: ")
    assert run.state().status == "waiting" and progress.why_waiting(run).startswith(
        "waiting: the process that starts runs died"
    )
    assert "Traceback" in (home / "runner.log").read_text()
    (home / "fault.txt").unlink()
    start()
    wait(lambda: run.state().status == "done")
    wait(lambda: not (home / "runner.json").exists())
    assert runner.fault() == ""


def test_a_process_that_the_system_ended_for_lack_of_memory(home: Path, tmp_path: Path) -> None:
    run = runs.create(Config())
    run.write_state(State("running", pid=2**22 + 1, process_started=1.0))
    jobs.note_exit(run, 2**22 + 1, -9, ran_out=True)
    assert run.state().error.startswith("the trainer was killed (signal 9) when the computer ran out of memory. Lower")
    (tmp_path / "vmstat").write_text("pgfault 5\noom_kill 3\n")
    assert jobs.num_out_of_memory(tmp_path / "vmstat") == 3 and jobs.num_out_of_memory(tmp_path / "none") == 0
