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
from limner.formats.checkout import python_of

TRAINER = "limner.engine"
SUPERVISOR = "limner.sdscripts"
FOLLOWER = "limner.targets"

# glibc gives large blocks back to the system and faults them in again; on a CPU that is a fifth of a full-size training
# step, and on small models most of it.
_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def argv(config: Config, run_path: Path, device: str) -> list[str]:
    """The words of the command. `device` is where it will train: cpu, cuda or mps."""
    if config.launch.target != "local":
        return [sys.executable, "-m", FOLLOWER, str(run_path)]
    if config.launch.trainer == "sd-scripts":
        return [sys.executable, "-m", SUPERVISOR, str(run_path)]
    count = config.launch.num_processes
    trainer = ["-m", TRAINER, str(run_path)]
    if count == 1:
        return [sys.executable, *trainer]
    if device == "cpu":
        # `accelerate launch` starts a single process on a CPU, whatever it is told
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", *trainer]
    options = ["--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    options += ["--multi_gpu"] if device == "cuda" else []
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *trainer]


def sd_scripts_argv(launch: Launch, script: Path, config_file: Path, device: str, precision: str) -> list[str]:
    """The words of the command that runs a script of sd-scripts, in its checkout as the working folder.

    `precision` is mixed_precision as the script is told: the launcher sets it too, and would ask at the terminal without.
    """
    options = ["--num_processes", str(launch.num_processes), "--num_machines", "1", "--mixed_precision", precision]
    options += ["--dynamo_backend", "no"]
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
    if config.launch.trainer == "sd-scripts":
        # rich, which sd-scripts reports through, else breaks its lines at 80 columns
        return out | {"COLUMNS": "160"}
    if config.launch.target != "local":
        return out
    if device == "cpu" and sys.platform == "linux":
        out |= {k: v for k, v in _MALLOC.items() if k not in os.environ}
    if config.launch.num_processes > 1 and config.launch.num_threads is None and device == "cpu":
        out["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // config.launch.num_processes))
    elif config.launch.num_threads is not None:
        out["OMP_NUM_THREADS"] = str(config.launch.num_threads)
    return out


def shown(words: Sequence[str], env: dict[str, str], folder: str = "") -> str:
    """The command as one line that can be pasted into a terminal of this system; `folder` is where it is run."""
    if os.name == "nt":
        sets = "".join(f"set {k}={v}&& " for k, v in env.items())
        return (f"cd /d {subprocess.list2cmdline([folder])} && " if folder else "") + sets + subprocess.list2cmdline(words)
    line = " ".join([*(f"{k}={shlex.quote(v)}" for k, v in env.items()), shlex.join(words)])
    return f"cd {shlex.quote(folder)} && {line}" if folder else line
