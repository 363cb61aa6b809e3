"""Parquet files as the `datasets` library of Hugging Face writes them: one row a picture, with its caption beside it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from limner.data.unpacking import CAPTIONS, MAX_PICTURE_BYTES, Unpacking, caption_in
from limner.errors import Finding, UserError, wrong

_PICTURES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "pixels")
_ROWS = 16
_KINDS = ((b"\x89PNG\r\n\x1a\n", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"BM", ".bmp"))


def lacking() -> Finding | None:
    """What has to be installed before such files can be read."""
    if find_spec("pyarrow") is not None:
        return None
    return Finding("data.path", "parquet files are read by pyarrow, which is not installed.", 'pip install "limner[parquet]"')


def unpack(path: Path, into: Unpacking, inside: str, progress: Callable[[int], None]) -> None:
    """Put the pictures and captions of a parquet file into the folder `inside`; `progress` is told bytes of the file.

    A picture is called after the file and its row's number. Raises UserError if the file is damaged, or has no column of
    pictures.
    """
    if (lack := lacking()) is not None:
        raise UserError([lack])
    size, stem = path.stat().st_size, path.stem
    for count, (total, picture, told) in enumerate(_rows(path, into.column)):
        name = f"{stem}-{count:08d}"
        content = picture.get("bytes") if isinstance(picture, dict) else picture
        kind = _kind(content) if content else None
        if content is None:
            into.leave_out("rows that hold no picture", name)
        elif kind is None:
            into.leave_out("rows whose picture is none that Limner opens", name)
        elif len(content) > MAX_PICTURE_BYTES:
            into.leave_out("too large", name)
        else:
            into.put(name + kind, len(content), io.BytesIO(content), inside)
            if (text := caption_in(told, into.column)) is not None:
                into.put_caption(name, text, inside)
        progress(size * (count + 1) // max(1, total))


def _kind(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    return next((ending for start, ending in _KINDS if content.startswith(start)), None)


def _rows(path: Path, column: str | None) -> Iterator[tuple[int, Any, dict[str, Any]]]:
    """(rows in all, a row's picture, its texts). At most one page of a column is in memory, of at most 2 GiB."""
    pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
    try:
        # buffer_size: read page by page, and not a group of rows at once
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            pictures, texts = _columns(path, file.schema_arrow, column)
            for batch in file.iter_batches(batch_size=_ROWS, columns=[pictures, *texts]):
                for row in batch.to_pylist():
                    yield file.metadata.num_rows, row.get(pictures), row
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise wrong("data.path", f"{path} is no parquet file, or a damaged one: {reason}.", "Get it anew.") from None


def _columns(path: Path, schema: Any, column: str | None) -> tuple[str, list[str]]:
    pa = import_module("pyarrow")

    def is_binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def holds_pictures(kind: Any) -> bool:
        return is_binary(kind) or (pa.types.is_struct(kind) and any(f.name == "bytes" and is_binary(f.type) for f in kind))

    names = ", ".join(schema.names[:20])
    found = [f.name for f in schema if holds_pictures(f.type)]
    pictures = next((n for n in _PICTURES if n in found), found[0] if len(found) == 1 else None)
    if pictures is None:
        said = f"{path} has no column of pictures (image: bytes); its columns are {names}."
        raise wrong("data.path", said, "Give a file in which the pictures themselves are.")
    if column is not None and column not in schema.names:
        raise wrong("data.caption_column", f"{path} has no column {column!r}; its columns are {names}.", "Choose one of them.")
    return pictures, [n for n in ([column] if column is not None else CAPTIONS) if n in schema.names]
