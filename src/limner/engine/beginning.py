"""What is done while libraries are imported, which takes seconds on one core: the base model's files are hashed, and then its
denoiser is read. No torch: that is the first of them.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import psutil

from limner import fitting, machine, runs
from limner.config import Config, defaults
from limner.data.contents import Contents
from limner.errors import UserError
from limner.formats.ahead import Ahead, Turn
from limner.formats.base import Base, base_of, denoiser_files, weight_files
from limner.formats.header import CODES
from limner.formats.known import FAMILIES
from limner.formats.single import is_pickled
from limner.runs import Run

_MOST_BYTES = 4 << 30


def begin(run: Run) -> Beginning | None:
    """Before torch is imported, begin what can be begun without. What is wrong is for others to say."""
    with suppress(Exception):  # all of it is asked for once more
        config = fitting.laid_over(run.config(), fitting.recorded(run) or {})
        base = base_of(config.model)
        here = machine.describe(runs.home())
        device = here.first(here.kind(config.launch.device))
        if base.path is not None and device is not None:
            return gone_on_with(None, base, config, defaults.precision(config, device.kind, device.bf16))
    return None


def gone_on_with(begun: Beginning | None, base: Base, config: Config, precision: str) -> Beginning | None:
    """What was begun, if this is what it was begun for; else begun now, but where nothing shall be taken on trust."""
    kept = defaults.denoiser_precision(config, precision)
    if begun is not None:
        if begun.about == _about(base, config, kept):
            return begun
        begun.drop()
    return None if config.memory.verify else Beginning(base, config, kept)


def _about(base: Base, config: Config, kept: str) -> tuple[object, ...]:
    """What it depends on."""
    files = [_facts(path) for path in denoiser_files(base)]
    return files, _hashed_files(base, config), kept, config.memory.quantize, config.memory.verify


def _facts(path: Path) -> tuple[object, ...]:
    with suppress(OSError):  # whoever reads it says so
        found = path.stat()
        return path, found.st_size, found.st_mtime_ns, found.st_ino
    return (path,)


class Beginning:
    """The model's files, hashed by a thread, and then the denoiser's weights, read by others."""

    def __init__(self, base: Base, config: Config, kept: str) -> None:
        """`kept` is the precision that the denoiser will be kept in."""
        self.about = _about(base, config, kept)
        self.ahead = _ahead(base, config)
        self._folder, self._hashed = config.memory.cache_path or runs.home() / "cache", _hashed_files(base, config)
        self._stored = CODES[kept]
        self._is_over, self._turn = Event(), Future[Turn]()
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()

    def drop(self) -> None:
        """It was begun in vain."""
        self._is_over.set()
        self._turn.set_result(lambda numbers, _: numbers)  # else the thread would wait for ever
        if self.ahead is not None:
            self.ahead.forget()

    @contextmanager
    def beside(self, turn: Turn) -> Iterator[None]:
        """Inside, while libraries are imported, it goes on, with what `turn` makes of numbers. Afterwards all is hashed."""
        self._turn.set_result(turn)
        try:
            yield
        finally:
            self._is_over.set()
        self._thread.join()  # not for who leaves meanwhile

    def _look(self) -> None:
        with suppress(OSError, UserError, sqlite3.Error), closing(Contents(self._folder)) as contents:
            list(contents.content_hashes(self._hashed))
        if self.ahead is not None:
            turn = None if self.ahead.stay(self._stored) else self._turn.result()  # which needs torch
            if not self._is_over.is_set():  # as many as there is time left for
                self.ahead.begin(turn)


def _ahead(base: Base, config: Config) -> Ahead | None:
    """The denoiser's weights; None where they are kept as something smaller, one by one, or are no safetensors."""
    files = denoiser_files(base)
    if config.memory.quantize != "off" or any(map(is_pickled, files)):
        return None
    known, processes = FAMILIES[base.family], int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = psutil.virtual_memory().available // (4 * processes)
    return Ahead(files, known.parts[known.denoiser], min(_MOST_BYTES, free))


def _hashed_files(base: Base, config: Config) -> list[Path]:
    """What a run knows a model by: the first of the denoiser's files, and all of what encodes and is not trained."""
    known, files = FAMILIES[base.family], denoiser_files(base)[:1]
    for part in known.parts:
        if part == known.denoiser or (config.trains_text and part.startswith("text_encoder")):
            continue
        if part in base.others:
            files.append(base.others[part])
        elif base.path is not None and base.layout == "folder":
            files += weight_files(base.path, part)
    return files
