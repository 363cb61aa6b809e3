"""A folder as a zip that is written while it is sent: nothing is held in memory or put on the disk."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

_CHUNK_BYTES = 1 << 20


class _Outgoing:
    """What the zip writer takes for a file that cannot be read or wound back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, content: bytes) -> int:
        self._parts.append(bytes(content))
        return len(content)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        out = b"".join(self._parts)
        self._parts.clear()
        return out


def zipped(folder: Path) -> Iterator[bytes]:
    """The files in `folder`, stored as they are (weights don't shrink), under the folder's name. Links are left out."""
    out = _Outgoing()
    with zipfile.ZipFile(cast(IO[bytes], out), "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
            entry = zipfile.ZipInfo.from_file(
                path, f"{folder.name}/{path.relative_to(folder).as_posix()}", strict_timestamps=False
            )
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)
                    yield out.take()
            yield out.take()
    yield out.take()
