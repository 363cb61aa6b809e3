"""How much a run writes, and where: asked before the start, and told when a disk is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from limner import disk, runs
from limner.config import Config
from limner.config.defaults import caches_text
from limner.data.looks import num_versions
from limner.data.scan import Picture, settings_of
from limner.errors import UserError, wrong
from limner.formats.base import Base
from limner.formats.footprint import BYTES, num_stored, num_trained
from limner.runs import Run

_BESIDE_MIB = 50
"""Events, logs and painted pictures of a run."""
_TOKENIZERS_MIB = 8
"""In a model's folder, beside the weights."""
_NUM_STATES = 3  # two are kept while a third is written


@dataclass(frozen=True)
class Needs:
    """In MiB, rounded up."""

    caches: int
    state: int
    """One training state."""
    checkpoint: int
    """One finished file."""


def needs(config: Config, base: Base, pictures: Sequence[Picture]) -> Needs:
    """About how much a run writes; of a LoRA at most so much. Raises UserError if a file of the model cannot be read."""
    settings = [p.settings(config.data) for p in pictures]
    side = (config.data.resolution or base.resolution_px) // base.latent_factor
    text = 512 * 4096 if base.prediction == "flow" else (75 * config.model.text_chunks + 2) * 2048
    variants = sum((1 + d.flip) * num_versions(d) for d in settings) if config.memory.cache_latents else 0
    captions = len(pictures) if caches_text(config, settings_of(config.data, pictures)) else 0
    trained, width = num_trained(config, base), BYTES[config.output.dtype]
    makes_folder = config.adapter.trains_base and config.output.layout == "diffusers"
    return Needs(
        _mib(4 * (variants * 2 * base.latent_channels * side**2 + captions * text)),
        _mib(12 * trained),  # weights and two moments in float32
        _mib((num_stored(base) if config.adapter.trains_base else trained) * width) + (_TOKENIZERS_MIB if makes_folder else 0),
    )


def by_place(config: Config, needed: Needs, num_steps: int, num_epochs: int) -> dict[Path, int]:
    """MiB to be written, by folder: caches, run, finished files; those on the way that are kept are among these."""
    output, home = config.output, runs.home()
    on_the_way = num_steps // output.save_every_steps if output.save_every_steps else 0
    on_the_way += num_epochs // output.save_every_epochs if output.save_every_epochs else 0
    kept = 1 + (on_the_way if output.keep_last is None else min(on_the_way, output.keep_last))
    places = {home: _NUM_STATES * needed.state + _BESIDE_MIB}
    for folder, mib in ((config.memory.cache_path, needed.caches), (output.path, kept * needed.checkpoint)):
        places[folder or home] = places.get(folder or home, 0) + mib
    return places


def on_disks(places: dict[Path, int]) -> dict[Path, int]:
    """The same by disk, each called by the first of its folders."""
    first: dict[int, Path] = {}
    out: dict[Path, int] = {}
    for folder, mib in places.items():
        name = first.setdefault(disk.disk_of(folder), folder)
        out[name] = out.get(name, 0) + mib
    return out


def shortage(run: Run, config: Config, error: OSError) -> UserError:
    """The words for a disk that became full under a run: where, how much is free there, and how much it takes to go on."""
    where = Path(str(error.filename))
    planned = run.plan().get("space")
    needed = Needs(**planned) if isinstance(planned, dict) and planned.keys() == asdict(Needs(0, 0, 0)).keys() else None
    newest, mib, what = _newest_state(run), 1, "its events"
    if needed is not None and (config.memory.cache_path or runs.home() / "cache") in where.parents:
        mib, what = needed.caches, "what it caches"
    elif needed is not None:
        mib, what = max(needed.state, newest) + needed.checkpoint, "a training state and a finished file"
    free = disk.free_bytes(where) >> 20
    said = f"cannot be written ({error.strerror}): {free} MiB are free there, about {mib} MiB are needed for {what}."
    whole = "; its last training state is whole." if newest else "."  # one that has hardly begun has none
    return wrong(str(where), said, f"Free some space and resume the run{whole}")


def _newest_state(run: Run) -> int:
    """MiB of the newest training state, which the next will be like."""
    newest = max(run.states.glob("step-*"), default=None)
    return 0 if newest is None else _mib(sum(f.stat().st_size for f in newest.iterdir()))


def _mib(count: float) -> int:
    return -(-int(count) // 2**20)
