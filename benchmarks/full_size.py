"""Seconds a step, and memory, of LoRA runs on models of full size: Limner's own command, on random weights.

    python benchmarks/full_size.py sdxl MODEL.safetensors               every way of keeping the model in memory
    python benchmarks/full_size.py flux MODEL.safetensors --ways nf4    one of them

    python benchmarks/full_size.py sdxl MODEL.safetensors --figures     against diffusers and peft: ms a picture, utilisation

scripts/random_model.py writes the model. A short run first fills the caches and paints a picture, so that the timed runs hold
nothing but the denoiser; with --no-picture the first of these fills them. Steps are told from
the events that the trainer writes about once a second, when it waits for the device; the median is over steps, without the
first of them and without what the end takes. Where many small layers are computed it tells more of the processor, which orders
their kernels, than of the card.

Results are added to benchmarks/results/full_size.json, or to --out, after every run. --figures runs at 512 px (Stable
Diffusion 1) or 1024 px: each batch with benchmarks/reference_loop.py first, then with Limner as it is, then with the options of
[speed]; a table is written beside --out. Utilisation is the reference loop's FLOPs for a picture, attention included, over
what --tflops could do in the time.
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
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from limner import jobs, machine, preflight, processes, runs
from limner.config import files
from limner.runs import Run

_WARM_STEPS = 5
_LIMNER = "import sys; from limner.cli import main; sys.argv[0] = 'limner'; main()"
_PROMPT = "a photo of a cat"

RESOLUTIONS = {"sd1": 512, "sdxl": 1024, "flux": 512}
FIGURES_PX = {"sd1": 512, "sdxl": 1024, "flux": 1024}
BATCHES = {"sd1": (1, 4), "sdxl": (1, 4), "flux": (1,)}
_AGAIN = {"checkpointing": True}
SPEED: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {"graph": {"cuda_graph": True, "channels_last": True}},
    "sdxl": {"graph": {"cuda_graph": True, "channels_last": True}},
    "flux": {"graph": {"cuda_graph": True}},
}
"""Family -> name -> what [speed] says; --compiled adds blocks that are compiled."""
COMPILED = {"compile": "blocks"}
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {"bf16": {}},
    "sdxl": {
        "bf16": {},
        "bf16, computed again": _AGAIN,
        "fp8": {**_AGAIN, "quantize": "fp8"},
        "nf4": {**_AGAIN, "quantize": "nf4"},
        "60 blocks swapped": {**_AGAIN, "swap_blocks": 60},
    },
    "flux": {
        "bf16, computed again": _AGAIN,
        "fp8": {**_AGAIN, "quantize": "fp8"},
        "30 blocks swapped": {**_AGAIN, "swap_blocks": 30},
        "nf4": {**_AGAIN, "quantize": "nf4"},
        "bf16": {},
        "fp8, 30 blocks swapped": {**_AGAIN, "quantize": "fp8", "swap_blocks": 30},
    },
}
"""Family -> name -> what [memory] says, in the order in which they are run."""


def pictures(folder: Path, side: int, count: int = 4) -> Path:
    """Smooth random pictures of one size, captioned."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for i in range(count):
        Image.frombytes("RGB", (16, 16), rng.randbytes(16 * 16 * 3)).resize((side, side)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{_PROMPT}, number {i}", encoding="utf-8")
    return folder


def config(model: Path, data: Path, side: int, memory: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {"base": str(model)},
        "data": {"path": str(data), "resolution": side},
        "adapter": {"kind": "lora", "rank": 16},
        "optimizer": {"lr": 1e-4},
        "memory": memory,
        **sections,
    }


class Card:
    """What the card's driver says is in use, read while runs go on; None of it where there is no such card."""

    def __init__(self) -> None:
        self.most_mib = 0
        self._reader = None
        words = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0", "-lms", "1000"]
        try:
            self._reader = subprocess.Popen(words, stdout=subprocess.PIPE)
            assert self._reader.stdout is not None
            os.set_blocking(self._reader.stdout.fileno(), False)
        except OSError:
            pass

    def look(self) -> None:
        if self._reader is None or self._reader.stdout is None:
            return
        read = [int(w) for w in (self._reader.stdout.read() or b"").split() if w.isdigit()]
        self.most_mib = max([self.most_mib, *read])

    def close(self) -> None:
        if self._reader is not None:
            self._reader.terminate()
            self._reader.wait()


def train(raw: dict[str, Any], seconds: float) -> tuple[Run | None, dict[str, float], int, str]:
    """`limner train`: (its run, seconds in each phase, the most MiB in use on the card, what went wrong)."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False, encoding="utf-8") as file:
        file.write(files.render(files.build(raw, {}), advanced=False))
    known, began = set(runs.all_runs()), time.monotonic()
    card, phases = Card(), dict[str, float]()
    process = subprocess.Popen([sys.executable, "-c", _LIMNER, "train", file.name], stderr=subprocess.PIPE)
    run, last, trouble = None, began, ""
    while process.poll() is None:
        time.sleep(0.05)
        run = run or next((r for r in runs.all_runs() if r not in known), None)
        state = run.state() if run else None
        name = (state.phase or state.status) if state else "checking"
        now = time.monotonic()
        phases[name] = phases.get(name, 0.0) + now - last
        last = now
        card.look()
        if now - began > seconds:
            trouble = f"not done in {seconds:.0f} s"
            if run:
                jobs.stop(run, now=True)
            process.kill()
    card.close()
    os.unlink(file.name)
    until = time.monotonic() + 30
    while run and processes.is_alive(run.state().pid, run.state().process_started) and time.monotonic() < until:
        time.sleep(0.1)  # the next run's readings are not to be this one's
    if process.returncode and not trouble:
        trouble = (process.communicate()[1] or b"").decode(errors="replace")[-2000:]
    return run, {k: round(v, 1) for k, v in phases.items()}, card.most_mib, trouble


def step_seconds(events: list[dict[str, Any]]) -> list[float]:
    """Of each timed step: readings are taken when the device has been waited for, and all steps between two are alike."""
    read = [(e["step"], e["time"]) for e in events if e["event"] == "memory"]
    out = list[float]()
    # without the last: it comes after everything is saved
    for (first, began), (last, ended) in pairwise(read[:-1]):
        if first >= _WARM_STEPS:
            out += [(ended - began) / (last - first)] * (last - first)
    return out


def measured(raw: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One run's row in the results."""
    findings, records = preflight.examine(files.build(raw, {}), machine.describe(runs.home()))
    errors = [f.message for f in findings if f.severity == "error"]
    if errors:
        return {"failed": "; ".join(errors)}
    run, phases, card_mib, trouble = train(raw, seconds)
    events = [e for e, _ in run.events()] if run else []
    timed, memory = step_seconds(events), [e for e in events if e["event"] == "memory"]
    losses = [e["loss"] for e in events if e["event"] == "step"]
    row: dict[str, Any] = {"memory": raw["memory"]}
    if records.footprint is not None:
        row["predicted_weights_mib"] = asdict(records.footprint)
    row |= {
        "seconds_per_step_median": round(statistics.median(timed), 4) if timed else None,
        "steps_timed": len(timed),
        "most_allocated_on_card_mib": max((e.get("device_mib", 0) for e in memory), default=None),
        "most_in_use_on_card_mib": card_mib or None,
        "most_in_trainer_mib": max((e["memory_mib"] for e in memory), default=None),
        "seconds_in_phases": phases,
        "steps": len(losses),
        "first_losses": losses[:3],
        "last_loss": losses[-1] if losses else None,
        "warnings": [e["message"] for e in events if e["event"] == "warning"],
    }
    if trouble:
        row["failed"] = trouble + (run.tail(3000) if run else "")
    return row


def reference(model: Path, side: int, batch: int, steps: int, seconds: float) -> dict[str, Any]:
    """What the reference loop takes, or what went wrong."""
    words = [sys.executable, str(Path(__file__).with_name("reference_loop.py")), str(model)]
    words += ["--resolution", str(side), "--batch", str(batch), "--steps", str(steps)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {seconds:.0f} s"}
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": done.stderr[-2000:]}


def figures_table(rows: list[dict[str, Any]], tflops: float | None) -> str:
    """The rows of --figures as Markdown; "not measured" stands where nothing was."""
    head = ["loop", "batch", "ms a picture", "peak memory, MiB", "utilisation"]
    lines = [head, ["---"] * len(head)]
    useful = {row["batch"]: row.get("flops_per_step") for row in rows if row["loop"] == "reference"}
    for row in rows:
        taken, flops = row.get("seconds_per_step_median"), useful.get(row["batch"])
        share = f"{flops / taken / tflops / 1e10:.1f} %" if taken and flops and tflops else "not measured"
        ms = f"{1000 * taken / row['batch']:.1f}" if taken else "not measured"
        lines.append([row["loop"], str(row["batch"]), ms, str(row.get("most_memory_mib") or "not measured"), share])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def figures(args: argparse.Namespace, data: Path, side: int, note: Any) -> list[dict[str, Any]]:
    """Each batch by the reference loop, by Limner as it is, and by Limner with [speed]."""
    began, rows = time.monotonic(), list[dict[str, Any]]()
    speeds = {"Limner": {}, **{f"Limner, {name}": speed for name, speed in SPEED[args.family].items()}}
    if args.compiled:
        speeds |= {"Limner, compiled": COMPILED, "Limner, compiled, graph": COMPILED | SPEED[args.family]["graph"]}
    if args.plain:
        speeds = {"Limner": {}}
    for batch in BATCHES[args.family]:
        for loop in ("reference", *speeds):
            row: dict[str, Any] = {"loop": loop, "batch": batch}
            if time.monotonic() - began > args.until:
                row["failed"] = "no time was left"
            elif loop == "reference":
                row |= reference(args.model, side, batch, args.steps, args.seconds)
            else:
                train_section = {"steps": args.steps, "batch_size": batch}
                raw = config(args.model, data, side, {}, train=train_section, speed=speeds[loop])
                found = measured(raw, args.seconds)
                memory = found.get("most_allocated_on_card_mib") or found.get("most_in_trainer_mib")
                row |= {**found, "most_memory_mib": memory, "speed": speeds[loop]}
            rows.append(row)
            note(row)
    return rows


def machine_words() -> dict[str, Any]:
    here = machine.describe(runs.home())
    best = here.best()
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False
    ).stdout.strip() if best.kind == "cuda" else ""  # fmt: skip
    return {
        "device": best.name or best.kind, "device_mib": best.memory_mib, "driver": driver, "cores": here.cores,
        "memory_mib": here.memory_mib, "python": platform.python_version(), "torch": f"{here.torch} ({here.torch_build})",
        **{name: version(name) for name in ("diffusers", "transformers")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=WAYS)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ways", nargs="*")
    parser.add_argument("--no-picture", action="store_true")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--seconds", type=float, default=300, help="until a run is given up")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds after which no further run begins")
    parser.add_argument("--figures", action="store_true")
    parser.add_argument("--compiled", action="store_true", help="--figures also with compiled blocks, which takes minutes more")
    parser.add_argument("--plain", action="store_true", help="--figures without the options of [speed], where there is no GPU")
    parser.add_argument("--tflops", type=float, default=989, help="what the card could do; 0 if that is not known")
    parser.add_argument("--home", type=Path, help="where the runs are left; nowhere when not given")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "full_size.json")
    args = parser.parse_args()
    began, sides = time.monotonic(), FIGURES_PX if args.figures else RESOLUTIONS
    side = args.resolution or sides[args.family]
    ways = WAYS[args.family]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIMNER_HOME"] = str(args.home or Path(folder) / "home")
        data = pictures(Path(folder) / "pictures", side)
        report = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"runs": []}

        def note(row: dict[str, Any]) -> None:
            about = {"date": time.strftime("%Y-%m-%d"), "machine": machine_words(), "family": args.family}
            report["runs"].append({**about, "resolution": side, "batch": 1, "rank": 16, **row})
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            print(json.dumps(row), flush=True)

        if args.figures:
            table = figures_table(figures(args, data, side, note), args.tflops or None)
            args.out.with_suffix(".md").write_text(f"{args.family}, {side} px, {machine_words()['device']}\n\n{table}", "utf-8")
            print(table)
            return
        sample = {"prompts": [f"{_PROMPT} --s 8 --w {side} --h {side}"], "every_steps": 2}
        first = config(args.model, data, side, ways[next(iter(ways))], train={"steps": 2}, sample=sample)
        if not args.no_picture:
            note({"way": "caches and a picture", **measured(first, args.seconds)})
        for name in args.ways or ways:
            if time.monotonic() - began > args.until:
                break
            raw = config(args.model, data, side, ways[name], train={"steps": args.steps}, output={"name": name.split(",")[0]})
            note({"way": name, **measured(raw, args.seconds)})


if __name__ == "__main__":
    main()
