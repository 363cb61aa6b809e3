"""Tar files (WebDataset's shards, or any other): pictures and captions out of one, in one pass over it."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

from limner.data.unpacking import Unpacking
from limner.errors import wrong

_MAX_HEADER_BYTES = 1 << 20
_WITH_CONTENT = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class _Bounded(tarfile.TarInfo):
    """A header that is not believed: long names and the like are read into memory as long as they say they are."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Bounded:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in _WITH_CONTENT and found.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError("a header is damaged")
        return found


def unpack(path: Path, into: Unpacking, inside: str, progress: Callable[[int], None]) -> None:
    """Put the pictures and captions of a tar file into the folder `inside`. `progress` is told the bytes that were read.

    Links, devices and names that lead elsewhere are left out. Raises UserError if the file is no tar file, or a damaged one.
    """
    try:
        # "r:" takes no compressed one, so that nothing in it is larger than it
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Bounded) as tar:
            while (entry := tar.next()) is not None:
                tar.members = []  # it would keep them all  # pyright: ignore[reportAttributeAccessIssue]
                _take(tar, entry, into, inside)
                progress(tar.offset)
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):  # where a header is damaged, tarfile says that it is the end
                raise tarfile.ReadError(f"what lies at byte {tar.offset} is no header")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        reason = str(error).strip() or "it ends early"
        raise wrong("data.path", f"{path} is no tar file, or a damaged one: {reason}.", "Get it anew.") from None


def _take(tar: tarfile.TarFile, entry: tarfile.TarInfo, into: Unpacking, inside: str) -> None:
    if entry.isdir():
        return
    if entry.issym() or entry.islnk():
        into.leave_out("links", entry.name)
    elif not entry.isreg() or entry.issparse():
        into.leave_out("entries that are no plain files", entry.name)
    elif (content := tar.extractfile(entry)) is not None:
        into.put(entry.name, entry.size, content, inside)  # type: ignore[arg-type]
