"""`limner doctor`: this machine in a dozen lines, and what stands in the way of training on it."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

from limner import damage, disk, machine, runs


def run() -> int:
    """Print the description; always 0, since a poor machine is no mistake."""
    facts = machine.describe(runs.home(), refresh=True)
    print(f"Limner    {importlib.metadata.version('limner')}, Python {platform.python_version()} on {platform.platform()}")
    print(f"torch     {facts.torch} (built for {facts.torch_build})")
    for name in ("diffusers", "transformers", "accelerate", "safetensors"):
        print(f"{name:<13} {importlib.metadata.version(name)}")
    print(f"processor {facts.cores} cores, {facts.memory_mib} MiB of memory")
    for device in facts.devices:
        print(f"device    {device.kind}: {device.name}, {device.memory_mib} MiB{', bf16' if device.bf16 else ', no bf16'}")
    print(f"home      {runs.home()}, {disk.free_bytes(runs.home()) >> 20} MiB free")
    if facts.gpu_without_torch:
        print(f"\nThere is a {facts.gpu_without_torch}, but torch {facts.torch} is a CPU build and cannot use it.")
        print(f"Install one for CUDA: {sys.executable} -m pip install --force-reinstall torch --index-url")
        print("  https://download.pytorch.org/whl/cu128")
    elif facts.best().kind == "cpu":
        print("\nNo GPU: the pocket model and small tests train well on a processor, full-size models slowly.")
    for finding in damage.findings(runs.home()):
        print(finding)
    return 0
