"""Where Gradio keeps what is dropped on its components; what lies there for a day goes."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

AGE_SECONDS = 24 * 3600.0
PAUSE_SECONDS = 3600.0


def sweep(folder: Path, *, now: float) -> int:
    """Remove files older than a day and the folders they leave empty; returns how many files went. Follows no links."""
    gone = 0
    for where, folders, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(where, name)
            try:
                if now - path.lstat().st_mtime > AGE_SECONDS:
                    path.unlink()
                    gone += 1
            except OSError:
                continue  # another server was faster, or somebody has it open: next time
        for name in folders:
            try:
                if now - Path(where, name).lstat().st_mtime > AGE_SECONDS:
                    os.rmdir(Path(where, name))
            except OSError:
                continue  # not empty
    return gone


async def keep_swept(folder: Path) -> None:
    """Sweep now and every hour."""
    while True:
        await asyncio.to_thread(sweep, folder, now=time.time())
        await asyncio.sleep(PAUSE_SECONDS)
