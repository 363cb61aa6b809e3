"""What trackers are told, read back as their own readers do; and that none of them can end a run or give a key away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from limner import launch, runs
from limner.config import Config, files
from limner.engine import trackers
from limner.engine.journal import Journal
from limner.engine.trackers import hyperparameters, numbers
from limner.runs import Run

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def run() -> Run:
    return runs.create(Config())


def journal_of(run: Run) -> Journal:
    journal = Journal(run, is_main=True)
    journal.trackers = trackers.make(run.config(), run)
    journal._flushed = float("inf")
    return journal


def steps(journal: Journal, first: int, last: int) -> None:
    for step in range(first, last + 1):
        journal.step(step, torch.tensor(step / 4), torch.tensor(2.0 * step), {"denoiser": 0.5**step, "text_encoder": 0.25})
    journal.flush()
    journal._flushed = float("inf")


def sample(journal: Journal, step: int, number: int = 0) -> None:
    path = journal.run.samples / f"step-{step:08d}_{number:02d}.png"
    Image.new("RGB", (12, 8), (step, number, 7)).save(path)
    journal.event("sample", step=step, path=path.name, prompt="a red cat", seed=1)


def read(run: Run) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def scalars(run: Run, tag: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in read(run).Scalars(tag)]


def warnings(run: Run) -> list[str]:
    return [e["message"] for e, _ in run.events() if e["event"] == "warning"]


def test_tensorboard_reads_every_number_and_picture(run: Run) -> None:
    journal = journal_of(run)
    journal.event("start", step=0, steps=3)
    sample(journal, 0)
    steps(journal, 1, 3)
    sample(journal, 3, 0)
    sample(journal, 3, 1)
    journal.event("validation", step=3, loss=0.125)
    journal.event("stop", step=3, status="done")
    found = read(run)
    tags = {"loss", "grad_norm", "lr/denoiser", "lr/text_encoder", "memory_mib", "validation/loss"}
    assert set(found.Tags()["scalars"]) - {"device_mib"} == tags
    assert scalars(run, "loss") == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert scalars(run, "lr/denoiser") == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert scalars(run, "grad_norm") == [(1, 2.0), (2, 4.0), (3, 6.0)]
    assert scalars(run, "validation/loss") == [(3, 0.125)]
    assert found.Tags()["images"] == ["sample/00", "sample/01"]
    shown = found.Images("sample/00")
    assert [(i.step, i.width, i.height) for i in shown] == [(0, 12, 8), (3, 12, 8)]
    assert shown[1].encoded_image_string == (run.samples / "step-00000003_00.png").read_bytes()
    assert warnings(run) == []


def test_tensorboard_reads_what_was_asked(run: Run) -> None:
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    journal_of(run).event("start", step=0, steps=3)
    info = parse_session_start_info_plugin_data(read(run).PluginTagToContent("hparams")["_hparams_/session_start_info"])
    assert info.group_name == run.id
    assert info.hparams["train.seed"].number_value == run.config().train.seed
    assert info.hparams["output.name"].string_value == "limner"
    assert info.hparams["memory.cache_latents"].bool_value is True


@pytest.mark.parametrize("resumed_at", [0, 2])
def test_what_is_done_again_comes_once(run: Run, resumed_at: int) -> None:
    journal = journal_of(run)
    journal.event("start", step=0, steps=6)
    steps(journal, 1, 4)
    sample(journal, 2, 0)
    journal = journal_of(run)  # killed while painting; the newest state is older
    journal.event("resume", step=resumed_at, steps=6)
    sample(journal, 2, 0)
    sample(journal, 2, 1)
    steps(journal, resumed_at + 1, 6)
    assert scalars(run, "loss") == [(s, s / 4) for s in range(1, 7)]
    assert [i.step for i in read(run).Images("sample/00")] == [2]
    assert [i.step for i in read(run).Images("sample/01")] == [2]


def test_of_a_long_run_only_the_last_steps_are_kept(run: Run) -> None:
    journal = journal_of(run)
    journal.event("start", step=0, steps=60)
    steps(journal, 1, 50)
    for step in (20, 40):
        sample(journal, step, 0)
        sample(journal, step, 1)
    for damaged in ({"event": ["x"], "step": 1}, {"event": "step", "step": "x"}, {"event": "sample", "step": 3, "path": 4}, {}):
        with (run.path / "events.jsonl").open("a") as file:
            file.write(json.dumps(damaged) + "\n")
    for tracker in trackers.make(run.config(), run):
        kept = {what: tracker.told[what] for what in ("step", "sample/00", "sample/01")}
        assert kept == {"step": 50, "sample/00": 40, "sample/01": 40} and len(tracker.told) < 10


def test_a_folder_that_cannot_be_written_ends_nothing(run: Run) -> None:
    (run.path / "tensorboard").write_text("not a folder")
    journal = journal_of(run)
    journal.event("start", step=0, steps=2)
    steps(journal, 1, 2)
    [said] = warnings(run)
    assert said.startswith("TensorBoard is told nothing more: FileExistsError")
    assert [e["step"] for e, _ in run.events() if e["event"] == "step"] == [1, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_ends_nothing(run: Run) -> None:
    journal = journal_of(run)
    journal.event("start", step=0, steps=2)
    journal.trackers[0]._file._file = open("/dev/full", "wb", buffering=0)  # type: ignore[attr-defined]  # noqa: SIM115
    steps(journal, 1, 2)
    [said] = warnings(run)
    assert "No space left on device" in said and journal.trackers == []
    assert [e["step"] for e, _ in run.events() if e["event"] == "step"] == [1, 2]


def test_other_processes_write_nothing(run: Run) -> None:
    Journal(run, is_main=False).event("start", step=0, steps=2)
    assert not (run.path / "tensorboard").exists()


def test_the_end_may_come_before_the_start(run: Run) -> None:
    journal_of(run).event("stop", step=0, status="failed", error="x")
    assert warnings(run) == [] and not (run.path / "tensorboard").exists()


def test_numbers() -> None:
    assert numbers("step", {"step": 3, "loss": 1, "lr": {"a": 0.5}}) == {"loss": 1.0, "lr/a": 0.5}
    assert numbers("warning", {"count": 3}) == {}


def test_whole_paths_are_told_nobody(tmp_path: Path) -> None:
    asked = {"model": {"base": str(tmp_path)}, "data": {"path": str(tmp_path / "cats")}, "output": {"tags": ["a", "b"]}}
    told = hyperparameters(files.build(asked, {}))
    assert (told["model.base"], told["data.path"], told["output.tags"]) == (tmp_path.name, "cats", "a, b")
    assert str(tmp_path) not in str(told) and "optimizer.text_encoder_lr" not in told


@pytest.mark.parametrize("base", ["~/private/models/cat", "~nobody-here/private/cat", "/private/models/that/went/away/cat"])
def test_a_path_is_told_nobody_whether_it_is_there_or_not(base: str) -> None:
    assert hyperparameters(files.build({"model": {"base": base}}, {}))["model.base"] == "cat"
    assert hyperparameters(files.build({"model": {"base": "owner/name"}}, {}))["model.base"] == "owner/name"


def asked_for(tracker: str) -> Run:
    return runs.create(files.build({"logging": {"trackers": [tracker], "project": "cats"}}, {}))


def whole_story(run: Run) -> None:
    journal = journal_of(run)
    journal.event("start", step=0, steps=2)
    steps(journal, 1, 2)
    sample(journal, 2)
    journal.event("stop", step=2, status="done")
    assert warnings(run) == []


@pytest.mark.slow
def test_wandb_offline_and_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    run = asked_for("wandb")
    whole_story(run)
    [log] = run.path.rglob("*.wandb")
    content = log.read_bytes()
    assert b"grad_norm" in content and b"lr/denoiser" in content and b"train.seed" in content
    assert KEY.encode() not in b"".join(p.read_bytes() for p in run.path.rglob("*") if p.is_file())
    assert KEY not in str(launch.argv(run.config(), run.path, "cpu")) + str(launch.environment(run.config(), "cpu"))


@pytest.mark.slow
def test_trackio_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_TOKEN", "hf_" + KEY)
    trackio = pytest.importorskip("trackio")
    import socket

    def refused(*_: object) -> None:
        raise AssertionError("it calls out")

    monkeypatch.setattr(socket.socket, "connect", refused)
    run = asked_for("trackio")
    whole_story(run)
    [found] = trackio.Api().runs("cats")
    assert found.name == run.id
    assert KEY.encode() not in b"".join(p.read_bytes() for p in [*run.path.rglob("*"), *tmp_path.rglob("*")] if p.is_file())
