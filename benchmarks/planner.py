"""Predicted against measured: peak memory and seconds a step over a grid of configurations, each really run.

    python benchmarks/planner.py MODELS                    the whole grid
    python benchmarks/planner.py MODELS --only sd1         those whose names begin so

MODELS is a folder with full-size random models (`scripts/random_model.py sd1 MODELS/sd1.safetensors`), and takes the tiny ones,
which are made there. Each run is a trainer of its own with caches of its own; its peak is the system's word (the most that was
resident), without that of a process that only imports the trainer. Results are
added to benchmarks/results/planner.json, or to --out, after every run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from full_size import pictures
from limner import estimate, jobs, launch, machine, preflight, runs
from limner.config import Config, files
from limner.errors import UserError

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

_STEPS = 6
_SECONDS = 480.0
"""After which a run is ended; its peak is that of the steps until then."""
_IMPORTS = "from limner.engine import checkpoint, estimate, fit, prepare, runtime, trackers, train\n"
_LARGE_MIB = 2048
TINY = ("sd1", "sdxl", "sd3", "flux")


def grid(models: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, options) of every configuration."""
    methods: dict[str, dict[str, Any]] = {
        "lora": {"adapter.rank": 16},
        "lokr": {"adapter.kind": "lokr"},
        "embedding": {
            "adapter.kind": "embedding",
            "embedding.token": "<cat>",
            "embedding.initial": "cat",
            "data.caption_prefix": "<cat>",
        },
        "none": {"adapter.kind": "none", "output.layout": "diffusers"},
    }
    again = {"memory.checkpointing": True}
    for family, batch, (method, options) in itertools.product(TINY, (1, 4), methods.items()):
        if method == "embedding" and family in ("sd3", "flux"):
            continue
        yield f"tiny {family} {method} b{batch}", {
            "model.base": models / f"tiny-{family}", "data.resolution": 64, "train.batch_size": batch, **options
        }  # fmt: skip
    for path in sorted(models.glob("*.safetensors")):
        for side, batch in ((256, 1), (256, 2), (512, 1), (256, 4)):
            for way, memory in (("", {}), ("again", again), ("bf16", {"train.precision": "bf16"})):
                yield f"{path.stem} lora {side} b{batch} {way}".strip(), {
                    "model.base": path, "data.resolution": side, "train.batch_size": batch, **methods["lora"], **memory
                }  # fmt: skip
        for name, options in (
            ("lokr 256", methods["lokr"]),
            ("embedding 256", methods["embedding"]),
            ("lora 256 b4 pieces", methods["lora"] | {"train.batch_size": 4, "memory.micro_batch": 1}),
            ("lora 256 int8", methods["lora"] | {"memory.quantize": "int8"}),
            ("lora 256 bf16 nf4", methods["lora"] | {"memory.quantize": "nf4", "train.precision": "bf16"}),
            (
                "none 256 sgd again",
                methods["none"] | again | {"optimizer.kind": "sgd", "optimizer.lr": 1e-6, "train.precision": "bf16"},
            ),
            ("lora 256 sampled", methods["lora"] | {"sample.prompts": '["a cat"]', "sample.steps": 2}),
            ("lora 512 sampled", methods["lora"] | {"sample.prompts": '["a cat"]', "sample.steps": 2, "data.resolution": 512}),
        ):
            yield f"{path.stem} {name}", {"model.base": path, "data.resolution": 256, **options}


def configured(options: dict[str, Any], folder: Path) -> Config:
    side = int(options["data.resolution"])
    given = {
        "data.path": pictures(folder / f"pictures-{side}", side), "train.steps": _STEPS, "launch.device": "cpu",
        "launch.num_threads": os.cpu_count() or 1, "memory.cache_path": tempfile.mkdtemp(dir=folder), **options,
    }  # fmt: skip
    return files.build(
        {}, {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}
    )


def run(words: list[str], config: Config, log: Path) -> tuple[int, float]:
    """(exit code, MiB that were resident at most) of a process."""
    with log.open("wb") as file:
        environment = {**os.environ, **launch.environment(config, "cpu")}
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
        until = time.monotonic() + _SECONDS
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status), used.ru_maxrss / 1024
            if time.monotonic() > until:
                process.kill()
            time.sleep(0.1)


def predict(name: str, config: Config, folder: Path, imports_mib: float, *, times: bool) -> dict[str, Any]:
    """What is reckoned of a configuration, or what the trouble is."""
    findings, records = preflight.examine(config, machine.describe(runs.home()))
    if records.question is None or any(f.severity == "error" for f in findings):
        return {"name": name, "trouble": "; ".join(str(f) for f in findings)[:500]}
    try:
        told = estimate.ask(folder, config, records.question, times=times)
    except UserError as error:
        return {"name": name, "trouble": str(error)[:500]}
    memory = {
        "name": name,
        "predicted_mib": told.worst.total_mib + told.process_mib - round(imports_mib),
        "worst": told.worst.name,
        "parts": told.worst.parts,
    }
    return memory | ({"predicted_seconds": told.seconds_per_step} if times else {})


