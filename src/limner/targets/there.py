"""What runs where the job does: trains in the job's folder, and lays out what is fetched over Ray's dashboard.

python -m limner.targets.there train FOLDER         in a folder that both sides see
python -m limner.targets.there unpack NAME          of what Ray unpacked in the current folder
python -m limner.targets.there ask FOLDER NAME TEXT
python -m limner.targets.there forget FOLDER
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from limner import disk, launch, machine, runs
from limner.errors import UserError, wrong
from limner.runs import REQUESTS, Run
from limner.targets import contents

CHUNK_BYTES = 256 << 10
OUTBOX = "outbox"
INDEX = f"{OUTBOX}/index.json"
_LINK = "link.json"
_TICK_SECONDS = 0.5


def link_name(name: str) -> str:
    """What the job's folder is called among Ray's logs."""
    return f"limner-{name}"


def train(folder: Path, on_tick: Callable[[], None] = lambda: None) -> int:
    """Train in a job's folder; returns the trainer's exit code, which is noted there. Everything it says goes to the log."""
    run = Run(folder)
    try:
        config = run.config()
        device = machine.describe(runs.home()).kind(config.launch.device)
        words, extra = launch.argv(config, folder, device), launch.environment(config, device)
        disk.write_json(folder / "command.json", {"argv": words, "environment": extra})
        with run.log.open("ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **extra}
            )
        while (code := process.poll()) is None:
            on_tick()
            time.sleep(_TICK_SECONDS)
    except UserError as error:
        _log(run, str(error))
        code = error.exit_code
    except Exception:
        _log(run, traceback.format_exc())
        code = 1
    disk.write_json(folder / "exit.json", {"code": code, "time": time.time()})
    on_tick()
    return code


def _log(run: Run, words: str) -> None:
    with run.log.open("a", encoding="utf-8") as log:
        log.write(f"{words}\n")


class Outbox:
    """Lays out what is fetched: files that grow in pieces, so that only what is new is read, and a list of all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: dict[str, int] = dict.fromkeys(contents.GROWING, 0)
        (folder / OUTBOX).mkdir(exist_ok=True)

    def publish(self) -> None:
        found = contents.look(self._folder)
        assert found is not None
        for name, size in found.growing.items():
            while self._done[name] < size:
                self._copy(name, size)
        disk.write_json(self._folder / INDEX, found.to_json(), durable=False)

    def _copy(self, name: str, size: int) -> None:
        start = self._done[name]
        piece = self._folder / piece_name(name, start)
        most = min(size - start, CHUNK_BYTES - start % CHUNK_BYTES)
        with (self._folder / name).open("rb") as source, piece.open("ab") as out:
            source.seek(start)
            self._done[name] += out.write(source.read(most))


def piece_name(name: str, offset: int) -> str:
    """The piece of a growing file that holds this byte."""
    return f"{OUTBOX}/{name}.{offset // CHUNK_BYTES}"


def _unpack(name: str) -> int:
    """Train what was sent, in a folder that outlives what Ray unpacks, and can be read over Ray's dashboard meanwhile."""
    folder = runs.home() / "jobs" / name
    shutil.copytree(Path.cwd(), folder, dirs_exist_ok=True)
    link = _logs(Path.cwd()) / link_name(name)
    disk.write_json(folder / _LINK, {"link": str(link)})
    link.symlink_to(folder, target_is_directory=True)
    outbox = Outbox(folder)
    outbox.publish()
    return train(folder, outbox.publish)


def _logs(here: Path) -> Path:
    """The folder of Ray's logs; what it unpacks lies in the same session's folder."""
    for parent in here.resolve().parents:
        if parent.name.startswith("session_") and (parent / "logs").is_dir():
            return parent / "logs"
    raise wrong("launch.target", f"Ray's logs are not found from {here}.", "Set launch.shared_path.")


def _ask(folder: Path, name: str, text: str) -> int:
    if name not in REQUESTS and not runs.is_change(name):
        raise wrong("request", f"{name!r} is not known.", "")
    disk.write_text(folder / "control" / name, text)
    return 0


def _forget(folder: Path) -> int:
    """Remove a job's folder, and what links to it among Ray's logs."""
    known = disk.read_json(folder / _LINK)
    if isinstance(known, dict) and folder.parent == runs.home() / "jobs":
        link = Path(str(known.get("link")))
        if link.is_symlink() and link.name == link_name(folder.name):
            link.unlink()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def main(words: list[str]) -> int:
    # all processes of a job are told to end: the trainer, which saves its state, is waited for
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        match words:
            case ["train", folder]:
                return train(Path(folder))
            case ["unpack", name]:
                return _unpack(name)
            case ["ask", folder, name, text]:
                return _ask(Path(folder), name, text)
            case ["forget", folder]:
                return _forget(Path(folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
