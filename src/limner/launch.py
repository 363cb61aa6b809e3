"""From a config to the exact command that trains it: always a list of words, never a shell line.

The trainer's only argument is the run folder; everything else it reads there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from limner.config import Config

TRAINER = "limner.engine"

# glibc gives large blocks back to the system and faults them in again; on a CPU that is a fifth of a full-size training
# step, and on small models most of it.
_MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def argv(config: Config, run_path: Path, device: str) -> list[str]:
    """The words of the command. `device` is where it will train: cpu, cuda or mps."""
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


def environment(config: Config, device: str) -> dict[str, str]:
    """What the command's environment needs beside the caller's own."""
    out = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if device == "cpu" and sys.platform == "linux":
        out |= {k: v for k, v in _MALLOC.items() if k not in os.environ}
    if config.launch.num_processes > 1 and config.launch.num_threads is None and device == "cpu":
        out["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // config.launch.num_processes))
    elif config.launch.num_threads is not None:
        out["OMP_NUM_THREADS"] = str(config.launch.num_threads)
    return out


def shown(words: Sequence[str], env: dict[str, str]) -> str:
    """The command as one line that can be pasted into a terminal of this system."""
    if os.name == "nt":
        sets = "".join(f"set {k}={v}&& " for k, v in env.items())
        return sets + subprocess.list2cmdline(words)
    return " ".join([*(f"{k}={shlex.quote(v)}" for k, v in env.items()), shlex.join(words)])
