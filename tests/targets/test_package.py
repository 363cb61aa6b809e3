"""The job's folder: the configuration as it holds there, what is sent along, what comes back, and what may not."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from limner import disk, queue, runs
from limner.config import Config, files
from limner.errors import UserError
from limner.runs import Run, State
from limner.targets import contents, package, there
from limner.targets.contents import Contents
from limner.targets.job import Job
from limner.targets.mirror import Mirror
from limner.targets.shared import SharedFiles

JOB = Job("ray", "http://127.0.0.1:1", "j", "")


def chosen(tmp_path: Path, **options: str) -> Config:
    """A configuration that names a model, pictures and a LoRA that is merged."""
    for name in ("model", "pictures/more"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "model" / "weights").write_bytes(b"w" * 1000)
    (tmp_path / "pictures" / "a.png").write_bytes(b"a")
    (tmp_path / "pictures" / "more" / "b.png").write_bytes(b"b")
    (tmp_path / "style.safetensors").write_bytes(b"s")
    given = {"model.base": str(tmp_path / "model"), "data.path": str(tmp_path / "pictures"), "launch.target": "ray"}
    merged = json.dumps([f"{tmp_path / 'style.safetensors'} @ 0.5"])
    return files.build({}, given | {"model.merge": merged, "output.path": str(tmp_path / "out")} | options)


@pytest.mark.parametrize(
    ("upload", "sent"),
    [
        ("run", set()),
        ("pictures", {"inputs/0/pictures/a.png", "inputs/0/pictures/more/b.png"}),
        ("all", {
            "inputs/0/model/weights", "inputs/1/style.safetensors", "inputs/2/pictures/a.png", "inputs/2/pictures/more/b.png",
        }),
    ],
)  # fmt: skip
def test_what_is_sent_is_found_from_the_jobs_own_folder(tmp_path: Path, upload: str, sent: set[str]) -> None:
    config = chosen(tmp_path, **{"launch.upload": upload})
    run = runs.create(config)
    (run.path / "prompts.txt").write_text("a cat")
    (run.states / "step-7").mkdir()
    (run.states / "step-7" / "weights").write_bytes(b"7")
    places = package.prepare(run, config, tmp_path / "job", is_sent=True)
    package.pack(tmp_path / "job", places, tmp_path / "job.zip")
    with zipfile.ZipFile(tmp_path / "job.zip") as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "there")
    assert {n for n in names if n.startswith("inputs/")} == sent
    assert {"config.toml", "prompts.txt", "states/step-7/weights", "state.json"} <= names
    found = Run(tmp_path / "there").config()
    assert (found.launch.target, found.output.path) == ("local", None)
    assert found.data.path is not None
    is_there = found.data.path.is_relative_to(tmp_path / "there")
    assert is_there == (upload != "run") and (found.data.path / "more" / "b.png").read_bytes() == b"b"
    base, merged = Path(found.model.base), found.model.merge[0]
    assert (base.is_relative_to(tmp_path / "there"), merged.endswith("style.safetensors @ 0.5")) == (upload == "all", True)
    assert Path(merged.removesuffix(" @ 0.5")).exists() and (base / "weights").exists()
    same = {o for o in ("adapter", "train", "optimizer", "sample", "memory") if getattr(found, o) == getattr(config, o)}
    assert same == {"adapter", "train", "optimizer", "sample", "memory"}


def test_on_a_shared_path_everything_stays_where_it_is(tmp_path: Path) -> None:
    config = chosen(tmp_path)
    run = runs.create(config)
    assert package.prepare(run, config, tmp_path / "job", is_sent=False) == {}
    found = Run(tmp_path / "job").config()
    assert found == config.model_copy(update={"launch": found.launch}) and found.launch.target == "local"


def test_more_than_ray_takes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = chosen(tmp_path, **{"launch.upload": "all"})
    with (tmp_path / "model" / "weights").open("wb") as file:
        file.truncate(101 << 20)
    run = runs.create(config)
    places = package.prepare(run, config, tmp_path / "job", is_sent=True)
    with pytest.raises(UserError, match="more than 100 MiB"):
        package.pack(tmp_path / "job", places, tmp_path / "job.zip")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Run, Run]:
    """A run and its job's folder."""
    config = chosen(tmp_path)
    run = runs.create(config)
    run.event("start", step=0, steps=9)
    package.prepare(run, config, tmp_path / "job", is_sent=False)
    return run, Run(tmp_path / "job")


