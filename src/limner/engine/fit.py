"""memory.fit: the fastest way in which a run fits into memory, chosen before the start, and one step down when it ran out."""

from __future__ import annotations

import errno

import psutil
import torch

from limner import disk, estimate, fitting, machine, runs
from limner.config import Config
from limner.data.dataset import Dataset
from limner.engine.journal import Journal
from limner.engine.runtime import Runtime
from limner.errors import UserError, wrong
from limner.models.family import Family
from limner.runs import Run

_SPARE = 0.95
"""Of what is free, so much is planned with: the reckoning is a few percent off."""
_STEP_LEFT = 'Set memory.quantize = "fp8", a smaller data.resolution or adapter.rank, or close other programs.'

_NO_MEMORY = (
    "can't allocate memory", "Cannot allocate memory", "out of memory", "not enough memory", "_ALLOC_FAILED", "bad_alloc",
    "could not create a primitive", "could not create a memory",
)  # fmt: skip
"""What torch, oneDNN, CUDA's libraries, MPS, the system and C++ say of it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the computer has no memory left, however a library says so."""
    if isinstance(error, UserError):
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(said in str(error) for said in _NO_MEMORY)


class OutOfMemory(Exception):
    """Memory ran out in the loop, and what could be saved was."""


def free_mib(device: torch.device) -> int:
    """What this process may hold in all on its device, MiB."""
    if device.type == "cuda":
        return (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)) >> 20
    return (psutil.virtual_memory().available + psutil.Process().memory_info().rss) >> 20


def choose(
    run: Run, config: Config, family: Family, dataset: Dataset, caches_text: bool, runtime: Runtime, journal: Journal
) -> Config:
    """The configuration with the fastest way that fits laid over it. Once for a run: what was chosen is an event."""
    if config.memory.fit == "off" or fitting.recorded(run) is not None:
        return config
    options = runtime.share(_chosen(config, family, dataset, caches_text, runtime, journal) if runtime.is_main else None)
    return fitting.laid_over(config, options)


def _chosen(
    config: Config, family: Family, dataset: Dataset, caches_text: bool, runtime: Runtime, journal: Journal
) -> fitting.Options:
    limit, device = int(free_mib(runtime.device) * _SPARE), runtime.device.type
    asked = estimate.question(dataset, family.base, device, runtime.precision, caches_text)
    smallest: tuple[int, fitting.Options] | None = None
    for options in fitting.ladder(config, device, exact=False, num_blocks=num_blocks(family)):
        try:
            found = estimate.ask(runs.home(), fitting.laid_over(config, options), asked, times=False)
        except UserError as error:
            journal.event("warning", message=f"memory.fit: {error}")
            return {}
        needed = found.peak_mib(device)
        if needed <= limit:
            why = f"about {needed} MiB of {limit} that are free"
            journal.event("fit", step=0, options=options, why=why, needed_mib=needed, limit_mib=limit)
            print(f"memory.fit: {fitting.words(options)}: {why}", flush=True)
            return options
        if smallest is None or needed < smallest[0]:
            smallest = needed, options
    assert smallest is not None, "as it was asked for is a way, too"
    said = f"the run needs about {smallest[0]} MiB even with {fitting.words(smallest[1])}; {limit} are free."
    raise wrong("memory.fit", said, f'{_STEP_LEFT} memory.fit = "off" starts it all the same.')


def num_blocks(family: Family) -> int:
    """How many blocks the denoiser has."""
    made: dict = family.empty()  # type: ignore[attr-defined]
    return len(family.blocks_of(made[family.denoiser_folder]))  # type: ignore[attr-defined]


def step_down(run: Run, asked: Config, journal: Journal, reason: str) -> None:
    """Record the next smaller way, in which the run goes on. Raises UserError if there is none."""
    device = machine.describe(runs.home()).kind(asked.launch.device)
    options = None
    now = fitting.recorded(run) or {}
    if asked.memory.fit == "auto":
        options = fitting.smaller(asked, now, device, 0)
    if options is None:
        tried = f" even with {fitting.words(now)}" if now else ""
        remedy = (
            _STEP_LEFT
            if asked.memory.fit == "auto"
            else f'Set memory.fit = "auto", memory.checkpointing = true, or memory.micro_batch = 1. {_STEP_LEFT}'
        )
        raise wrong("memory.fit", f"memory ran out{tried} ({reason}).", remedy)
    step = journal.state.step
    journal.event("fit", step=step, options=options, why=f"memory ran out ({reason})")
    journal.event("warning", message=f"memory ran out at step {step + 1}; going on with {fitting.words(options)}")
    disk.fsync(run.path / "events.jsonl")
    print(f"memory.fit: memory ran out; going on with {fitting.words(options)}", flush=True)
