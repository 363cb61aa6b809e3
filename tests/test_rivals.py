"""benchmarks/rivals.py: what it reads of programs and makes of that, and that a rival which fails is said to have failed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from programs import bar_readings  # noqa: E402
from rivals import step_seconds  # noqa: E402
from standings import summarise, table  # noqa: E402
from watch import Watched, watch  # noqa: E402


def run(program: str, number: int | str, steps: list[float], first: float, peak: int, **more) -> dict:
    row = {"program": program, "precision": "fp32", "round": number, "is_cold": number == 0, "steps": len(steps) + 2}
    row |= {"step_seconds": steps, "first_step_seconds": first, "peak_mib": peak, "losses": []}
    return row | {"processor_step_seconds": None, "processor_first_step_seconds": first * 2} | more


def bare(number: int | str, *words, **more) -> dict:
    return run("bare loop", number, *words, **{"losses_without": {}, **more})


def test_a_bar_is_read_when_it_first_shows_a_count():
    lines = [
        (1.0, "caching: 100%|##########| 16/16 [00:02<00:00]"),
        (2.0, "steps:   0%|          | 0/10 [00:00<?, ?it/s]"),
        (6.5, "steps:  10%|#         | 1/10 [00:04<00:40,  4.5s/it]"),
        (6.6, "steps:  10%|#         | 1/10 [00:04<00:40,  4.5s/it, avr_loss=0.1]"),
        (9.0, "Steps:  20%|##        | 2/10 [00:07<00:30,  2.5s/it, step_loss=0.2]"),
    ]
    assert bar_readings(lines) == {1: 6.5, 2: 9.0}


def test_the_first_steps_are_not_counted_and_those_told_together_are_alike():
    assert step_seconds({1: 10.0, 2: 15.0, 3: 17.0, 5: 20.0}) == [2.0, 1.5, 1.5]
    assert step_seconds({1: 10.0}) == []


def test_lines_are_stamped_as_they_come_and_bars_without_an_end_too(tmp_path: Path):
    code = (
        "import time\nprint('a', flush=True)\ntime.sleep(0.6)\n"
        "print('\\rb', end='', flush=True)\ntime.sleep(0.3)\nprint('\\rc')"
    )
    seen = watch([sys.executable, "-c", code], tmp_path, {}, 30)
    assert [text for _, text in seen.lines] == ["a", "b", "c"]
    assert 0.5 < seen.lines[1][0] - seen.lines[0][0] < 5 and seen.trouble == ""


def test_the_memory_of_children_counts(tmp_path: Path):
    child = f"{sys.executable} -c 'import time; x = bytearray(150 << 20); time.sleep(1.5)'"
    code = f"import subprocess; x = bytearray(100 << 20); subprocess.run({child!r}, shell=True, check=True)"
    assert 250 <= watch([sys.executable, "-c", code], tmp_path, {}, 30).peak_mib < 330


def test_what_children_compute_counts_and_waiting_does_not(tmp_path: Path):
    busy = "import time; end = time.process_time() + 1.0\nwhile time.process_time() < end: pass\ntime.sleep(1)"
    code = f"import subprocess, sys; print('go', flush=True); subprocess.run([sys.executable, '-c', {busy!r}], check=True)"
    seen = watch([sys.executable, "-c", code], tmp_path, {}, 60)
    assert 0.95 < seen.computed_by(time.time()) < 1.6 and seen.computed_by(seen.began) == 0
    looks = Watched(10.0, [], [(12.0, 1.0), (14.0, 3.0)], 0, "")
    assert [looks.computed_by(t) for t in (10.0, 11.0, 12.0, 13.5, 14.0, 20.0)] == [0.0, 0.5, 1.0, 2.5, 3.0, 3.0]


def test_what_cannot_be_started_fails_or_lasts_too_long_is_told(tmp_path: Path):
    assert "cannot be started" in watch(["no-such-program"], tmp_path, {}, 5).trouble
    assert watch([sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path, {}, 30).trouble == "ended with 3: why"
    begun = time.monotonic()
    assert watch([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, {}, 1).trouble == "not done in 1 s"
    assert time.monotonic() - begun < 20


def test_shares_are_of_pairs_from_one_round():
    rows = [
        run("Limner", 0, [1.0, 1.0, 4.0], 20.0, 2000), run("sd-scripts", 0, [2.0], 40.0, 4000),
        run("Limner", 1, [3.0], 5.0, 2200), run("sd-scripts", 1, [4.0], 20.0, 4000), run("sd-scripts", 2, [9.0], 1.0, 1),
    ]  # fmt: skip
    programs = summarise(rows)["fp32"]["programs"]
    assert programs["sd-scripts"]["limner_share"] == {
        "step": [0.5, 0.625, 0.75], "processor_step": None, "first_step_cold": [0.5] * 3, "first_step_warm": [0.25] * 3,
        "processor_first_step_warm": [0.25] * 3, "peak": [0.5, 0.525, 0.55],
    }  # fmt: skip
    assert programs["Limner"]["step_seconds"] == [1.0, 2.0, 4.0] and programs["Limner"]["peak_mib"] == 2200


def test_losses_are_compared_in_the_longest_pair():
    rows = [
        run("Limner", 0, [1.0], 1.0, 1, losses=[1.0, 9.0, 9.0]), bare(0, [1.0], 1.0, 1, losses=[1.0, 1.0, 1.0]),
        run("Limner", "curve", [1.0] * 2, 1.0, 1, losses=[1.0, 0.5, 2.02, 0.8]),
        bare("curve", [1.0] * 2, 1.0, 1, losses=[1.0, 0.5, 2.0, 0.8], losses_without={"3": 4.0, "4": 1.0}),
    ]  # fmt: skip
    losses = summarise(rows)["fp32"]["losses"]
    assert losses == {"steps": 4, "largest_difference": pytest.approx(0.01), "learnt": pytest.approx((0.5 + 0.2) / 2)}


_TRAINS = """
import pathlib, sys, time
from safetensors.numpy import save_file
import numpy
def told(name): return sys.argv[sys.argv.index(name) + 1]
steps = int(told("--max_train_steps"))
assert sorted(p.suffix for p in (pathlib.Path(told("--train_data_dir")) / "1_bench").iterdir()) == [".png"] * 16 + [".txt"] * 16
for i in range(steps + 1):
    print(f"\\rsteps:  0%|   | {i}/{steps} [00:00<00:00]", end="", flush=True, file=sys.stderr)
    time.sleep(0.1)
