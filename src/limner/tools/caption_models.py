"""Where a captioning model lies: a path, or a name on the Hugging Face Hub, whose files are fetched or found in its cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from limner import runs
from limner.errors import UserError, printable, wrong

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def local(text: str, field: str) -> Path | None:
    """The file or folder that `text` names; None if it is a name on the Hub. Raises UserError if it is neither."""
    try:
        path = Path(text).expanduser()
        if text.strip() and path.exists():
            return path
    except (OSError, RuntimeError, ValueError):
        pass
    if not _HUB_NAME.fullmatch(text) or ".." in text:
        said = f"{printable(text, 120)!r} is no file or folder here, and no name on the Hugging Face Hub."
        raise wrong(field, said, "Give a folder, or a name such as owner/model.")
    return None


def cached(name: str, needed: Sequence[str]) -> Path | None:
    """The folder of the Hub's cache that holds all the files `needed`; None if it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(name, file) for file in needed]
    return Path(found[0]).parent if all(isinstance(f, str) for f in found) and isinstance(found[0], str) else None


def fetch(name: str, patterns: Sequence[str], needed: Sequence[str], field: str) -> Path:
    """A model's folder, fetched from the Hub if need be: only files of these patterns. Raises UserError that says which files
    to put where.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise _unreachable(name, patterns, field, str(error).strip().split("\n")[0]) from error
    if lacking := [file for file in needed if not (folder / file).is_file()]:
        raise _unreachable(name, patterns, field, f"it holds no {lacking[0]}")
    return folder


def _unreachable(name: str, patterns: Sequence[str], field: str, reason: str) -> UserError:
    place = runs.home() / "models" / name.rpartition("/")[2]
    files = ", ".join(patterns)
    remedy = f"Get {files} of huggingface.co/{name} on a machine that reaches it, put them into {place}, and give that folder."
    return wrong(field, f"{name} cannot be fetched from the Hugging Face Hub: {printable(reason, 120)}.", remedy)
