"""What a run tells of itself: its plan, and what its files say beside the configuration."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from limner import estimate, fitting, runs, space
from limner.config import Config, defaults
from limner.config.model import merges
from limner.data import scan
from limner.data.cache import Cache
from limner.data.classes import base_name
from limner.data.dataset import Dataset
from limner.diffusion.timesteps import shift_of, timesteps_of
from limner.engine.runtime import Runtime
from limner.errors import UserError
from limner.formats.base import Base, denoiser_files
from limner.formats.metadata import tag_frequency
from limner.models.family import Family
from limner.runs import Run


def plan(dataset: Dataset, base: Base, rate: float, runtime: Runtime) -> dict[str, Any]:
    """What was derived before the start, for `plan.json`."""
    return {
        "family": base.family,
        "base": str(base.path),
        "prediction": base.prediction,
        "resolution": dataset.buckets.resolution,
        "buckets": {f"{w}x{h}": n for (w, h), n in sorted(dataset.bucket_counts().items())},
        "num_pictures": dataset.num_pictures,
        "num_class_pictures": len({p.path for p in dataset.pictures if p.is_class}),
        "num_batches_per_epoch": dataset.order.num_micro_batches,
        "total_steps": dataset.total_steps,
        "lr": rate,
        "precision": runtime.precision,
        "device": str(runtime.device),
        "num_processes": runtime.world,
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
    }


def reckoned(config: Config, run: Run, base: Base, dataset: Dataset, runtime: Runtime, caches_text: bool) -> dict[str, Any]:
    """What the run was reckoned to take, as far as that was asked before, the way that memory.fit chose, and MiB on disk."""
    try:
        asked = estimate.question(dataset, base, runtime.device.type, runtime.precision, caches_text)
        found = estimate.known(runs.home(), config, asked)
    except UserError:
        found = None
    needed = asdict(space.needs(config, base, dataset.pictures))
    return {"estimate": None if found is None else asdict(found), "fit": fitting.recorded(run), "space": needed}


def _folder(picture: scan.Picture) -> str:
    """The name of the folder that a picture lies in."""
    return os.path.basename(os.path.dirname(picture.path))


def _folders(pictures: Sequence[scan.Picture]) -> dict[str, dict[str, int]]:
    """Pictures by folder, as kohya's metadata list them."""
    folders: dict[str, dict[str, int]] = {}
    for picture in pictures:
        entry = folders.setdefault(_folder(picture), {"n_repeats": picture.repeats, "img_count": 0})
        entry["img_count"] += 1
    return folders


def metadata_facts(
    config: Config, dataset: Dataset, family: Family, cache: Cache, rate: float, runtime: Runtime
) -> dict[str, Any]:
    """What the files' metadata tell beside the config."""
    pictures = list({p.path: p for p in dataset.pictures}.values())  # one may be shown at several resolutions
    own = [p for p in pictures if not p.is_class]
    base = family.base
    assert base.path is not None
    weights = denoiser_files(base)[0]
    started = time.time()
    return {
        "session_id": int(started * 1000) % 2**32,
        "started_at": started,
        "family": base.family,
        "prediction": base.prediction,
        "has_zero_snr": base.has_zero_snr,
        "flow_shift": shift_of(timesteps_of(config.objective, family.process)),
        "takes_guidance": base.takes_guidance,
        "clip_skip": base.clip_skip,
        "text_chunks": base.text_chunks,
        "lr": rate,
        "text_encoder_lr": defaults.text_encoder_rate(config.optimizer, rate),
        "precision": runtime.precision,
        "resolution": dataset.buckets.resolution,
        "bucket_info": dataset.bucket_info(),
        "dataset_dirs": _folders(own),
        "class_dirs": _folders([p for p in pictures if p.is_class]),
        "num_class_pictures": len(dataset.order.class_items),
        "tag_frequency": tag_frequency((_folder(p), p.caption) for p in own),
        "num_shown_per_epoch": len(dataset.order.items),
        "num_batches_per_epoch": dataset.order.num_micro_batches,
        "num_epochs": dataset.num_epochs,
        "total_steps": dataset.total_steps,
        "model_name": base_name(config.model.base, base.path),
        "model_hash": cache.content_hash(weights),
        "merged": [f"{cache.content_hash(p)} {strength}" for p, strength in merges(config.model)],
    }
