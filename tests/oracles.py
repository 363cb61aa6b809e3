"""Cases of tests/corpus.py through their doors, in one forked process that notes all it does; and what must hold of each.

O1 no traceback. O2 a documented exit code or status, in 5 seconds of a processor. O3 each finding names a field or file and
a remedy, its message is at most 300 characters, without controls. O4 nothing is written, and no secret read, outside the
case's own folder and the home; what is refused leaves nothing. O5 no process is started, but the runner. O6 no connection is
made. O7 at most 1 GiB of memory more than before. O8 the next case is answered by the same process. O9 the canary is not there.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import forked
from strangers import DOORS, SECRET, Case, Place

SECONDS, MIB = 5.0, 1024
HANGS_SECONDS = 60.0
_WRITES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.chown"}
_STARTS = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "os.forkpty",
}  # fmt: skip
_CALLS = {"socket.connect", "socket.sendto", "socket.getaddrinfo", "urllib.Request", "pickle.find_class"}


@dataclass
class Answer:
    """What a case gave at one door."""

    code: int | None = None
    text: str = ""
    """All that was said."""
    findings: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(field, message, remedy, severity) of those that were told."""
    seconds: float = 0.0
    """Of a processor."""
    wall_seconds: float = 0.0
    mib: float = 0.0
    """The most memory meanwhile, beyond what there was before."""
    events: list[tuple[str, str]] = field(default_factory=list)
    """What was done that must not be: (what, where)."""
    left: list[str] = field(default_factory=list)
    """Files that are new in the case's folder."""
    runs: int = 0
    """Folders of runs in the home."""


def answers(module: str, root: Path, machine: Path) -> Iterator[tuple[tuple[str, str], Answer]]:
    """((case, door), answer) of the module's CASES at all their doors. A process that hangs or dies is replaced, and the case
    has no code."""
    jobs = [(name, door) for name, case in importlib.import_module(module).CASES.items() for door in case.doors]
    while jobs:
        ours, its = forked.CONTEXT.Pipe()
        worker = forked.CONTEXT.Process(target=_work, args=(its, module, jobs, root, machine))
        worker.start()
        its.close()
        try:
            while jobs and ours.poll(HANGS_SECONDS):
                answer = ours.recv()
                yield jobs.pop(0), answer
        except EOFError:
            pass
        if jobs:
            worker.kill()
            yield jobs.pop(0), Answer(text="the process hung or died")
        worker.join()


def faults(case: Case, answer: Answer) -> Iterator[str]:  # noqa: C901  # one oracle after the other
    """The oracles that an answer offends."""
    if "Traceback" in answer.text or "Error:" in answer.text:
        yield "O1 a traceback"
    documented = {"refused": (2, 413, 422), "accepted": (0, 200), "either": (0, 2, 200, 413, 422)}[case.answer]
    if answer.code not in documented:
        yield f"O2 the code {answer.code}"
    if answer.seconds > SECONDS:
        yield f"O2 {answer.seconds:.1f} seconds"
    errors = [f for f in answer.findings if f[3] == "error"]
    if answer.code in (2, 413, 422) and not errors:
        yield "O3 refused without a finding"
    for name, message, remedy, _ in answer.findings:
        if not name or not message or not all(t.isprintable() for t in (name, message, remedy)) or len(message) > 300:
            yield f"O3 {name!r}: {message!r}"
    for name, message, remedy, _ in errors:
        if not remedy and name != "server":  # the gate's limit is its own remedy
            yield f"O3 no remedy for {name}: {message}"
    if answer.code == 2 and case.says and not any(case.says in part for f in errors for part in f):
        yield f"O3 {case.says!r} is not said"
    if not all(line.isprintable() for line in answer.text.splitlines()) and answer.code not in (200, 413, 422):
        yield "O3 controls on the terminal"
    yield from (f"O4-O6 {what} {where}" for what, where in answer.events)
    if case.answer == "refused" and (answer.left or answer.runs):
        yield f"O4 left: {answer.left or 'a run'}"
    if SECRET in answer.text:
        yield "O4 the secret"
    if answer.mib > MIB:
        yield f"O7 {answer.mib:.0f} MiB"


# --- in the process ---------------------------------------------------------------------------------------------------

_seen: list[tuple[str, tuple[Any, ...]]] | None = None
_told: list[tuple[str, str, str, str]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and (event == "open" or event in _WRITES or event in _STARTS or event in _CALLS):
        _seen.append((event, arguments))


def _work(asked: Connection, module: str, jobs: Sequence[tuple[str, str]], root: Path, machine: Path) -> None:
    from limner.errors import Finding, printable

    cases: dict[str, Case] = importlib.import_module(module).CASES
    sys.dont_write_bytecode = True
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    home = root / "home"
    os.environ["LIMNER_HOME"] = str(home)
    if not home.exists():
        home.mkdir(parents=True)
        shutil.copy(machine, home / "machine.json")
    place = Place(root, *_around(root))
    original = Finding.__str__

    def told(finding: Finding) -> str:
        # as it is printed
        _told.append(
            (printable(finding.field, 120), printable(finding.message, 300), printable(finding.remedy, 300), finding.severity)
        )
        return original(finding)

    Finding.__str__ = told  # type: ignore[method-assign]
    sys.addaudithook(_note)
    page = Page(root)
    page.ask("GET", "/api/presets")
    for number, (name, door) in enumerate(jobs):
        folder = root / f"case {os.getpid()} {number}"
        asked.send(_tried(cases[name], door, Place(folder, place.pictures, place.outside), page, home))


def _around(root: Path) -> tuple[Path, Path]:
    """A folder of pictures, and one outside with a secret."""
    from PIL import Image

    pictures, outside = root / "pictures", root.parent / f"{root.name}-outside"
    if not pictures.exists():
        pictures.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (64, 64), (80 * i, 30, 30)).save(pictures / f"p{i}.png")
            (pictures / f"p{i}.txt").write_text("a sks cat")
        outside.mkdir()
        (outside / "secret.txt").write_text(SECRET)
    return pictures, outside


