"""A tool as a process: what it says while it works and in the end, how it is stopped, and that the card has one user."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
import torch
from safetensors.torch import save_file

from limner import disk, jobs, machine, runs, tool_jobs
from limner.config.fields import paths
from limner.config.files import build_as
from limner.config.tools import Tools
from limner.errors import UserError
from limner.runs import LIVE, Run


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA of eight layers of rank 8, four of which say nothing."""
    torch.manual_seed(0)
    tensors = {}
    for i in range(8):
        name = f"lora_unet_mid_block_attentions_0_transformer_blocks_{i}_attn1_to_q"
        tensors[f"{name}.lora_down.weight"] = torch.randn(8, 32)
        tensors[f"{name}.lora_up.weight"] = torch.randn(32, 8) * (torch.arange(8) < 4)
        tensors[f"{name}.alpha"] = torch.tensor(8.0)
    save_file(tensors, tmp_path / "a cat's.safetensors", {"ss_network_dim": "8"})
    return tmp_path / "a cat's.safetensors"


def resize(lora: Path, **options: object) -> Tools:
    section = {"lora": str(lora), "output": str(lora.with_name("small.safetensors")), "rank": 4, **options}
    return build_as(Tools, {"resize": section}, {})


def ended(run: Run, seconds: float = 120) -> Run:
    until = time.monotonic() + seconds
    while run.state().status in ("queued", *LIVE):
        assert time.monotonic() < until, run.tail()
        time.sleep(0.05)
    return run


def test_it_works_says_so_and_reports(home: Path, lora: Path):
    asked = resize(lora)
    told = tool_jobs.look(asked)
    assert told["files"] == [str(lora.with_name("small.safetensors"))] and not lora.with_name("small.safetensors").exists()
    run = ended(tool_jobs.start(asked))
    assert run.state().status == "done", run.tail()
    report = disk.read_json(run.path / tool_jobs.REPORT)
    assert report["files"] == told["files"] and lora.with_name("small.safetensors").is_file()
    assert tool_jobs.asked(run) == ("resize", asked.resize)
    assert [r.id for r in tool_jobs.all_jobs()] == [run.id]


def test_a_mistake_stands_at_its_option_and_nothing_is_written(home: Path, lora: Path, forks: None):
    absent = lora.with_name("none.safetensors")
    told = tool_jobs.look(resize(absent))
    assert [f["field"] for f in told["findings"]] == ["resize.lora"]
    run = ended(tool_jobs.start(resize(absent)))
    assert run.state().status == "failed" and "Traceback" not in run.tail()
    assert [f["field"] for f in disk.read_json(run.path / tool_jobs.REPORT)["findings"]] == ["resize.lora"]
    assert not lora.with_name("small.safetensors").exists()


def test_a_killed_one_is_failed_and_leaves_no_file(home: Path, lora: Path):
    run = tool_jobs.start(resize(lora))
    jobs.kill(run.state().pid)
    assert ended(run).state().status == "failed"
    assert [p.name for p in lora.parent.glob("*.safetensors")] == [lora.name]


def test_one_that_is_stopped_before_it_begins_writes_nothing(home: Path, lora: Path, forks: None):
    run = tool_jobs.start(resize(lora))
    run.request("stop")
    assert ended(run).state().status in ("stopped", "done")
    done = run.state().status == "done"
    assert lora.with_name("small.safetensors").exists() == done


def test_the_graphics_card_has_one_user(home: Path, lora: Path, forks: None):
    asked = resize(lora, device="cuda")
    with runs.lock_of_tools("cuda", 0):
        words = [sys.executable, "-m", "limner.cli", "tools", "resize", f"--lora={lora}", "--output=x.safetensors"]
        done = subprocess.run(
            [*words, "--rank=4", "--device=cuda"], capture_output=True, text=True, cwd=lora.parent, env=os.environ
        )
    assert done.returncode == 2 and "another tool works on cuda" in done.stderr, done.stderr
    with runs.lock_of_tools("cuda", 0), pytest.raises(filelock.Timeout), runs.lock_of_tools("cuda", 0):
        pass
    assert tool_jobs.device_of(asked.resize) == "cuda"  # type: ignore[arg-type]
    assert tool_jobs.device_of(resize(lora, device="cpu").resize) is None  # type: ignore[arg-type]


def test_only_the_newest_are_kept(home: Path):
    for i in range(60):
        folder = tool_jobs.folder_of_all() / f"2026-01-01_0000{i:02d}_resize"
        folder.mkdir(parents=True)
        (folder / "tool.toml").write_text("[resize]\n")
    tool_jobs._make("resize")
    assert len(tool_jobs.all_jobs()) == 50


@pytest.mark.parametrize("text", ["", "a = 1", "[resize]\n[extract]\n", "[no_tool]\n", "[resize]\nrank = 'x'\n"])
def test_a_damaged_file_is_said(text: str):
    with pytest.raises(UserError):
        tool_jobs.read(text)


@pytest.mark.parametrize(
    ("name", "options", "device"),
    [
        ("caption", {"device": "cuda:1"}, "cuda"),
        ("caption", {"device": "cpu"}, None),
        ("tag", {"device": "rocm"}, "cuda"),
        ("tag", {"device": "coreml"}, "mps"),
        ("merge_loras", {"preview_prompt": ""}, None),
    ],
)
def test_the_card_is_known_by_one_name(name: str, options: dict[str, str], device: str | None, home: Path):
    needed = {"loras": ["a"], "output": "b.safetensors"} if name == "merge_loras" else {"path": "p"}
    assert tool_jobs.device_of(getattr(build_as(Tools, {name: needed | options}, {}), name)) == device


def test_a_preview_and_auto_want_the_best_device(home: Path):
    best = machine.describe(runs.home()).best().kind
    wanted = None if best == "cpu" else best
    merge = {"base": "pocket", "loras": ["a"], "output": "b", "preview_prompt": "a cat"}
    assert tool_jobs.device_of(build_as(Tools, {"merge_model": merge}, {}).merge_model) == wanted  # type: ignore[arg-type]
    assert tool_jobs.device_of(build_as(Tools, {"tag": {"path": "p"}}, {}).tag) == wanted  # type: ignore[arg-type]


@pytest.mark.long
def test_names_survive_a_system_of_another_alphabet(home: Path, lora: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    moved = lora.rename(lora.with_name("猫.safetensors"))
    assert "findings" not in tool_jobs.look(resize(moved))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("merge_model", {"base": "/etc/x", "loras": ["/a"], "output": "/b"}),
        ("merge_loras", {"base": "/etc/x", "loras": ["/a"], "output": "/b"}),
        ("tag", {"model": "/etc/x", "path": "/p"}),
        ("caption", {"model": "/etc/../etc/x", "path": "/p"}),
    ],
)
def test_a_text_that_can_be_a_path_is_one_of_those_that_the_page_checks(name: str, options: dict[str, object]):
    named = [str(path) for _, path in paths(build_as(Tools, {name: options}, {}))]
    assert str(options.get("base") or options.get("model")) in named


def test_of_two_in_one_second_the_later_is_the_newer(home: Path):
    """Their names tell the second only, and then the tool; what was copied together keeps the order of its dates."""
    for name in ("2026-01-01_000000_resize_lora", "2026-01-01_000000_caption_by_server", "2025-12-31_235959_tag"):
        folder = tool_jobs.folder_of_all() / name
        folder.mkdir(parents=True)
        (folder / "tool.toml").touch()
        time.sleep(0.01)
    assert [r.id[18:] for r in tool_jobs.all_jobs()] == ["tag", "resize_lora", "caption_by_server"]
