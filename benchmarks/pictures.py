"""What a large folder costs before the start: `python benchmarks/pictures.py [COUNT]` (100,000 when not given).

A folder of links to 100 small pictures, half of them PNG and half JPEG, each with a caption. Measured, in one process: the
first look (headers, captions, buckets, order), the next one, when nothing has changed, and the memory that the data set holds.
sd-scripts' own scan, captions and buckets of such a folder took 73 µs a picture on the machine that this was developed on.
Seconds that are far above the CPU's tell of other work on the machine, or of a slow disk.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from limner.config import Config, files
from limner.data.dataset import Dataset, assemble
from limner.data.scan import scan
from limner.formats.base import Base

RESULTS = Path(__file__).parent / "results" / "pictures.json"
KOHYA_MICROSECONDS = 73
BASE = Base("x", None, "folder", "sd1", "epsilon", 512, 64)


def fill(root: Path, count: int) -> Path:
    """`count` pictures and captions, which are hard links to 100 of each."""
    (originals := root / "originals").mkdir()
    (folder := root / "pictures").mkdir()
    for i in range(100):
        kind = ("png", "jpg")[i % 2]
        Image.new("RGB", (256 + 8 * (i % 17), 256 + 24 * (i // 17)), (i, 90, 2 * i)).save(originals / f"{i}.{kind}")
        (originals / f"{i}.txt").write_text(f"photo number {i} of a thing, outdoors, blue sky, tree, grass")
    time.sleep(4)  # what has just been written is not remembered: it may still change
    for i in range(count):
        kind = ("png", "jpg")[i % 2]
        os.link(originals / f"{i % 100}.{kind}", folder / f"picture_{i:06d}.{kind}")
        os.link(originals / f"{i % 100}.txt", folder / f"picture_{i:06d}.txt")
    return folder


def look(config: Config) -> tuple[Dataset, float, float]:
    """(the data set, CPU seconds, seconds)."""
    cpu, wall = time.process_time(), time.perf_counter()
    data = assemble(config, BASE, scan(config.data).pictures)
    return data, time.process_time() - cpu, time.perf_counter() - wall


def measure(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        os.environ["LIMNER_HOME"] = str(Path(name) / "home")
        config = files.build({"data": {"path": str(fill(Path(name), count))}}, {})
        _, cpu, wall = look(config)
        nexts = [look(config)[1:] for _ in range(3)]
        tracemalloc.start()
        data, *_ = look(config)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert data.num_pictures == count
    next_cpu, next_wall = min(nexts)
    return {
        "pictures": count,
        "first_cpu_seconds": round(cpu, 2),
        "first_seconds": round(wall, 2),
        "first_cpu_microseconds_per_picture": round(cpu / count * 1e6, 1),
        "kohya_microseconds_per_picture": KOHYA_MICROSECONDS,
        "next_cpu_seconds": round(next_cpu, 2),
        "next_seconds": round(next_wall, 2),
        "bytes_per_picture": round(held / count),
    }


if __name__ == "__main__":
    found = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    found |= {
        "python": platform.python_version(),
        "cores": os.cpu_count() or 0,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(RESULTS.read_text(), end="")
