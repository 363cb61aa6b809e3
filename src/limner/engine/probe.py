"""Describe the machine as torch sees it: `python -m limner.engine.probe` prints JSON, which `limner.machine` caches."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict

import psutil
import torch

from limner.machine import Device, Machine


def _gpu_name() -> str:
    """The name of an NVIDIA GPU according to its driver, "" where there is none."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip().split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return ""


def _probe() -> Machine:
    memory = psutil.virtual_memory().total >> 20
    devices = [Device("cpu", platform.processor() or platform.machine(), memory, bf16=True)]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(i)
            # bf16 in hardware since Ampere (8.0); older cards emulate it, slowly
            bf16 = facts.major >= 8 or bool(torch.version.hip)
            devices.append(Device("cuda", facts.name, facts.total_memory >> 20, bf16))
    if torch.backends.mps.is_available():
        devices.append(Device("mps", "Apple GPU", memory, bf16=True))
    build = torch.version.cuda or torch.version.hip or "cpu"
    unused = "" if torch.cuda.is_available() else _gpu_name()
    return Machine(torch.__version__, build, tuple(devices), os.cpu_count() or 1, memory, unused)


if __name__ == "__main__":
    print(json.dumps(asdict(_probe())))
