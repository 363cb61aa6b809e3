"""Why a run ended, in words: exceptions of the system and of libraries that a user can do something about."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from limner import disk, runs, space
from limner.config import Config
from limner.engine.fit import is_out_of_memory
from limner.errors import UserError, printable, wrong
from limner.runs import Phase, Run

_REFUSED = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ENXIO, errno.ENODEV,
    errno.ESTALE, errno.ENAMETOOLONG, errno.ELOOP,
})  # fmt: skip
_TO_CHANGE = {
    "caching": ("memory.vae_tiling", "Set memory.vae_tiling = true or a smaller data.resolution, or close other programs."),
    "loading": ("memory.quantize", 'Set memory.quantize = "fp8", choose a smaller model, or close other programs.'),
    "painting class pictures": ("data.resolution", "Set memory.vae_tiling = true or a smaller data.resolution."),
    "saving": ("output.dtype", 'Set output.dtype = "fp16", or close other programs.'),
}
"""By the phase in which memory ran out: the option that counts most there, and what can be done."""
_ELSE = ("train.batch_size", 'Set memory.fit = "auto", memory.checkpointing = true, or a smaller train.batch_size.')


def in_words(error: Exception, run: Run, phase: Phase) -> UserError | None:
    """What a user can do about it; None if it is a fault of ours, or nobody knows."""
    if is_out_of_memory(error):
        field, remedy = _TO_CHANGE.get(phase, _ELSE)
        said = f"memory ran out while {phase or 'starting'} ({printable(f'{type(error).__name__}: {error}', 150)})."
        return wrong(field, said, remedy)
    failed = disk.as_os_error(error, run.path)
    if failed is None:
        return None
    try:
        config = run.config()
    except UserError:  # it was damaged meanwhile, or is gone
        config = Config()
    if failed.errno in disk.FULL:
        return space.shortage(run, config, failed)
    where = Path(os.fsdecode(failed.filename)) if isinstance(failed.filename, str | bytes) else None
    if where is None or failed.errno not in _REFUSED or not any(where.is_relative_to(f) for f in _folders(run, config)):
        return None
    said = f"cannot be read or written any more ({failed.strerror})."
    return wrong(str(where), said, "Bring its folder or disk back, and resume the run; its last training state is whole.")


def _folders(run: Run, config: Config) -> list[Path]:
    """Whose files are a user's to look after."""
    given = (config.output.path, config.memory.cache_path, config.data.path, config.model.base)
    return [run.path, runs.home(), *(Path(folder) for folder in given if folder)]
