"""Several processes and machines: that they can be started, can meet, and that what is asked for can be shared out."""

from __future__ import annotations

from collections.abc import Iterable

from limner.config import Config
from limner.config.launch import extra_words, gpus, is_host
from limner.errors import Finding
from limner.launch import uses_torchrun
from limner.machine import Machine
from limner.preflight.records import Records

_SHARDED = ("adamw", "sgd", "lion")
"""Optimisers whose update of a number needs that number alone, and that take weights of which a process has a slice."""
_LAUNCHERS = {"--numa_binding": True, "--local_addr": True, "--enable_cpu_affinity": False}
"""Arguments that only torchrun has (True), or only accelerate."""


def check_processes(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del records
    section = config.launch
    device = machine.kind(section.device) if machine is not None else section.device
    yield from _machines(config)
    yield from _gpus(config, machine, device)
    words = extra_words(section)
    if section.num_processes == 1:
        for name in ("restarts", "main_process_port", "extra"):
            if getattr(section, name):
                yield Finding(f"launch.{name}", "has no effect on a single process.", "Leave it out.", "warning")
        if section.shard != "off":
            yield Finding("launch.shard", "there is one process, which keeps the whole model.", 'Set it to "off".', "warning")
        return
    if section.trainer != "limner":
        for name in ("restarts", "extra"):
            if getattr(section, name):
                yield Finding(f"launch.{name}", "sd-scripts is started without.", "Leave it out.")
    elif device is not None:
        for word in words:
            of_torchrun = _LAUNCHERS.get(word.partition("=")[0].replace("-", "_").replace("__", "--", 1))
            if of_torchrun not in (None, uses_torchrun(section, device)):
                other = "torchrun" if of_torchrun else "accelerate"
                said = f"{word} is for {other}, which does not start these processes."
                yield Finding("launch.extra", said, "Remove it.")
    if device == "mps":
        yield Finding("launch.num_processes", "there is one GPU on a Mac.", "Set it to 1.")
    yield from _sharding(config)


def _machines(config: Config) -> Iterable[Finding]:
    section, several = config.launch, config.launch.num_machines
    if several == 1:
        for name in ("machine_rank", "main_process_ip"):
            if getattr(section, name):
                yield Finding(f"launch.{name}", "there is one machine.", "Leave it out, or set launch.num_machines.", "warning")
        return
    if section.machine_rank >= several:
        said = f"{several} machines have the numbers 0 to {several - 1}."
        yield Finding("launch.machine_rank", said, "Give each machine another of them.")
    if section.num_processes % several:
        said = f"{section.num_processes} processes cannot be shared out evenly among {several} machines."
        yield Finding("launch.num_processes", said, f"Use a multiple of {several}: it counts the processes of all machines.")
    if section.main_process_ip is None:
        said = "the machines do not know where the main one is."
        yield Finding("launch.main_process_ip", said, "Give its address, the same on all machines.")
    elif not is_host(section.main_process_ip):
        said = f"{section.main_process_ip[:80]!r} is no machine's name or address."
        yield Finding("launch.main_process_ip", said, "Give that of the main machine.")


def _gpus(config: Config, machine: Machine | None, device: str | None) -> Iterable[Finding]:
    section = config.launch
    chosen, here = gpus(section), max(1, section.num_processes // section.num_machines)
    if section.gpu_ids is None or device is None:
        return
    if device != "cuda":
        yield Finding("launch.gpu_ids", f"the run trains on {device}.", "Leave it out.")
        return
    if chosen is None:
        return
    if len(chosen) != here:
        said = f"{len(chosen)} GPUs are named for {here} process{'es' * (here > 1)} on this machine."
        yield Finding("launch.gpu_ids", said, "Name one GPU for each process, or change launch.num_processes.")
    count = machine.count("cuda") if machine is not None else 0
    if machine is not None and (gone := [n for n in chosen if n >= count]):
        there = f"the numbers are 0 to {count - 1}" if count > 1 else "the only one is 0"
        yield Finding("launch.gpu_ids", f"there is no GPU {gone[0]}; {there}.", "Name others; `limner doctor` lists them.")


def _sharding(config: Config) -> Iterable[Finding]:
    section, adapter = config.launch, config.adapter
    if section.shard == "off":
        return
    field, off = "launch.shard", 'Set it to "off"'
    if section.trainer != "limner":
        yield Finding(field, "sd-scripts keeps the whole model in each process.", f"{off}.")
    if adapter.kind != "none":
        said = "an adapter is small: to share out the frozen model would cost more time than it saves memory."
        yield Finding(field, said, f"{off}, and see memory.quantize and memory.swap_blocks.")
        return
    if adapter.text_encoder or not adapter.denoiser:
        yield Finding(field, "text encoders cannot be shared out.", f"{off}, or train the denoiser alone.")
    if config.embedding.token is not None:
        yield Finding(field, "a word that is learnt beside the model cannot be.", f"{off}, or remove embedding.token.")
    if adapter.weights != "fp32":
        yield Finding(field, "weights in bf16 cannot be shared out.", f'{off}, or set adapter.weights = "fp32".')
    if config.train.precision == "fp16":
        yield Finding(field, "fp16 cannot be used with a model that is shared out.", f'{off}, or use "bf16".')
    if config.optimizer.kind not in _SHARDED:
        said = f"{config.optimizer.kind} is not known to move a weight by its slices."
        yield Finding(field, said, f"{off}, or set optimizer.kind to one of {', '.join(_SHARDED)}.")
    if config.memory.micro_batch is not None or config.memory.fit == "auto":
        said = "processes that share a model compute in step; pieces of a batch may be more in one than in another."
        yield Finding("memory.micro_batch", said, f'Leave it out, with memory.fit = "off"; or set {field} to "off".')
    if config.optimizer.in_backward:
        yield Finding(field, "gradients are added up behind the backward pass.", f"{off}, or optimizer.in_backward to false.")
