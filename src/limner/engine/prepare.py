"""From a run folder to a :class:`Training` ready for its loop: model, caches, adapter, in phases that free what is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from limner import disk, garbage, runs
from limner.adapters import adapter as adapters
from limner.adapters.adapter import Adapter
from limner.adapters.embedding import remarks
from limner.config import Config, defaults
from limner.config.launch import require_shares
from limner.config.prompts import Prompt
from limner.data import archives, held_out, scan, tags
from limner.data.cache import Cache
from limner.data.classes import num_missing, scan_classes
from limner.data.dataset import Dataset, assemble
from limner.engine import beginning, compiled, fit, loading, paint, shards, starting
from limner.engine.beginning import Beginning
from limner.engine.classes import paint_class_pictures
from limner.engine.facts import metadata_facts, plan, reckoned
from limner.engine.fetching import find_base, keep_of
from limner.engine.journal import Journal
from limner.engine.live import prompts_of
from limner.engine.runtime import Runtime
from limner.engine.samples import Progress, Samples
from limner.engine.training import Training
from limner.engine.usable import sound_pictures, usable_pictures
from limner.engine.validation import validation_samples
from limner.errors import StopRequested, wrong
from limner.formats.suited import require_suited
from limner.models import family as families
from limner.models import prepacked
from limner.models.family import Family
from limner.models.given_back import give_back, give_holes_back
from limner.models.weights import PRECISIONS, kept_in
from limner.runs import Phase, Run

_MOST_COUNTED = 10_000
"""Captions whose tokens are counted before the start; of more, evenly chosen ones: for a million it would take minutes."""


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


def prepare(
    run: Run,
    config: Config,
    runtime: Runtime,
    journal: Journal,
    stop_requested: Callable[[], bool],
    begun: Beginning | None = None,
) -> Training:
    """Load, encode, attach; afterwards only what the loop needs is in memory. Some of it may be `begun`."""
    journal.say(status="running", phase="loading")
    if runtime.any(stop_requested() or run.is_asked_to_stop()):
        raise StopRequested
    require_shares(config, runtime.world)
    _require_alike(config, runtime)
    with journal.waiting_for("fetching"):
        base = find_base(config)
    folder = config.memory.cache_path or runs.home() / "cache"
    cache = Cache(folder, verify=config.memory.verify, sign=lambda: journal.sign(journal.state.phase))
    earlier, begun = begun, beginning.gone_on_with(begun, base, config, runtime.precision)
    if begun is not earlier:
        give_holes_back()  # what was read in vain
    beside = begun.beside(kept_in(denoiser_dtype(config, runtime))) if begun is not None else nullcontext()
    ahead = begun.ahead if begun is not None else None
    with beside, garbage.uncollected():  # its libraries take seconds, on one core
        family = families.make(base, keep_of(config), ahead)

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
    _require_same_pictures(dataset, runtime)
    settings = scan.settings_of(config.data, dataset.pictures)
    fitted = fit.choose(run, config, family, dataset, defaults.caches_text(config, settings), runtime, journal)
    if fitted is not config:
        config, family = fitted, families.make(base, keep_of(fitted), ahead)
    samples = Samples(config, dataset, family, runtime, cache)
    validation = validation_samples(samples, held)
    prompts = prompts_of(config, run, dataset, base)
    require_suited(prompts, base)  # asked again: before the start the model may not have been here
    rate = defaults.learning_rate(config, base.is_pocket)
    if journal.is_main:
        planned = plan(dataset, base, rate, runtime) | reckoned(config, run, base, dataset, runtime, samples.caches_text)
        disk.write_json(run.path / "plan.json", planned)

    encoded = _encode([samples, *([validation] if validation else [])], prompts, journal, watched("caching"))
    journal.say(phase="loading", steps=dataset.total_steps)
    adapter = _load(config, run, family, samples, runtime)
    if ahead is not None:
        ahead.forget()
    _warn_of_words(config, dataset, family, journal)
    if config.launch.shard == "full" and runtime.world > 1:
        shards.shard(family, runtime)
        runtime = samples.runtime = replace(runtime, is_sharded=True)
    give_back()  # what loading left behind
    if is_prepacked(config, runtime.device):
        prepacked.pack(family.denoiser)  # now: whatever is trained is marked, and what is merged is merged
    facts = metadata_facts(config, dataset, family, cache, rate, runtime) if runtime.is_main else {}
    return Training(
        config, run, runtime, journal, family, adapter, dataset, samples, rate, facts, prompts, encoded, stop_requested,
        validation,
    )  # fmt: skip


def denoiser_dtype(config: Config, runtime: Runtime) -> torch.dtype:
    """What the denoiser is loaded in."""
    return PRECISIONS[defaults.denoiser_precision(config, runtime.precision)]


def _load(config: Config, run: Run, family: Family, samples: Samples, runtime: Runtime) -> Adapter:
    """Bring what the loop computes into memory, with the adapter attached."""
    dtype = denoiser_dtype(config, runtime)
    loading.load(family, "denoiser", dtype, runtime.device, config.model)
    if samples.trains_text or not samples.caches_text:
        loading.load(family, "text", dtype, runtime.device, config.model)
    if not config.memory.cache_latents:
        family.load("vae", family.keep.vae_dtype, runtime.device)
    adapter = adapters.make(config.adapter, config.embedding)
    adapter.attach(family, config.train.seed)
    starting.go_on(adapter, family, config.adapter, run)
    if config.memory.checkpointing:
        family.enable_checkpointing(text=samples.trains_text)
    if config.speed.compile != "off":
        compiled.compile_blocks(family, config.speed, samples.dataset)
    return adapter


def _require_same_pictures(dataset: Dataset, runtime: Runtime) -> None:
    """Raises UserError if the machines would show each other's steps otherwise."""
    if runtime.world > 1 and len(set(runtime.shares(dataset.outline()))) > 1:
        said = "the machines see other pictures or captions."
        raise wrong("data.path", said, "Give each of them the same files.")


def is_prepacked(config: Config, device: torch.device) -> bool:
    """Whether frozen layers are laid out for the CPU's kernels; not where blocks are compiled or swapped.

    Nor of a model that is itself trained: a packed layer's output has its channels last, and torch's group norm on a CPU breaks
    down where such an input needs no gradient while its own weights do (native_group_norm_backward, torch 2.13).
    """
    stays = config.adapter.trains_base or config.speed.compile != "off" or config.memory.swap_blocks
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
