"""From a config to the exact command that trains it: always a list of words, never a shell line.

The trainer's only argument is the run folder; everything else it reads there. Where sd-scripts trains, Limner's part is a
process that looks after it (`limner.sdscripts`), and takes the trainer's place for all others; so too where a job elsewhere
does (`limner.targets`).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from limner.config import Config, Launch
from limner.config.launch import MAIN_PORT, extra_words, gpus, is_host, most_processes
from limner.errors import wrong
from limner.formats.checkout import python_of
from limner.machine import VISIBLE, visible_gpus
from limner.runs import Run

TRAINER = "limner.engine"
TOGETHER = "limner.engine.together"
"""Starts the launcher of several processes and says how they ended."""
SUPERVISOR = "limner.sdscripts"
FOLLOWER = "limner.targets"

# glibc gives large blocks back to the system and faults them in again; on a CPU that is a fifth of a full-size training
# step, and on small models most of it.
_MALLOC = {
    "MALLOC_ARENA_MAX": "1",  # what one thread frees another may have
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "NUMPY_MADVISE_HUGEPAGE": "0",  # huge pages were no faster, and the system might fill up holes that it was given back
}
# what is left over where a tensor was aligned goes back to the hole beside it at once: small things that are put there would
# keep the hole from a tensor of the same size, and every step would touch new memory
_TUNABLES = "glibc.malloc.mxfast=0:glibc.malloc.tcache_count=0"


def argv(config: Config, run_path: Path, device: str, available: int | None = None) -> list[str]:
    """The words of the command. `device` is where it will train: cpu, cuda or mps; of such GPUs `available` are there."""
    if config.launch.target != "local":
        return [sys.executable, "-m", FOLLOWER, str(run_path)]
    if config.launch.trainer == "sd-scripts":
        return [sys.executable, "-m", SUPERVISOR, str(run_path)]
    count = num_processes(config, run_path, device, available)
    trainer = ["-m", TRAINER, str(run_path)]
    if count == 1:
        return [sys.executable, *trainer]
    launcher = _torchrun if uses_torchrun(config.launch, device) else _accelerate
    together = [TOGETHER, str(run_path), str(config.launch.restarts)]
    return [sys.executable, "-m", *together, *launcher(config.launch, count), *extra_words(config.launch), *trainer]


def num_processes(config: Config, run_path: Path, device: str, available: int | None = None) -> int:
    """How many processes train the run now: as many as it was last told to be gone on with, else as were asked for; on fewer
    GPUs than that, as many as can share out the same steps evenly."""
    count = Run(run_path).processes or config.launch.num_processes
    if device == "cpu" or available is None or config.launch.num_machines > 1:
        return count
    return most_processes(config, max(1, min(count, available)))


def uses_torchrun(launch: Launch, device: str) -> bool:
    """Which launcher starts several processes: torchrun, or else accelerate."""
    # `accelerate launch` starts a single process on a CPU, whatever it is told
    return device == "cpu" or launch.num_machines > 1


def _torchrun(launch: Launch, count: int) -> list[str]:
    words, machines = ["torch.distributed.run"], launch.num_machines
    if machines == 1:
        port = launch.main_process_port
        words += ["--standalone"] if port is None else ["--master_addr=127.0.0.1", f"--master_port={port}"]
        return [*words, f"--nproc_per_node={count}"]
    host = launch.main_process_ip or ""
    if not is_host(host):
        raise wrong("launch.main_process_ip", f"{host!r} is no machine's name or address.", "Give that of the main machine.")
    words += [f"--nnodes={machines}", f"--node_rank={launch.machine_rank}", f"--nproc_per_node={count // machines}"]
    return [*words, f"--master_addr={host}", f"--master_port={launch.main_process_port or MAIN_PORT}"]


def _accelerate(launch: Launch, count: int) -> list[str]:
    words = ["accelerate.commands.launch", "--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no"]
    return [*words, "--dynamo_backend", "no", "--main_process_port", str(launch.main_process_port or 0), "--multi_gpu"]


def sd_scripts_argv(launch: Launch, script: Path, config_file: Path, device: str, precision: str) -> list[str]:
    """The words of the command that runs a script of sd-scripts, in its checkout as the working folder.

    `precision` is mixed_precision as the script is told: the launcher sets it too, and would ask at the terminal without.
    """
    options = ["--num_processes", str(launch.num_processes), "--num_machines", str(launch.num_machines)]
    options += ["--mixed_precision", precision, "--dynamo_backend", "no"]
    if launch.num_machines > 1:
        options += ["--machine_rank", str(launch.machine_rank), "--same_network"]
        options += ["--main_process_ip", launch.main_process_ip or ""]
    if launch.num_machines > 1 or launch.main_process_port is not None:
        options += ["--main_process_port", str(launch.main_process_port or MAIN_PORT)]
    options += ["--num_cpu_threads_per_process", str(launch.num_threads)] if launch.num_threads is not None else []
    # without the option it is for sd-scripts' own torch to say: Limner's may see less than that
    options += ["--cpu"] if launch.device == "cpu" else []
    options += ["--multi_gpu"] if device == "cuda" and launch.num_processes > 1 else []
    # with "=" a name that begins with a dash cannot be taken for another option
    started = [str(script), f"--config_file={config_file}"]
    return [str(python_of(launch)), "-m", "accelerate.commands.launch", *options, *started]


def environment(config: Config, device: str) -> dict[str, str]:
    """What the command's environment needs beside the caller's own."""
    out = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if (chosen := gpus(config.launch)) is not None and device != "cpu":
        out |= {"CUDA_VISIBLE_DEVICES": visible_among(chosen), VISIBLE: visible_gpus()}
    if config.launch.trainer == "sd-scripts":
        # rich, which sd-scripts reports through, else breaks its lines at 80 columns
        return out | {"COLUMNS": "160"}
    if config.launch.target != "local":
        return out
    if device == "cpu" and sys.platform == "linux":
        out |= {k: v for k, v in _MALLOC.items() if k not in os.environ}
        theirs = os.environ.get("GLIBC_TUNABLES", "")
        if _TUNABLES not in theirs:
            out["GLIBC_TUNABLES"] = ":".join(filter(None, (_TUNABLES, theirs)))  # of two words about one thing the last holds
    here = config.launch.num_processes // config.launch.num_machines
    if here > 1 and config.launch.num_threads is None and device == "cpu":
        out["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // here))
    elif config.launch.num_threads is not None:
        out["OMP_NUM_THREADS"] = str(config.launch.num_threads)
    if config.launch.num_processes > 1:
        # what does not end of itself when another was killed is waited for so long; politely stopped ones are not
        out["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "15"
    return out


def visible_among(chosen: Sequence[int]) -> str:
    """CUDA_VISIBLE_DEVICES for these of the GPUs that are visible here, which may be some of the machine's already."""
    here = [w.strip() for w in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if w.strip()]
    return ",".join(here[n] if n < len(here) else str(n) for n in chosen)


def shown(words: Sequence[str], env: dict[str, str], folder: str = "") -> str:
    """The command as one line that can be pasted into a terminal of this system; `folder` is where it is run."""
    if os.name == "nt":
        sets = "".join(f"set {k}={v}&& " for k, v in env.items())
        return (f"cd /d {subprocess.list2cmdline([folder])} && " if folder else "") + sets + subprocess.list2cmdline(words)
    line = " ".join([*(f"{k}={shlex.quote(v)}" for k, v in env.items()), shlex.join(words)])
    return f"cd {shlex.quote(folder)} && {line}" if folder else line
