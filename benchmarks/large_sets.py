"""What a very large set costs, all the way to the first step of a run: `python benchmarks/large_sets.py`.

    python benchmarks/large_sets.py                                  a million pictures, and 5,000 that are all different
    python benchmarks/large_sets.py --count 100000 --distinct 1000   less

*The whole way*: `count` pictures (links to 25 small ones, with links to 25 captions, in folders of 5,000; ext4 allows 65,000
links a file) and the pocket model. A first start in a new home, which looks at every file, encodes what is different and
trains one step; then the start of another run in the same home. Each is a process of its own, the trainer's: seconds of each
phase, and the most memory that it ever held, Python and torch included.

*Caching*: `distinct` different pictures encoded by the pocket model's VAE into Limner's cache, and as one file a picture (.npz,
as sd-scripts writes them, and .safetensors), with the same encoder and on the same disk, 500 at a time in turn; then what it
takes to find all of it again, and to read 1,000 random entries. Limner's are checked when they are read, the others are not.

Results go to benchmarks/results/pictures-million.json. Seconds far above the CPU's tell of other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "pictures-million.json"
KINDS, FOLDER = 25, 5000
PHASES = (
    ("limner.data.scan", "scan"),
    ("limner.engine.prepare", "assemble"),
    ("limner.engine.samples", "Samples.__post_init__"),
    ("limner.engine.prepare", "_encode"),
    ("limner.engine.prepare", "_warn_of_words"),
    ("limner.engine.facts", "metadata_facts"),
    ("limner.engine.prepare", "prepare"),
    ("limner.engine.train", "move_weights"),
    ("limner.engine.saving", "save_weights"),
    ("limner.engine.saving", "save_state"),
)


def fill(root: Path, count: int) -> Path:
    """`count` pictures and captions, which are hard links to 25 of each."""
    (originals := root / "originals").mkdir()
    for i in range(KINDS):
        kind = ("png", "jpg")[i % 2]
        Image.new("RGB", (64 + 8 * (i % 5), 64 + 8 * (i // 5)), (i * 9, 90, 2 * i)).save(originals / f"{i}.{kind}")
        (originals / f"{i}.txt").write_text(f"photo number {i} of a thing, outdoors, blue sky, tree, grass")
    time.sleep(4)  # what has just been written is not remembered: it may still change
    for first in range(0, count, FOLDER):
        (folder := root / "pictures" / f"part_{first // FOLDER:04d}").mkdir(parents=True)
        for i in range(first, min(first + FOLDER, count)):
            kind = ("png", "jpg")[i % KINDS % 2]
            os.link(originals / f"{i % KINDS}.{kind}", folder / f"picture_{i:07d}.{kind}")
            os.link(originals / f"{i % KINDS}.txt", folder / f"picture_{i:07d}.txt")
    return root / "pictures"


def memory_mib(what: str) -> int:
    """VmHWM (the most ever held) or VmRSS of this process; 0 where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(what))


# --- the whole way ----------------------------------------------------------------------------------------------------


def start(folder: Path) -> dict[str, Any]:
    """In a process of its own: one run to its first step. Seconds and MiB of each phase."""
    began, phases = time.perf_counter(), dict[str, dict[str, float]]()
    import importlib

    from limner import jobs
    from limner.config import files
    from limner.engine import __main__ as engine
    from limner.engine import prepare, train  # noqa: F401

    imported = memory_mib("VmHWM"), time.perf_counter() - began
    for module, name in PHASES:
        owner: Any = importlib.import_module(module)
        *inside, last = name.split(".")
        for part in inside:
            owner = getattr(owner, part)
        setattr(owner, last, _timed(getattr(owner, last), name, phases))
    given = {
        "data": {"path": str(folder), "resolution": 64, "bucket_min_px": 32, "bucket_max_px": 128, "bucket_step_px": 8},
        "adapter": {"rank": 4},
        "train": {"steps": 1, "batch_size": 2},
        "output": {"name": "large"},
        "launch": {"device": "cpu"},
    }
    run = jobs.prepare(files.build(given, {}))
    code = engine.main(str(run.path))
    assert code == 0, run.tail()
    first_step = phases["prepare"]["seconds"] + phases["move_weights"]["seconds"]
    return {
        "import_seconds": round(imported[1], 2),
        "import_mib": imported[0],
        "to_first_step_seconds": round(imported[1] + first_step, 2),
        "most_mib": memory_mib("VmHWM"),
        "phases": phases,
    }


