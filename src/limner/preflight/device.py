"""The machine: its devices, and what they have room for."""

from __future__ import annotations

from collections.abc import Iterable

from limner import estimate, runs
from limner.config import Config, defaults
from limner.data.scan import settings_of
from limner.errors import Finding
from limner.formats.footprint import footprint
from limner.machine import Device, Machine
from limner.preflight.records import Records


def check_device(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del records
    if machine is None:
        return
    device = machine.kind(config.launch.device)
    facts = machine.first(device)
    if facts is None:
        said = f"this machine has no {device} that torch {machine.torch} (built for {machine.torch_build}) can use."
        if config.launch.trainer != "limner":
            said += " Whether sd-scripts' own torch can is not known."
            yield Finding("launch.device", said, "Remove the line, if it cannot either.", "warning")
            return
        yield Finding("launch.device", said, "Remove the line, or see `limner doctor`.")
        return
    if machine.gpu_without_torch and device == "cpu" and config.launch.device is None:
        said = f"there is a {machine.gpu_without_torch}, but torch {machine.torch} is a CPU build."
        yield Finding("launch.device", said, "Install a CUDA build of torch; the README says how.", "warning")
    precision = defaults.precision(config, device, facts.bf16)
    if precision == "fp16" and device == "cpu":
        yield Finding("train.precision", "fp16 is hundreds of times slower than fp32 on a CPU.", 'Use "bf16" or "fp32".')
    if precision == "bf16" and not facts.bf16:
        yield Finding("train.precision", f"{facts.name} has no bf16.", 'Use "fp16" or "fp32".')
    count = config.launch.num_processes // config.launch.num_machines
    if device == "cpu" and count > machine.cores:
        yield Finding("launch.num_processes", f"{count} processes on {machine.cores} cores.", f"Use at most {machine.cores}.")
    if device != "cpu" and count > machine.count(device):
        said = f"{count} processes, but {machine.count(device)} {device} device{'s' * (machine.count(device) != 1)}."
        yield Finding("launch.num_processes", said, f"Use at most {machine.count(device)}.")


def check_memory(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """What is stored otherwise, or elsewhere."""
    del records
    memory, adapter = config.memory, config.adapter
    if memory.quantize != "off":
        if adapter.trains_base:
            yield Finding("memory.quantize", "the model itself is trained, which needs whole numbers.", 'Set it to "off".')
        if config.model.merge:
            yield Finding("memory.quantize", "files cannot be merged into layers of few bits.", 'Set it to "off".')
    if memory.swap_blocks:
        if adapter.trains_base:
            yield Finding("memory.swap_blocks", "the model itself is trained; only frozen weights are swapped.", "Set it to 0.")
        if not memory.checkpointing or memory.checkpoint_every != 1:
            said = "without computing every layer again, all weights would stay on the device for the backward pass."
            yield Finding("memory.swap_blocks", said, "Set memory.checkpointing = true and memory.checkpoint_every = 1.")
        if machine is not None and machine.kind(config.launch.device) != "cuda":
            yield Finding("memory.swap_blocks", "there is no GPU to swap to.", "Set it to 0.")


def check_estimate(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """Whether the run fits into memory: as it was reckoned, or else whether its weights alone do."""
    base = records.base
    if base is None or base.path is None or machine is None or config.launch.trainer != "limner":
        return
    facts = machine.first(machine.kind(config.launch.device))
    if facts is None or not facts.memory_mib:
        return
    settings = settings_of(config.data, records.scan.pictures if records.scan is not None else ())
    precision = defaults.precision(config, facts.kind, facts.bf16)
    records.footprint = weighed = footprint(config, base, precision, settings)
    caches_text = defaults.caches_text(config, settings)
    if base.t5 and not caches_text:
        said = f"all text encoders stay in memory beside the denoiser, T5 among them: {weighed.text_mib} MiB."
        yield Finding(
            "memory.cache_text", said, "Leave the text encoders untrained, captions as they are, and cache_text on.", "warning"
        )
    if records.dataset is not None:
        records.question = estimate.question(records.dataset, base, facts.kind, precision, caches_text)
        records.estimate = estimate.known(runs.home(), config, records.question)
    if records.estimate is not None:
        yield from _too_much(config, facts, records.estimate)
    elif weighed.most_mib > facts.memory_mib and not config.memory.swap_blocks and config.memory.fit == "off":
        said = f"the weights alone take {weighed.most_mib} MiB, {facts.name} has {facts.memory_mib}."
        remedy = "Set memory.quantize (fp8 or nf4), memory.swap_blocks, or a lower adapter.rank."
        yield Finding("model.base", said, remedy, "warning")


def _too_much(config: Config, facts: Device, reckoned: estimate.Estimate) -> Iterable[Finding]:
    """What is said of a run that needs more than there is."""
    needed, worst = reckoned.peak_mib(facts.kind), reckoned.worst
    if needed <= facts.memory_mib or config.memory.fit == "auto":
        return
    said = f"the run will need about {needed} MiB while {_DOING[worst.name]}, {facts.name} has {facts.memory_mib}."
    remedy = 'Set memory.fit = "auto"; or memory.checkpointing, memory.micro_batch, memory.quantize or smaller pictures.'
    if worst.name in ("latents", "sampling"):
        remedy = "Set memory.vae_tiling, or take smaller pictures."
    yield Finding("memory.fit", said, remedy, "warning")


_DOING = {
    "captions": "encoding captions",
    "latents": "encoding pictures",
    "training": "training",
    "saving": "saving",
    "sampling": "painting",
}