out = pathlib.Path(told("--output_dir")); out.mkdir()
save_file({"a.lora_up.weight": numpy.zeros(2), "a.lora_down.weight": numpy.zeros(2)}, out / "lora.safetensors")
"""
_FAILS = 'x = dict(\n    target_modules=["to_k", "to_q", "to_v", "to_out.0"],\n)\nraise SystemExit("no such dataset")\n'


@pytest.mark.long
def test_limner_the_bare_loop_and_two_rivals_of_which_one_fails(tiny_model: Path, tmp_path: Path):
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "train_network.py").write_text(_TRAINS)
    (tmp_path / "train_text_to_image_lora.py").write_text(_FAILS)
    words = ["--model-file", tiny_model, "--model-folder", tiny_model, "--side", 32, "--steps", 4, "--rounds", 1]
    words += ["--curve-steps", 0, "--precisions", "fp32", "--out", tmp_path / "out", "--work", tmp_path / "work"]
    words += ["--sd-scripts", tmp_path / "checkout", "--diffusers-script", tmp_path / "train_text_to_image_lora.py"]
    subprocess.run([sys.executable, str(BENCHMARKS / "rivals.py"), *map(str, words)], check=True, capture_output=True)
    report = json.loads((tmp_path / "out" / "rivals.json").read_text())
    fp32 = report["standings"]["fp32"]
    assert list(fp32["programs"]) == ["Limner", "bare loop", "sd-scripts", "diffusers script"]
    assert all(not f["failed"] for n, f in fp32["programs"].items() if n != "diffusers script")
    # the plain UNet with two matrices beside each layer learns the same from the same draws
    assert fp32["losses"]["steps"] == 4 and fp32["losses"]["largest_difference"] < 1e-5 < 1e-4 < fp32["losses"]["learnt"]
    assert fp32["programs"]["Limner"]["layers"] == 48  # 4 transformer blocks, 12 each
    rival = fp32["programs"]["sd-scripts"]
    assert rival["steps"] == 2 and 0.09 < rival["step_seconds"][1] < 1 and rival["layers"] == 1
    assert rival["limner_share"]["first_step_cold"][0] > 1 and rival["limner_share"]["first_step_warm"] is None
    shown = (tmp_path / "out" / "rivals.md").read_text()
    assert "**diffusers script failed**, round 0: ended with 1: no such dataset" in shown
    assert table(report) == shown and "<svg" in (tmp_path / "out" / "rivals.svg").read_text()


def test_rivals_that_are_not_given_are_named():
    report = {
        "date": "", "machine": "", "system": "", "python": "", "threads": "", "versions": {}, "absent": ["sd-scripts"],
        "settings": {"side_px": 1, "pictures": 1, "rounds": 1, "steps": 1}, "standings": {},
    }  # fmt: skip
    assert "- sd-scripts: **not measured**" in table(report)