def _timed(function: Callable[..., Any], name: str, phases: dict[str, dict[str, float]]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        began, cpu = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            entry = phases.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0, "rss_mib": 0, "most_mib": 0})
            entry["seconds"] = round(entry["seconds"] + time.perf_counter() - began, 2)
            entry["cpu_seconds"] = round(entry["cpu_seconds"] + time.process_time() - cpu, 2)
            entry["rss_mib"], entry["most_mib"] = memory_mib("VmRSS"), memory_mib("VmHWM")

    return timed


# --- caching ----------------------------------------------------------------------------------------------------------

BLOCK, READS, PLACES = 500, 1000, {"limner": "cache", "npz": "npz", "safetensors": "safetensors"}


def draw(folder: Path, first: int, count: int) -> Path:
    """Pictures that are all different, as PNG."""
    (block := folder / f"block_{first:05d}").mkdir(parents=True)
    for i in range(first, first + count):
        noise = np.random.default_rng(i).integers(0, 256, (12 + i % 5, 12, 3), np.uint8)
        Image.fromarray(noise).resize((96, 96 + 8 * (i % 5)), Image.Resampling.BICUBIC).save(block / f"{i:05d}.png")
        (block / f"{i:05d}.txt").write_text("a pattern")
    return block


class Caching:
    """In a process of its own: the same pictures encoded into each kind of cache, block by block in turn."""

    def __init__(self, root: Path, count: int) -> None:
        import torch

        from limner.config import files
        from limner.data.cache import Cache
        from limner.data.dataset import assemble
        from limner.data.scan import scan
        from limner.engine.fetching import find_base, keep_of
        from limner.models import family as families

        self.root, self.count, self.cpu = root, count, torch.device("cpu")
        options = {"resolution": 32, "bucket_min_px": 16, "bucket_max_px": 64, "bucket_step_px": 8}
        blocks = [draw(root / "pictures", first, BLOCK) for first in range(0, count, BLOCK)]
        self.configs = [files.build({"data": {"path": str(block), **options}}, {}) for block in blocks]
        base = find_base(self.configs[0])
        self.family = families.make(base, keep_of(self.configs[0]))
        self.family.load("vae", torch.float32, self.cpu)
        self.sets = [assemble(c, base, scan(c.data).pictures) for c in self.configs]
        for way in ("npz", "safetensors"):
            (root / way).mkdir()
        self.cache = Cache(root / "cache")
        self.writing = dict.fromkeys(PLACES, 0.0)
        self.cache.put = self._timed("limner", self.cache.put)

    def _timed(self, way: str, write: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            began = time.process_time()
            write(*args)
            self.writing[way] += time.process_time() - began

        return timed

    def samples(self, number: int) -> Any:
        from limner.engine.runtime import Runtime
        from limner.engine.samples import Samples

        return Samples(self.configs[number], self.sets[number], self.family, Runtime(self.cpu, "fp32"), self.cache)

    def fill(self, way: str, number: int) -> None:
        """Encode a block."""
        import torch

        from limner.data import images

        if way == "limner":
            assert self.samples(number).fill_latents(lambda *_: None) == BLOCK
            return
        write = self._timed(way, self._write_npz if way == "npz" else self._write_safetensors)
        for picture, fit in zip(self.sets[number].pictures, self.sets[number].fits, strict=True):
            with torch.no_grad():
                mean, deviation = self.family.encode_pixels(images.load(picture.path, fit)[None])
            write(Path(picture.path).stem, {"mean": mean[0], "deviation": deviation[0]})

    def _write_npz(self, name: str, entry: dict[str, Any]) -> None:
        np.savez(self.root / "npz" / name, **{k: t.numpy() for k, t in entry.items()})

    def _write_safetensors(self, name: str, entry: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        save_file(entry, self.root / "safetensors" / f"{name}.safetensors")

    def read(self, way: str, name: str) -> dict[str, Any]:
        from safetensors.torch import load_file

        path = self.root / way / f"{name}.{way}"
        return dict(np.load(path)) if way == "npz" else load_file(path)

    def find(self, way: str) -> None:
        """What a second start does: whether all are there, and of the right shapes."""
        for number, held in enumerate(self.sets):
            if way == "limner":
                assert self.samples(number).missing()[0] == 0
                continue
            for picture, fit in zip(held.pictures, held.fits, strict=True):
                found = self.read(way, Path(picture.path).stem)
                assert found["mean"].shape == found["deviation"].shape and max(found["mean"].shape[1:]) <= max(fit.bucket)

    def read_some(self, way: str) -> None:
        chosen = random.Random(0).sample(range(self.count), READS)
        for i in chosen:
            assert self.cache.get(self.keys[i]) if way == "limner" else self.read(way, f"{i:05d}")

    def measure(self) -> dict[str, Any]:
        import torch

        cold = {way: [0.0, 0.0] for way in PLACES}
        self.family.encode_pixels(torch.zeros(1, 3, 32, 32))
        for number in range(len(self.sets)):
            for turn in range(len(PLACES)):
                way = list(PLACES)[(number + turn) % len(PLACES)]
                cold[way] = [a + b for a, b in zip(cold[way], clocked(self.fill, way, number), strict=True)]
        self.keys = [key for number in range(len(self.sets)) for key in self.samples(number)._latent_keys.in_order()]
        out: dict[str, Any] = {"pictures": self.count}
        for way, place in PLACES.items():
            found, read = clocked(self.find, way), clocked(self.read_some, way)
            held = [f.stat() for f in (self.root / place).iterdir()]
            out[way] = {
                "pictures_per_second": round(self.count / cold[way][0], 1),
                "cpu_ms_per_picture": round(cold[way][1] / self.count * 1e3, 2),
                "of_which_writing_ms": round(self.writing[way] / self.count * 1e3, 3),
                "found_again_seconds": round(found[0], 2),
                "found_again_cpu_seconds": round(found[1], 2),
                "read_cpu_ms_per_entry": round(read[1] / READS * 1e3, 3),
                "files": len(held),
                "mib_on_disk": round(sum(s.st_blocks * 512 for s in held) / 2**20, 1),
            }
        return out


def clocked(function: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """(seconds, CPU seconds)."""
    began, spent = time.perf_counter(), time.process_time()
    function(*args)
    return time.perf_counter() - began, time.process_time() - spent


# --- both -------------------------------------------------------------------------------------------------------------


def alone(environment: dict[str, str], *words: str) -> dict[str, Any]:
    """What this file answers to `words` in a process of its own."""
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, __file__, *words], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--count", type=int, default=1_000_000)
    asked.add_argument("--distinct", type=int, default=5000)
    asked.add_argument("--folder", type=Path, help="a set made before by this, and kept")
    asked.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    asked.add_argument("--caching", type=Path, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.start:
        print(json.dumps(start(given.start)))
        return
    if given.caching:
        print(json.dumps(Caching(given.caching, given.distinct).measure()))
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "caching").mkdir()
        words = ("--caching", str(root / "caching"), "--distinct", str(given.distinct))
        found: dict[str, Any] = {"caching": alone({"LIMNER_HOME": str(root / "other home")}, *words)}
        folder, home = given.folder or fill(root, given.count), {"LIMNER_HOME": str(root / "home")}
        found = {"pictures": given.count, **{n: alone(home, "--start", str(folder)) for n in ("first", "next")}, **found}
        kept = [f.stat().st_size for f in (root / "home").rglob("*") if f.is_file()]
        found["home_mib"] = round(sum(kept) / 2**20)
    found |= {
        "python": platform.python_version(),
        "cores": os.cpu_count() or 0,
        "load": round(os.getloadavg()[1], 1),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(RESULTS.read_text(), end="")


if __name__ == "__main__":
    main()
