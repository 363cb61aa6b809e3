"""What Limner's loop costs over the barest loop with the same UNet, LoRA, batch and optimiser.

    python benchmarks/overhead.py                  pocket model, 200 alternated blocks of 10 steps; start-up times
    python benchmarks/overhead.py --model FILE     another model (scripts/random_model.py makes one of SD 1.5's size)

Its LoRA is two layers beside each of the same layers, as sd-scripts has it; --precision bf16 has frozen weights in bf16 and
autocast in both loops.

Blocks alternate in one process, so that the machine's drift meets both alike, and both have batches of the same sizes (the
last of an epoch is smaller, and a change of shape costs both); the ratio is taken block by block, its 95 % interval by
bootstrap. The blocks of Limner are the real `engine.train.train`: the other loop runs inside its stop query.
Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def again_in_trainer_environment() -> None:
    """Replace this process by one with the environment that `limner.launch` gives the trainer: allocators read it at start."""
    from limner import launch
    from limner.config import Config

    trainers = launch.environment(Config(), "cpu")
    if any(name.startswith("MALLOC_") for name in trainers):  # those that are not set yet
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **trainers})


def bare_lora(layers, rank: int) -> list:
    """A LoRA as it is written down: two small layers beside each layer. Returns what is trained."""
    import torch
    from torch import nn

    params = []
    for base in layers:
        if isinstance(base, nn.Conv2d):
            down, up = nn.Conv2d(base.in_channels, rank, 1, bias=False), nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            down, up = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        torch.nn.init.zeros_(up.weight)
        base.forward = lambda x, own=base.forward, down=down, up=up: own(x) + up(down(x)) * 1.0
        params += [down.weight, up.weight]
    return params


def bare_step(unet, optimizer, params, mean, deviation, text, alphas, autocast):
    """One step of a loop with nothing in it that training does not need."""
    import torch

    x0 = mean + deviation * torch.randn_like(mean)
    noise, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
    a = alphas[t].view(-1, 1, 1, 1)
    with autocast():
        pred = unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, encoder_hidden_states=text, return_dict=False)[0]
    loss = torch.nn.functional.mse_loss(pred.float(), noise)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def measure(args: argparse.Namespace) -> dict:
    """Seconds a step of each loop, block by block."""
    model, blocks, block, batch, resolution = args.model, args.blocks, args.block, args.batch, args.resolution
    import torch

    from limner import jobs
    from limner.config import files
    from limner.engine import prepare, train
    from limner.engine.journal import Journal
    from limner.engine.runtime import Runtime
    from limner.models import family as families
    from limner.pocket import PICTURES

    raw = {"model": {"base": model}, "data": {"path": str(PICTURES), "trigger": "zibbo"}, "train": {"batch_size": batch}}
    if args.rank is not None:
        raw["adapter"] = {"rank": args.rank, "alpha": float(args.rank)}
    raw["train"]["steps"] = (blocks + 1) * block
    raw["output"] = {"state_every_steps": 10_000_000}
    if resolution is not None:
        raw["data"]["resolution"] = resolution
    config = files.build(raw, {})
    run = jobs.prepare(config)
    runtime = Runtime(torch.device("cpu"), args.precision)
    seen = {"limner": [], "bare": []}
    state = {"steps": 0, "begin": 0.0}

    def hook() -> bool:
        """Called by the loop at the end of every step: after each block of its own, run a block of the bare loop."""
        if not state["begin"]:
            return False  # asked while caching
        state["steps"] += 1
        if state["steps"] % block == 0:
            now = time.perf_counter()
            seen["limner"].append((now - state["begin"]) / block)
            for step in range(state["steps"] - block, state["steps"]):
                count = len(job.dataset.order.step(step)[0])
                bare_step(unet, optimizer, params, mean[:count], deviation[:count], text[:count], alphas, runtime.autocast)
            state["begin"] = time.perf_counter()
            seen["bare"].append((state["begin"] - now) / block)
        return False

    job = prepare.prepare(run, config, runtime, Journal(run, is_main=True), hook)
    family = families.make(job.family.base)
    family.load("denoiser", runtime.dtype, runtime.device)
    unet, alphas = family.denoiser, family.process.alphas_cumprod
    params = bare_lora([t.module for t in family.adapter_targets(convolutions=False)], config.adapter.rank)  # type: ignore
    optimizer = torch.optim.AdamW(params, lr=job.learning_rate, fused=True)
    first = job.samples.batch(range(batch), 0, 0)
    mean, deviation, text = first.mean, first.deviation, first.cond["text"]  # type: ignore[index]
    state["begin"] = time.perf_counter()
    train.train(job, 0)
    return {k: v[1:] for k, v in seen.items()}  # the first block of each warms up


def summarise(seen: dict[str, list[float]]) -> dict[str, float]:
    """Medians, their difference, and the paired ratio with its bootstrap interval."""
    ratios = [a / b for a, b in zip(seen["limner"], seen["bare"], strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    mine, bare = statistics.median(seen["limner"]), statistics.median(seen["bare"])
    return {
        "blocks": len(ratios),
        "limner_ms_per_step": round(mine * 1000, 2),
        "bare_ms_per_step": round(bare * 1000, 2),
        "difference_ms": round((mine - bare) * 1000, 2),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_95_low": round(medians[50], 4),
        "ratio_95_high": round(medians[1949], 4),
    }


def seconds_of(command: list[str], times: int) -> list[float]:
    """Wall seconds of a command, run several times."""
    out = []
    for _ in range(times):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        out.append(time.perf_counter() - begin)
    return out


def start_up(times: int = 5) -> dict[str, float]:
    """`limner --help`, and `limner train` on the pocket model from the command to its first finished step (warm caches)."""
    limner = str(Path(sys.executable).parent / "limner")
    first_steps = []
    for i in range(times + 1):
        from limner import runs
        from limner.pocket import PICTURES

        begin = time.time()
        words = [limner, "train", "--data.path", str(PICTURES), "--train.steps", "1", "--output.name", f"start{i}"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        events = [e for e, _ in runs.find("last").events()]
        first_steps.append(next(e["time"] for e in events if e["event"] == "step") - begin)
    helped = seconds_of([limner, "--help"], times)
    return {
        "help_seconds_median": round(statistics.median(helped), 3),
        "first_step_seconds_cold": round(first_steps[0], 2),
        "first_step_seconds_median": round(statistics.median(first_steps[1:]), 2),
    }


def machine_words() -> str:
    """The processor and its cores, for the record."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--blocks", type=int, default=200)
    parser.add_argument("--block", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    again_in_trainer_environment()
    import torch

    with tempfile.TemporaryDirectory() as home:
        os.environ["LIMNER_HOME"] = home
        # before the loops: while this process says that it trains, every other run waits for the device
        started = start_up() if args.model == "pocket" else None
        report = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine_words(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "model": "pocket" if args.model == "pocket" else Path(args.model).name,
            "batch": args.batch,
            "precision": args.precision,
            "loop": summarise(measure(args)),
        }
        if started is not None:
            report["start_up"] = started
    suffix = "" if args.precision == "fp32" else f"-{args.precision}"
    path = Path(__file__).parent / "results" / f"overhead-{report['model']}{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
