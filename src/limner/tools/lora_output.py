"""A LoRA file as tools write it: whole or not at all, and with kohya's hashes of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from limner import disk
from limner.errors import printable, wrong
from limner.formats.metadata import add_hashes


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], field: str, *, hashed: bool = True) -> None:
    """Write it. The hashes are those of the file with the ss_ keys alone (sd-scripts' rule), so it is written twice.

    Raises UserError under `field` if the disk does not take it.
    """
    said, kohya = dict(metadata), {key: text for key, text in metadata.items() if key.startswith("ss_")}
    try:
        with disk.replacing(path) as temporary:
            if hashed:
                save_file(dict(tensors), temporary, kohya)
                said |= add_hashes(temporary)
            save_file(dict(tensors), temporary, said)
    except (OSError, SafetensorError) as error:  # the library has its own for a full disk, too
        reason = printable(getattr(error, "strerror", None) or error, 160)
        raise wrong(field, f"{path} cannot be written ({reason}).", "Make room, or choose another place.") from None