def test_events_come_once_and_in_order_whoever_brings_them(pair: tuple[Run, Run]) -> None:
    run, job = pair
    made = job.checkpoints / "cat.safetensors"
    made.write_bytes(b"cat")
    job.log.write_text("one\n")
    job.event("checkpoint", step=1, path=str(made))
    mirror = Mirror(run, SharedFiles(job.path))
    _, known = mirror.catch_up(JOB)
    with (job.path / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "st')  # half a line
    job.log.write_text("one\ntwo\n")
    _, known = mirror.catch_up(known)
    with (job.path / "events.jsonl").open("ab") as file:
        file.write(b'ep": 2}\n')
    _, known = Mirror(run, SharedFiles(job.path)).catch_up(known)  # another follower
    assert [e["event"] for e, _ in run.events()] == ["start", "checkpoint", "step"]
    assert [e["path"] for e, _ in run.events() if "path" in e] == [str(run.checkpoints / "cat.safetensors")]
    assert run.log.read_text() == "one\ntwo\n" and known.log_bytes == 8
    assert Job.read(run) == known


def test_a_folder_comes_whole_and_what_is_pruned_there_goes_here(pair: tuple[Run, Run]) -> None:
    run, job = pair
    mirror = Mirror(run, SharedFiles(job.path))
    for name in ("cat-step1", "cat-step2", ".tmp-half"):
        (job.checkpoints / name / "unet").mkdir(parents=True)
        (job.checkpoints / name / "unet" / "weights").write_text(name)
    mirror.catch_up(JOB)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["cat-step1", "cat-step2"]
    assert (run.checkpoints / "cat-step2" / "unet" / "weights").read_text() == "cat-step2"
    (run.checkpoints / "mine").write_text("put here by hand")
    (job.checkpoints / "cat-step1").rename(job.checkpoints / ".tmp-gone")
    found, _ = mirror.catch_up(JOB)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["cat-step2", "mine"]
    for step in (3, 12):
        disk.write_folder(job.states / f"step-{step:08}", lambda folder: (folder / "w").write_bytes(b"w"))
    found = contents.look(job.path)
    assert found is not None
    mirror.bring_rest(found)
    assert [p.name for p in run.states.iterdir()] == ["step-00000012"]
    assert disk.manifest_faults(run.states / "step-00000012") == []


def test_what_is_laid_out_for_ray_is_the_files_in_pieces(pair: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(there, "CHUNK_BYTES", 10)
    _, job = pair
    outbox = there.Outbox(job.path)
    written = b""
    for part in (b"0123456", b"", b"789abcdefghijklmnopqrstuvwxyz", b"!"):
        written += part
        job.log.write_bytes(written)
        outbox.publish()
        pieces = sorted((job.path / there.OUTBOX).glob("log.txt.*"), key=lambda p: int(p.suffix[1:]))
        assert b"".join(p.read_bytes() for p in pieces) == written
        assert all(p.stat().st_size == 10 for p in pieces[:-1])
    assert there.piece_name("log.txt", 19) == "outbox/log.txt.1"
    found = Contents.from_json(disk.read_json(job.path / there.INDEX))
    assert found == contents.look(job.path) and found.growing["log.txt"] == len(written)


GOOD = {"folder": "/j", "state": {}, "exit_code": None, "growing": {"events.jsonl": 1, "log.txt": 2}, "files": {}}


@pytest.mark.parametrize(
    "raw",
    [
        None, [], {}, GOOD | {"growing": {}}, GOOD | {"files": []}, GOOD | {"files": {"samples/a.png": 3}},
        *(GOOD | {"files": {path: [1, 2]}} for path in (
            "../config.toml", "samples/../../x", "/etc/passwd", "config.toml", "control/stop", "samples//x", "samples/./x",
            "samples\\..\\x", "lock", "states/../config.toml",
        )),
    ],
)  # fmt: skip
def test_no_list_from_elsewhere_names_a_file_outside(raw: object) -> None:
    assert Contents.from_json(GOOD).growing["log.txt"] == 2
    with pytest.raises(ValueError):
        Contents.from_json(raw)


def test_only_requests_are_passed_on(tmp_path: Path, home: Path) -> None:
    (tmp_path / "control").mkdir()
    assert there.main(["ask", str(tmp_path), "change-3.toml", "x = 1"]) == 0
    assert (tmp_path / "control" / "change-3.toml").read_text() == "x = 1"
    assert there.main(["ask", str(tmp_path), "../config.toml", "x"]) == 2
    kept = tmp_path / "kept"
    kept.mkdir()
    disk.write_json(kept / "link.json", {"link": str(tmp_path / "limner-kept")})
    there.main(["forget", str(kept)])  # no folder of a job
    assert kept.is_dir()


@pytest.mark.parametrize("raw", ["", "[]", "{}", '{"target": "ray"}', '{"target": 1, "where": "", "id": "", "folder": ""}'])
def test_a_damaged_memory_of_a_job_is_none(tmp_path: Path, raw: str) -> None:
    (tmp_path / runs.JOB_FILE).write_text(raw)
    assert Job.read(Run(tmp_path)) is None and not Run(tmp_path).is_out()


def test_a_run_whose_follower_is_gone_waits_for_another(tmp_path: Path) -> None:
    run = runs.create(chosen(tmp_path))
    queue.enqueue(run)
    run.write_state(State("running", step=5, steps=9, pid=1, process_started=1.0))
    assert run.state().status == "failed"
    Job("ray", "http://127.0.0.1:1", "j", "").write(run)
    assert (run.state().status, run.state().step) == ("waiting", 5)
    assert queue.remove(run) is False, "its job would go on"
    assert run.id in [*queue.repair(), *queue.waiting()]
