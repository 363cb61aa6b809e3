"""The denoiser's files, read into the system's memory while a run is still being started: from a disk, gigabytes take seconds,
and so does all that has to be done before the trainer asks for them.
"""

from __future__ import annotations

import os
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
            size = path.stat().st_size
            with path.open("rb", buffering=0) as file:
                for place in range(0, min(size, left), _PIECE_BYTES):
                    last = min(place + _PIECE_BYTES, size) - 1  # not the first: the header has been read
                    if not _is_there(file.fileno(), last):
                        file.seek(place)
                        file.readinto(piece)
            left -= size


def _is_there(file: int, place: int) -> bool:
    """Whether a byte is known to be in memory."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return bool(os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT))
    except OSError:  # it would have to wait, or this file system cannot tell
        return False
