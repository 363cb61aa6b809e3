"""The long form: no space at every single operation that needs some, and as many pixels at once as may be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import faults
import hostile_pictures
import tiny
from trainer import config

HERE = Path(__file__).parent
STRIDE = int(os.environ.get("LIMNER_TORTURE_STRIDE", "1"))
"""Of this many operations one is tried."""
WORKERS = os.cpu_count() or 1


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["lora", "none"])
def test_no_space_at_every_operation(kind: str, tmp_path: Path) -> None:
    """At each operation in turn, half of them for good: what was saved is whole, nothing temporary stays, the reason is told,
    and with space again the run ends as the uninterrupted one, to the bit."""
    if shutil.which("cc") is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and Linux")
    shim, script = tmp_path / "no_space.so", str(HERE / "every_write.py")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, HERE / "no_space.c", "-ldl"], check=True)
    subprocess.run([sys.executable, script, "prepare", str(tmp_path)], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(shim)}
    words = [sys.executable, script, kind, str(tmp_path)]
    workers = [
        subprocess.Popen(
            [*words, str(1 + i * STRIDE), str(STRIDE * WORKERS)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for i in range(WORKERS)
    ]
    lines = [json.loads(line) for worker in workers for line in worker.communicate()[0].splitlines()]
    assert [worker.returncode for worker in workers] == [0] * WORKERS
    tried = [line for line in lines if "operation" in line]
    wrong = [line for line in tried if line["wrong"]]
    count = lines[0]["operations"]
    ends = Counter(line["code"] for line in tried)
    print(f"{kind}: {count} operations, {len(tried)} tried, by exit code {dict(ends)}, {len(wrong)} with a fault")
    for line in wrong:
        print(json.dumps(line))
    assert len(tried) >= count // STRIDE - WORKERS and ends[2] > len(tried) / 2
    assert wrong == []


@pytest.mark.timeout(600)
def test_a_deep_look_at_many_of_the_largest_pictures(tmp_path: Path) -> None:
    """Of every kind that is large in memory, several: at most 1.5 GB."""
    model = tiny.build(tmp_path / "model")
    for i in range(3):
        hostile_pictures.write(tmp_path / "set" / str(i), hostile_pictures.LARGE, share=1)
    chosen = config(model, tmp_path / "set", data={"skip_broken": True})
    code, told, _, mib = faults.check(chosen, tmp_path, "--deep", "--quick")
    print(f"{3 * len(hostile_pictures.LARGE)} pictures of 64 million pixels: check --deep had {mib} MiB")
    assert code == 0 and "does not open" not in told
    assert mib <= faults.MOST_MIB
