"""Make a folder of pictures and caption files of tar or parquet files."""

from __future__ import annotations

import os
from dataclasses import replace

from limner.config import Data
from limner.config.tools.folders import Unpack
from limner.data import archives
from limner.errors import UserError, wrong
from limner.tools.tool import Progress, Report

_FIELDS = {"data.path": "unpack.source", "data.caption_column": "unpack.caption_column"}


def look(section: Unpack) -> Report:
    archive = _archive(section)
    return Report([section.output], [f"{len(archive.files)} files, about {_mib(archive)} MiB"])


def run(section: Unpack, progress: Progress) -> Report:
    archive = _archive(section)
    try:
        left_out = archive.unpack_into(section.output.absolute(), progress)
    except UserError as error:
        raise UserError([replace(f, field=_FIELDS.get(f.field, f.field)) for f in error.findings]) from None
    count = sum(len(names) for _, _, names in os.walk(section.output))
    return Report(
        [section.output], [f"{count} files in {section.output}"], [replace(f, field="unpack.source") for f in left_out]
    )


def _archive(section: Unpack) -> archives.Archive:
    try:
        found = archives.find(Data(path=section.source, caption_column=section.caption_column))
    except UserError as error:
        raise UserError([replace(f, field="unpack.source") for f in error.findings]) from None
    if found is None:
        said = f"{section.source} is no .tar or .parquet file, nor a folder of these."
        raise wrong("unpack.source", said, "Look at its spelling.")
    if os.path.lexists(section.output):
        raise wrong("unpack.output", f"{section.output} exists already.", "Choose another name.")
    return found


def _mib(archive: archives.Archive) -> int:
    return -(-archive.size // 2**20)