def compare(name: str, config: Config, folder: Path, imports_mib: float) -> dict[str, Any]:
    """One configuration: what is predicted, then what is measured."""
    out = predict(name, config, folder, imports_mib, times=True)
    if "trouble" in out:
        return out
    made = jobs.prepare(config)
    code, peak_mib = run(launch.argv(config, made.path, "cpu"), config, made.log)
    out["measured_mib"] = round(peak_mib - imports_mib)
    times = [e["time"] for e in made.history() if e["event"] == "step"]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    # events are written about once a second: only steps that take longer have times of their own
    out["measured_seconds"] = statistics.median(gaps[1:]) if code == 0 and statistics.median(gaps[1:]) > 1 else None
    if code:
        out["trouble"] = made.tail(500)
    shutil.rmtree(made.path)
    return out


def summary(rows: list[dict[str, Any]], imports_mib: float) -> dict[str, Any]:
    """How often what was to be reached was.

    Memory is counted three ways: with what importing takes, which is most of a small model's; without it; and without it where
    more than 2 GiB remain.
    """
    done = [r for r in rows if "trouble" not in r]
    whole = [(r["predicted_mib"] + imports_mib) / (r["measured_mib"] + imports_mib) for r in done]
    bare = [r["predicted_mib"] / r["measured_mib"] for r in done if r["measured_mib"] > 0]
    large = [r["predicted_mib"] / r["measured_mib"] for r in done if r["measured_mib"] > _LARGE_MIB]
    timed = [r for r in done if r["measured_seconds"] and r["predicted_seconds"]]
    pairs = [
        (a, b)
        for a, b in itertools.combinations(timed, 2)
        if max(a["measured_seconds"], b["measured_seconds"]) > 1.15 * min(a["measured_seconds"], b["measured_seconds"])
    ]
    right = [
        (a["measured_seconds"] < b["measured_seconds"]) == (a["predicted_seconds"] < b["predicted_seconds"]) for a, b in pairs
    ]
    return {
        "configs": len(done),
        "failed": len(rows) - len(done),
        "over_2_gib": len(large),
        "memory_within_10_percent_and_at_most_5_below": sum(0.95 <= r <= 1.10 for r in whole),
        "memory_ratio_least_median_most": _spread(whole),
        "without_imports": sum(0.95 <= r <= 1.10 for r in bare),
        "of_those_over_2_gib_without_imports": sum(0.95 <= r <= 1.10 for r in large),
        "their_ratio_least_median_most": _spread(large),
        "timed": len(timed),
        "seconds_within_30_percent": sum(0.7 <= r["predicted_seconds"] / r["measured_seconds"] <= 1.3 for r in timed),
        "pairs_that_differ": len(pairs),
        "pairs_ranked_right": sum(right),
    }


def _spread(ratios: list[float]) -> list[float]:
    return [round(f(ratios), 3) for f in (min, statistics.median, max)] if ratios else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", default="", help="names that begin with this")
    parser.add_argument("--memory-anew", action="store_true", help="predict it anew, and keep what was measured before")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "planner.json")
    args = parser.parse_args()
    import tiny

    for family in TINY:
        if not (args.models / f"tiny-{family}").exists():
            tiny.build(args.models / f"tiny-{family}", family=family)
    kept = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"rows": []}
    rows = {row["name"]: row for row in kept["rows"]}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["LIMNER_HOME"] = str(folder / "home")
        config = configured({"data.resolution": 64}, folder)
        _, imports_mib = run([sys.executable, "-c", _IMPORTS], config, folder / "log")
        for name, options in grid(args.models):
            if not name.startswith(args.only):
                continue
            config = configured(options, folder)
            if args.memory_anew and name in rows:
                rows[name] |= predict(name, config, folder, imports_mib, times=False)
            else:
                rows[name] = compare(name, config, folder, imports_mib)
            print(json.dumps(rows[name]), flush=True)
            here = {
                "date": time.strftime("%Y-%m-%d"), "machine": platform.processor() or platform.machine(),
                "cores": os.cpu_count(), "torch": version("torch"), "diffusers": version("diffusers"),
                "imports_mib": round(imports_mib), "load": [round(v, 1) for v in os.getloadavg()],
            }  # fmt: skip
            table = {"where": here, "summary": summary(list(rows.values()), imports_mib), "rows": list(rows.values())}
            args.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary(list(rows.values()), imports_mib), indent=1))


if __name__ == "__main__":
    main()
