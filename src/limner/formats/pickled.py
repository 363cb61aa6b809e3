"""What a pickled checkpoint (.ckpt, .pt, .pth, .bin) holds, without running anything of it or reading its tensors. No torch.

torch.save writes a zip of uncompressed files: `<name>/data.pkl`, the pickle that says which tensors there are, and the numbers
of each storage in `<name>/data/<key>`.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from limner.errors import UserError, printable, wrong
from limner.formats.header import Header, TensorInfo
from limner.formats.pickle_program import Forbidden, Program, Unusable

SAFER = "Use its .safetensors version."
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save began its files with before 1.6
_ORDER = b"little"
_MAX_DIRECTORY_BYTES = 1 << 23  # of the zip: room for about 80 000 tensors


@dataclass(frozen=True)
class Pickled:
    """What `torch.load` would give, as far as it matters."""

    tensors: dict[str, TensorInfo]
    level: str | None
    """The key under which the tensors are; None: they are on top."""
    beside: frozenset[str]
    """Names of classes and functions that the file names for other things than tensors; to be replaced by `Inert`."""


class _Bounded(io.BufferedReader):
    """A file that is never read in large pieces: zipfile takes a zip's directory into memory whole."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("more than is ever needed")
        return super().read(size)


def read_pickled(path: Path, field: str | None = None) -> Header:
    """The tensors that `path` holds. Raises UserError (under `field`) if it is anything but plain weights."""
    return Header(examine(path, field).tensors, {})


def examine(path: Path, field: str | None = None) -> Pickled:
    """`read_pickled`, and where in the file the tensors are."""
    field = field or str(path)

    def refused(why: str, remedy: str = SAFER) -> UserError:
        return wrong(field, f"{path.name} {why}.", remedy)

    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
            raise refused("cannot be read: it is no regular file", "Give the path of a file.")
        with _Bounded(io.FileIO(path)) as file:
            start = file.read(len(_LEGACY))
            if start == _LEGACY:
                raise refused("was saved by a PyTorch before 1.6, in a format that Limner does not open")
            if start[:1] == b"\x80":
                raise refused("is a bare pickle, which can run code when it is opened; Limner does not open it")
            if start[:4] != b"PK\x03\x04":
                raise refused("is not a checkpoint that PyTorch saved: it is no zip", "Download or copy it again.")
            code, sizes = _parts(file, path.stat().st_size)
        program = Program(code, sizes)
    except OSError as error:
        raise wrong(field, f"{path} cannot be read ({error.strerror}).", "Check the path and its permissions.") from None
    except Forbidden as name:
        raise refused(f"names {printable(name, 80)}, which weights have no need of: it can run code when opened") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OverflowError, struct.error):
        raise refused("is not a whole checkpoint: its zip is damaged or cut off", "Download or copy it again.") from None
    except Unusable as error:
        raise refused(f"cannot be used: {error}") from None
    level, tensors = _chosen(program.result)
    if not tensors:
        raise refused('holds no tensors, neither on top nor under "state_dict"', "Choose a checkpoint of a model.")
    return Pickled(tensors, level, frozenset(program.beside))


def _parts(file: io.BufferedReader, size: int) -> tuple[bytes, dict[str, int]]:
    """(data.pkl, bytes of each storage by key). Raises Unusable for what torch.save does not write."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        folder = members[0].filename.partition("/")[0] if members else ""
        names = {member.filename.removeprefix(f"{folder}/"): member for member in members}
        if "constants.pkl" in names or any(name.startswith("code/") for name in names):
            raise Unusable("it is a TorchScript program, not weights")
        _check(members, folder, size)
        if "data.pkl" not in names:
            raise Unusable("it is a zip without data.pkl, not a checkpoint that PyTorch saved")
        if names["data.pkl"].file_size > _MAX_DIRECTORY_BYTES:
            raise Unusable(f"its list of tensors has more than {_MAX_DIRECTORY_BYTES} bytes")
        order = names.get("byteorder")  # older files have none
        if order and (order.file_size != len(_ORDER) or archive.read(order) != _ORDER):
            raise Unusable("its numbers are not in the little-endian order of bytes")
        code = archive.read(names["data.pkl"])
    return code, {name.removeprefix("data/"): m.file_size for name, m in names.items() if name.startswith("data/")}


def _check(members: Iterable[zipfile.ZipInfo], folder: str, size: int) -> None:
    seen, left = set[str](), size
    for member in members:
        name = member.filename
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or member.file_size != member.compress_size:
            raise Unusable("its zip is compressed or encrypted, which PyTorch never does")
        if not name.startswith(f"{folder}/") or ".." in name.split("/") or "\\" in name or name in seen:
            raise Unusable(f"its zip holds {printable(repr(name), 60)}, where PyTorch never puts anything")
        left -= member.file_size
        if left < 0 or member.header_offset + member.file_size > size:
            raise zipfile.BadZipFile("longer than the file")
        seen.add(name)


def _chosen(result: object) -> tuple[str | None, dict[str, TensorInfo]]:
    """(where, which tensors): those under "state_dict", where there is one, else those on top."""
    below = result.get("state_dict") if isinstance(result, dict) else None
    level, state = ("state_dict", below) if isinstance(below, dict) else (None, result)
    if not isinstance(state, dict):
        return None, {}
    return level, {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, TensorInfo)}
