"""Memory and time of `merge_model` on a Flux.1-shaped file of a given size, random numbers in bf16, with a LoRA of all layers.

    python benchmarks/streaming_merge.py                 8 GiB; twice that is needed on the disk, and freed afterwards
    python benchmarks/streaming_merge.py --gib 22.2      the whole of Flux.1 dev

The tool runs in a child process, which stops once it has imported all that it needs; from there on this one reads its anonymous
memory (what is in no file) from /proc/PID/smaps_rollup every 20 ms. Linux alone has that. The result goes to
benchmarks/results/streaming_merge.json, or --out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_RANK, _INTERVAL_SECONDS = 32, 0.02
_DOUBLE, _SINGLE, _REST = 339_831_808, 141_597_696, 69_000_000  # numbers in a block of each kind, and outside them


def write_model(path: Path, gib: float) -> tuple[int, int]:
    """A transformer of Flux.1's width with as many blocks as fill the file; (blocks of two streams, of one)."""
    import torch

    from limner.formats.header import TensorInfo
    from limner.formats.streamed import Writer
    from limner.models.flux import Flux

    double = round(19 * gib / 22.2)
    single = round((gib * 2**29 - _REST - double * _DOUBLE) / _SINGLE)
    with torch.device("meta"):
        model = Flux.denoiser_class(num_layers=double, num_single_layers=single, guidance_embeds=True)
    shapes = dict[str, tuple[int, ...]]()
    state = model.state_dict()
    for name, there in Flux.denoiser_names(state).items():
        rows = shapes.get(there.name, (0,))[0] + state[name].shape[0]
        shapes[there.name] = (rows, *state[name].shape[1:])
    numbers = (torch.randn(1 << 25) * 0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    with Writer(path, {name: TensorInfo("BF16", shape) for name, shape in shapes.items()}, {"format": "pt"}) as writer:
        for name, shape in shapes.items():
            size = 2 * torch.Size(shape).numel()
            writer.put(name, [(numbers * (size // len(numbers) + 1))[:size]])
    return double, single


def write_lora(path: Path, model: Path) -> int:
    """One of every layer that Limner adapts; how many these are."""
    import torch
    from safetensors.torch import save_file

    from limner.tools.outline import base_here, outline

    targets, state = outline(base_here(str(model), None, "merge_model")).adapter_targets(convolutions=True), {}
    for target in targets:
        outputs, inputs = target.module.weight.shape
        state[f"{target.in_diffusers}.lora_A.weight"] = torch.randn(_RANK, inputs).bfloat16() * 0.01
        state[f"{target.in_diffusers}.lora_B.weight"] = torch.randn(outputs, _RANK).bfloat16() * 0.01
    save_file(state, path)
    return len(targets)


def merge(folder: Path) -> None:
    """The child: import, say so, wait, merge."""
    from limner.config import files
    from limner.config.tools import Tools
    from limner.models import family, flux
    from limner.tools import merge_model, streaming

    assert family and flux and streaming
    options = {"base": "base.safetensors", "loras": ["lora.safetensors @ 0.8"], "output": "out.safetensors"}
    section: Any = files.build_as(Tools, {"merge_model": options}, {}).merge_model
    os.chdir(folder)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    merge_model.run(section, lambda done, total, words="": None)  # noqa: ARG005
    print(time.monotonic() - began, flush=True)


def anonymous_mib(pid: int) -> float:
    """0 once it has ended."""
    try:
        found = re.search(
            r"^Anonymous:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"), re.MULTILINE
        )
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def measure(folder: Path) -> dict[str, Any]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, __file__, "--child", str(folder)], stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin and child.stdout
        assert child.stdout.readline() == "ready\n"
        baseline = peak = anonymous_mib(child.pid)
        child.stdin.write("go\n")
        child.stdin.flush()
        while child.poll() is None:
            peak = max(peak, anonymous_mib(child.pid))
            time.sleep(_INTERVAL_SECONDS)
        if child.returncode:
            sys.exit(f"the merge failed ({child.returncode})")
        return {
            "seconds": round(float(child.stdout.readline()), 1),
            "anonymous_after_import_mib": round(baseline),
            "anonymous_peak_mib": round(peak),
            "anonymous_peak_above_import_mib": round(peak - baseline),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "streaming_merge.json")
    parser.add_argument(
        "--folder", type=Path, help="where the files are made and removed again (the system's temporary folder)"
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        merge(args.child)
        return
    import torch

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        double, single = write_model(folder / "base.safetensors", args.gib)
        layers = write_lora(folder / "lora.safetensors", folder / "base.safetensors")
        sizes = {f: round((folder / f"{f}.safetensors").stat().st_size / 2**30, 2) for f in ("base", "lora")}
        found = measure(folder)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
        "model": f"Flux.1's width, {double} + {single} blocks, bf16",
        "model_gib": sizes["base"],
        "lora": f"rank {_RANK}, {layers} layers, bf16",
        "lora_gib": sizes["lora"],
        **found,
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
