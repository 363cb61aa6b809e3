"""A model's files, read into the system's memory while a run is still being started: from a disk, gigabytes take seconds, and
so does all that has to be done before the trainer asks for them.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Thread

import psutil

from limner.config.model import Model
from limner.errors import UserError
from limner.formats.base import base_of, denoiser_files

_PIECE_BYTES = 8 << 20


def read_early(section: Model) -> Thread:
    """Read the files in a thread, up to half of the memory that is free. What is wrong with them is for others to say."""
    reader = Thread(target=_read, args=(section, psutil.virtual_memory().available // 2), daemon=True)
    reader.start()
    return reader


def _read(section: Model, left: int) -> None:
    piece = memoryview(bytearray(_PIECE_BYTES))
    with suppress(OSError, UserError):
        base = base_of(section)
        for path in dict.fromkeys([*denoiser_files(base), *base.others.values()]) if base.path is not None else ():
            with path.open("rb", buffering=0) as file:
                while left > 0 and (count := file.readinto(piece)):
                    left -= count
