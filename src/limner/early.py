"""The denoiser's files, read into the system's memory while a run is still being started: from a disk, gigabytes take seconds,
and so does all that has to be done before the trainer asks for them.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Thread

import psutil

from limner import runs
from limner.config import Config
from limner.config.model import Model
from limner.errors import UserError
from limner.formats.base import base_of, denoiser_files
from limner.runs import LIVE

_PIECE_BYTES = 8 << 20


def read_early(config: Config) -> Thread | None:
    """Read in a thread, up to half of the memory that is free, for a run that is started now: not one that trains elsewhere, or
    has to wait for another. What is wrong with the files is for others to say.
    """
    if config.launch.target != "local" or any(run.state().status in (*LIVE, "waiting") for run in runs.all_runs()):
        return None
    reader = Thread(target=_read, args=(config.model, psutil.virtual_memory().available // 2), daemon=True)
    reader.start()
    return reader


def _read(section: Model, left: int) -> None:
    piece = memoryview(bytearray(_PIECE_BYTES))
    with suppress(OSError, UserError):
        base = base_of(section)
        for path in denoiser_files(base) if base.path is not None else ():
            with path.open("rb", buffering=0) as file:
                while left > 0 and (count := file.readinto(piece)):
                    left -= count