def _tried(case: Case, door: str, place: Place, page: Page, home: Path) -> Answer:
    global _seen
    place.folder.mkdir()
    file = case.make(place)
    before = {p.name: p.read_bytes() for p in place.outside.iterdir()}
    there = _listed(place.folder)
    os.chdir(place.folder)
    _told.clear()
    reset_peak()
    low, cpu, wall = peak_mib(), time.process_time(), time.monotonic()
    _seen = []
    try:
        code, text = (
            page.door(door, file, accepts=case.answer != "refused")
            if door in ("page", "upload")
            else typed(DOORS[door](file, place))
        )
    finally:
        seen, _seen = _seen, None
    out = Answer(code, text, [*page.told, *_told], time.process_time() - cpu, time.monotonic() - wall, peak_mib() - low)
    page.told.clear()
    given = _real(str(file))
    out.events = [(e, str(a)[:200]) for e, a in seen if _is_forbidden(e, a, (place.folder, home), (place.outside, given))]
    after = {p.name: p.read_bytes() for p in place.outside.iterdir()}
    if before != after:
        out.events.append(("changed", str(set(before.items()) ^ set(after.items()))[:200]))
    out.left = sorted(_listed(place.folder) - there)
    out.runs = len(list((home / "runs").glob("*"))) if (home / "runs").is_dir() else 0
    os.chdir(place.folder.parent)
    subprocess.run(["rm", "-rf", place.folder], check=True)  # shutil's calls itself for each folder in another
    for strange in after.keys() - {"secret.txt"}:
        (place.outside / strange).unlink()
    for left in ("presets", "runs", "imported", "uploads"):
        shutil.rmtree(home / left, ignore_errors=True)
    return out


def _listed(folder: Path) -> set[str]:
    from limner import disk

    return {
        os.path.join(above, name).encode("utf-8", "backslashreplace").decode()
        for above, names, files in disk.walk(folder)
        for name in names + files
    }


def typed(words: list[str]) -> tuple[int, str]:
    """(exit code, what was said) of `limner WORDS...`."""
    from limner import cli

    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    sys.argv = ["limner", *words]
    code: Any = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as left:
            code = left.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    return code, said.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]


class Page:
    """The page's routes, with a session."""

    def __init__(self, root: Path) -> None:
        from starlette.testclient import TestClient

        from limner.settings import Settings
        from limner.web.app import make_app
        from limner.web.context import Context
        from limner.web.words import Words

        context = Context(Settings(), (root.resolve(),), Words())
        self.told: list[tuple[str, str, str, str]] = []
        self._client = TestClient(
            make_app(context), "http://127.0.0.1", headers={"Origin": "http://127.0.0.1"}, raise_server_exceptions=False
        )
        self._client.get("/")  # gives the session's cookie

    def ask(self, method: str, address: str, **content: Any) -> tuple[int, str]:
        answer = self._client.request(method, address, **content)
        if answer.status_code in (413, 422):
            # the page shows a finding's texts as they are: no markup is read in them, and they wrap
            self.told += [
                (f["field"], f["message"][:300], f["remedy"], f["severity"]) for f in answer.json().get("findings", ())
            ]
        return answer.status_code, answer.text

    def door(self, door: str, file: Path, *, accepts: bool) -> tuple[int, str]:
        """What a door says; of what is to be refused, the import and then the check."""
        if door == "upload":
            return self.ask("POST", f"/api/upload?token={'0' * 16}&name={file.name}", content=file.read_bytes())
        body = {"name": file.name, "text": file.read_bytes().decode("utf-8", "surrogatepass")}
        code, text = self.ask("POST", "/api/import", content=json.dumps(body), headers={"Content-Type": "application/json"})
        return (code, text) if code != 200 or accepts else self._check(json.loads(text)["values"])

    def _check(self, values: dict[str, str]) -> tuple[int, str]:
        """What is said of values that were imported into the form: 422 if they cannot be trained with."""
        code, text = self.ask(
            "POST", "/api/check", content=json.dumps({"values": values}), headers={"Content-Type": "application/json"}
        )
        found = [f for f in json.loads(text).get("findings", ()) if f["severity"] == "error"] if code == 200 else []
        self.told += [(f["field"], f["message"][:300], f["remedy"], "error") for f in found]
        return (422 if found else code), text


def _is_forbidden(event: str, arguments: tuple[Any, ...], ours: tuple[Path, ...], secret: tuple[Path, str]) -> bool:
    """Whether something was done that no case may: `secret` are the folder outside and what the user gave by name."""
    if event in _STARTS or event in _CALLS:
        return event != "subprocess.Popen" or arguments[1] != [sys.executable, "-m", "limner.runner", str(os.getpid())]
    paths = [_real(os.fsdecode(a)) for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
    if event == "open":
        paths, (_, mode, flags) = paths[:1], arguments
        if not any(sign in (mode or "") for sign in "wax+") and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return any(
                path.startswith((f"{secret[0]}/secret", "/etc/passwd", "/etc/shadow")) for path in paths if path != secret[1]
            )
    return any(not path.startswith((*(f"{folder.resolve()}" for folder in ours), os.devnull)) for path in paths)


def _real(path: str) -> str:
    return os.path.realpath(path) if "\0" not in path else path


def reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The most memory since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
