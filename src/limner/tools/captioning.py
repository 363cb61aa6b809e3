"""Captions for pictures by a model of transformers on this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from limner import disk
from limner.config.tools.captioning import Caption
from limner.errors import Finding, printable, wrong
from limner.tools import caption_models
from limner.tools.caption_loop import Captioner, behind, caption_all, preview, work_of
from limner.tools.caption_processes import Shared
from limner.tools.tool import Progress, Report

NAME = "caption"
KINDS = ("blip", "blip-2", "git", "florence2", "llava")
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_MAX_CONFIG_BYTES = 4 << 20


def look(section: Caption) -> Report:
    """How many pictures would be captioned."""
    _require_consistent(section)
    work, folder = work_of(section, NAME), _folder(section)
    if folder is None:
        said = f"{section.model} is not on this machine; it (some GB) would be fetched from the Hugging Face Hub."
        work.remarks.append(Finding("caption.model", said, severity="note"))
    else:
        kind_of(folder)
    return preview(work, NAME, section)


def run(section: Caption, progress: Progress) -> Report:
    """Caption them."""
    _require_consistent(section)
    work = work_of(section, NAME)
    folder = _folder(section) or caption_models.fetch(section.model, _PATTERNS, ["config.json"], "caption.model")
    kind = kind_of(folder)
    if not work.wanted:
        return preview(work, NAME, section)
    progress(0, len(work.wanted), "opening the model")
    opens, num_batches = partial(_opened, folder, kind, section), -(-len(work.wanted) // section.batch_size)
    captioner = opens(0) if section.processes == 1 else Shared(opens, min(section.processes, num_batches), section.batch_size)
    return caption_all(work, section, NAME, section.model, captioner, progress, behind(section.separator))


def _opened(folder: Path, kind: str, section: Caption, number: int) -> Captioner:
    """The model, opened in the process of that number."""
    from limner.tools import captioners

    return captioners.Captioner(folder, kind, section, number)


def _require_consistent(section: Caption) -> None:
    """Raises UserError for options that contradict each other."""
    if section.min_tokens > section.max_tokens:
        said = f"{section.min_tokens} is more than max_tokens, {section.max_tokens}."
        raise wrong("caption.min_tokens", said, "Lower it, or raise max_tokens.")
    if section.processes > 1 and ":" in section.device:
        said = f"{section.device} is one GPU, and {section.processes} processes are asked for."
        raise wrong("caption.device", said, "Write cuda, or leave caption.processes at 1.")


def kind_of(folder: Path) -> str:
    """Which of KINDS a model is. Raises UserError if it is none of them."""
    config = disk.read_json(folder / "config.json", _MAX_CONFIG_BYTES)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in KINDS:
        said = "holds no config.json of a model" if kind is None else f"is a model of the kind {printable(kind, 40)!r}"
        remedy = f"Captions are written by {', '.join(KINDS)}; for others use caption_by_server."
        raise wrong("caption.model", f"{folder} {said}.", remedy)
    return str(kind)


def _has_weights(folder: Path) -> bool:
    """Whether all the weights are there: one file, or all those that an index names."""
    index = disk.read_json(folder / "model.safetensors.index.json", _MAX_CONFIG_BYTES)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    names = {str(n) for n in shards.values()} if isinstance(shards, dict) else {"model.safetensors"}
    return all((folder / name).is_file() for name in names)


def _folder(section: Caption) -> Path | None:
    """The model's folder, None if it has to be fetched. Raises UserError for what is no folder."""
    place = caption_models.local(section.model, "caption.model")
    if place is None:
        folder = caption_models.cached(section.model, ["config.json"])
        return folder if folder is not None and _has_weights(folder) else None
    if not place.is_dir():
        raise wrong("caption.model", f"{place} is a file.", "Give the folder that holds config.json and the weights.")
    return place
