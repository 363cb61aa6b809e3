"""From a run folder to a :class:`Training` ready for its loop: model, caches, adapter, in phases that free what is done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from limner import disk, runs
from limner.adapters import adapter as adapters
from limner.adapters.embedding import remarks
from limner.config import Config, defaults
from limner.config.launch import require_shares
from limner.config.model import merges
from limner.config.prompts import Prompt
from limner.data import archives, held_out, scan, tags
from limner.data.cache import Cache
from limner.data.classes import base_name, num_missing, scan_classes
from limner.data.dataset import Dataset, assemble
from limner.data.decode import decode
from limner.diffusion.timesteps import shift_of, timesteps_of
from limner.engine import compiled, loading, paint, shards, starting
from limner.engine.classes import paint_class_pictures
from limner.engine.journal import Journal
from limner.engine.live import prompts_of
from limner.engine.runtime import Runtime
from limner.engine.samples import Progress, Samples
from limner.engine.train import Training
from limner.engine.validation import validation_samples
from limner.errors import StopRequested, UserError, wrong
from limner.formats.base import T5_SOURCE, T5_TOKENIZER, Base, base_of, denoiser_files
from limner.formats.known import FAMILIES as KNOWN
from limner.formats.metadata import tag_frequency
from limner.formats.suited import require_suited, unsuited
from limner.models import family as families
from limner.models import prepacked
from limner.models.family import Family, Keep
from limner.models.weights import PRECISIONS
from limner.runs import Phase, Run

_MOST_COUNTED = 10_000
"""Captions whose tokens are counted before the start; of more, evenly chosen ones: for a million it would take minutes."""


def find_base(config: Config) -> Base:
    """The base model, fetched from the Hugging Face hub first if it is not here."""
    section = config.model
    base = base_of(section)
    if base.path is None:
        fetch(section.base, section.revision)
        base = base_of(section)
    if base.t5 and base.t5_tokenizer is None:
        base = replace(base, t5_tokenizer=fetch_t5_tokenizer())
    # what was seen before the start may have been a model that was not here yet
    if errors := [f for f in unsuited(config, base) if f.severity == "error"]:
        raise UserError(errors)
    if config.objective.prediction is not None:
        base = replace(base, prediction=config.objective.prediction)
    if config.objective.zero_terminal_snr:
        base = replace(base, has_zero_snr=True)
    if KNOWN[base.family].skips_layers:
        base = replace(base, clip_skip=section.clip_skip or 1)
    if base.prediction == "flow":
        return base
    return replace(base, text_chunks=section.text_chunks, weighted_captions=config.data.weighted_captions)


def _require_alike(config: Config, runtime: Runtime) -> None:
    """Raises UserError if the machines were given configurations that differ in what decides the numbers."""
    sections = {
        name: getattr(config, name).model_dump_json(exclude={"start"})
        for name in ("train", "optimizer", "objective", "adapter")
    }
    told = runtime.shares(sections | {"launch.num_processes": str(config.launch.num_processes)})
    for name, value in told[0].items():
        if any(other[name] != value for other in told):
            raise wrong(name, "it is not the same on all machines.", "Start the same configuration on each of them.")


def keep_of(config: Config) -> Keep:
    """How the parts are kept in memory."""
    memory = config.memory
    return Keep(
        memory.quantize, memory.swap_blocks, memory.checkpoint_every, PRECISIONS[memory.vae_dtype], memory.vae_tiling,
        config.speed.channels_last,
    )  # fmt: skip


def fetch(name: str, revision: str | None) -> None:
    """Download a diffusers model: configurations and safetensors only, nothing that could hold code."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["model_index.json", "*/*.json", "tokenizer*/*"]
    patterns += [f"{part}/*.safetensors" for part in {p for known in KNOWN.values() for p in known.parts}]
    try:
        snapshot_download(name, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        remedy = "Check the name and the network, or give a local folder or .safetensors file."
        raise wrong("model.base", f"{name} cannot be fetched from the Hugging Face hub: {reason}", remedy) from error


def fetch_t5_tokenizer() -> Path:
    """Download T5's tokenizer; returns its folder. Raises UserError that says which file to put where."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(T5_SOURCE, "tokenizer.json")).parent
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        remedy = f"Get {T5_TOKENIZER}, and put it beside the T5 file, or give its path here."
        said = f"T5's tokenizer is not on this machine and cannot be fetched from the Hugging Face hub: {reason}"
        raise wrong("model.t5_tokenizer", said, remedy) from error


def usable_pictures(config: Config, cache: Cache, journal: Journal) -> list[scan.Picture]:
    """The pictures of the data set. Raises UserError on broken ones unless they are to be skipped.

    To be skipped they must be known before the order is laid down, so then each is decoded once (and never again).
    """
    pictures = sound_pictures(config, scan.scan(config.data), cache, journal)
    if not pictures:
        raise wrong("data.path", f"{config.data.path} holds no usable picture.", "Put .png, .jpg, .webp or .bmp files there.")
    return pictures


def sound_pictures(config: Config, found: scan.Scan, cache: Cache, journal: Journal) -> list[scan.Picture]:
    """What was found, without the broken ones if they are to be skipped. Raises UserError on them if not."""
    if found.broken and not config.data.skip_broken:
        raise UserError(found.broken[:20])
    pictures = found.pictures
    if config.data.skip_broken:
        sound = list(cache.are_sound((p.path for p in found.pictures), decodes))
        pictures = [p for p, opens in zip(found.pictures, sound, strict=True) if opens]
        unsound = {p.path for p, opens in zip(found.pictures, sound, strict=True) if not opens}
        for name in sorted({*unsound, *(f.field for f in found.broken)})[:100]:
            journal.event("warning", message=f"skipped {name}, which does not open")
    return pictures


def decodes(path: str) -> bool:
    """Whether a picture opens."""
    try:
        decode(path)
    except UserError:
        return False
    return True


def prepare(run: Run, config: Config, runtime: Runtime, journal: Journal, stop_requested: Callable[[], bool]) -> Training:
    """Load, encode, attach; afterwards only what the loop needs is in memory."""
    journal.say(status="running", phase="loading")
    require_shares(config, runtime.world)
    _require_alike(config, runtime)
    base = find_base(config)
    cache = Cache(config.memory.cache_path or runs.home() / "cache", verify=config.memory.verify)
    family = families.make(base, keep_of(config))

    def watched(phase: Phase) -> Progress:
        return _watched(run, runtime, journal, stop_requested, phase)

    archives.unpack_all(config, watched("unpacking"))
    own, held = held_out.parted(config, usable_pictures(config, cache, journal))
    held += sound_pictures(config, held_out.scan_validation(config), cache, journal)

    def class_pictures() -> list[scan.Picture]:
        return sound_pictures(config, scan_classes(config.data), cache, journal)

    of_class = class_pictures()
    if missing := num_missing(config.data, len(of_class)):
        paint_class_pictures(config, family, runtime, missing, watched("painting class pictures"))
        of_class = class_pictures()
    dataset = assemble(config, base, [*own, *of_class])
    if len(set(runtime.shares(dataset.outline()))) > 1:
        said = "the machines see other pictures or captions."
        raise wrong("data.path", said, "Give each of them the same files.")
    samples = Samples(config, dataset, family, runtime, cache)
    validation = validation_samples(samples, held)
    prompts = prompts_of(config, run, dataset, base)
    require_suited(prompts, base)  # asked again: before the start the model may not have been here
    rate = defaults.learning_rate(config, base.is_pocket)
    if journal.is_main:
        disk.write_json(run.path / "plan.json", plan(dataset, base, rate, runtime))

    encoded = _encode([samples, *([validation] if validation else [])], prompts, journal, watched("caching"))
    journal.say(phase="loading", steps=dataset.total_steps)
    dtype = torch.float32 if config.adapter.trains_in_fp32 else runtime.dtype
    loading.load(family, "denoiser", dtype, runtime.device, config.model)
    if samples.trains_text or not samples.caches_text:
        loading.load(family, "text", dtype, runtime.device, config.model)
    if not config.memory.cache_latents:
        family.load("vae", family.keep.vae_dtype, runtime.device)
    adapter = adapters.make(config.adapter, config.embedding)
    adapter.attach(family, config.train.seed)
    starting.go_on(adapter, family, config.adapter, run)
    if is_prepacked(config, runtime.device):
        prepacked.pack(family.denoiser)  # now: whatever is trained is marked, and what is merged is merged
    _warn_of_words(config, dataset, family, journal)
    if config.memory.checkpointing:
        family.enable_checkpointing(text=samples.trains_text)
    if config.speed.compile != "off":
        compiled.compile_blocks(family, config.speed, dataset)
    if config.launch.shard == "full" and runtime.world > 1:
        shards.shard(family, runtime)
        runtime = samples.runtime = replace(runtime, is_sharded=True)
    facts = metadata_facts(config, dataset, family, cache, rate, runtime) if runtime.is_main else {}
    return Training(
        config, run, runtime, journal, family, adapter, dataset, samples, rate, facts, prompts, encoded, stop_requested,
        validation,
    )  # fmt: skip


def is_prepacked(config: Config, device: torch.device) -> bool:
    """Whether frozen layers are laid out for the CPU's kernels; what is compiled, swapped or shared out must stay as it is."""
    stays = config.speed.compile != "off" or config.memory.swap_blocks or config.launch.shard != "off"
    return config.speed.prepack and device.type == "cpu" and not stays


def _warn_of_words(config: Config, dataset: Dataset, family: Family, journal: Journal) -> None:
    """What only a tokenizer can tell of captions and of the word to be learnt, which takes its places in them."""
    for said in remarks(family, config.embedding) if config.embedding.token is not None else ():
        journal.event("warning", message=said)
    count = len(dataset.pictures)
    some = dataset.pictures[:: -(-count // _MOST_COUNTED) or 1]
    is_too_long = lru_cache(_MOST_COUNTED)(family.is_too_long)
    too_long = [p for p in some if is_too_long(tags.plain(p.caption, p.settings(config.data)))]
    if too_long:
        counted = f"{len(too_long)}" if len(some) == count else f"{len(too_long)} of {len(some)}"
        said = f"{counted} captions are too long and cut off, the first is that of {Path(too_long[0].path).name}"
        journal.event("warning", message=said)


def _watched(
    run: Run, runtime: Runtime, journal: Journal, stop_requested: Callable[[], bool], phase: Phase = "caching"
) -> Progress:
    """Progress of a phase before the loop; raises StopRequested if somebody asked for it meanwhile. What is done stays."""

    def progress(done: int, total: int) -> None:
        journal.say(phase=phase, progress=(done, total))
        if phase == "unpacking" and runtime.world > 1:
            return  # one of them unpacks, and only together can they stop
        if runtime.any(stop_requested() or run.is_asked_to_stop()):
            raise StopRequested

    return progress


def _encode(sets: Sequence[Samples], prompts: list[Prompt], journal: Journal, progress: Progress) -> list:
    """Fill the caches, one encoder in memory at a time; returns the encoded prompts."""
    samples = sets[0]
    family, runtime = samples.family, samples.runtime
    latents, texts = (sum(counts) for counts in zip(*(s.missing() for s in sets), strict=True))
    # asked together: a process that starts late finds what another has written meanwhile, and would go its own way
    fills_latents, fills_texts = runtime.any(bool(latents)), runtime.any(bool(texts))
    encoded: list = []
    if fills_texts or (prompts and not samples.trains_text):
        progress(0, texts)
        loading.load(family, "text", runtime.dtype, runtime.device, samples.config.model)
        for each in sets:
            each.fill_texts(progress)
        if not samples.trains_text:
            encoded = paint.encode_prompts(family, runtime, prompts)
        family.free("text")
    if fills_latents:
        progress(0, latents)
        family.load("vae", family.keep.vae_dtype, runtime.device)
        for each in sets:
            each.fill_latents(progress)
        family.free("vae")
    if latents or texts:
        journal.event("cached", latents=latents, captions=texts)
    return encoded


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
