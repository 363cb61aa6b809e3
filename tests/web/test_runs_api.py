"""The Runs page's routes, over made run folders: what they say, what they serve, what they refuse."""

from __future__ import annotations

import io
import json
import os
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from limner import changes, disk, queue, runner, runs
from limner.config import files
from limner.errors import UserError
from limner.runs import Run, State
from limner.settings import Settings
from limner.web import app as web_app
from limner.web import runs_api
from limner.web.context import Context
from limner.web.words import Words

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.add_exception_handler(UserError, web_app._say)
    app.include_router(runs_api.router(Context(Settings(), (), Words())))
    return TestClient(app)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts what would have started the runner; no trainer is run here."""
    calls: list[int] = []
    monkeypatch.setattr(runner, "ensure_runner", lambda: calls.append(1))
    return calls


def made(name: str = "cat", state: State | None = None, **over: str) -> Run:
    run = runs.create(files.build({}, {"output.name": name, "sample.prompts": '["a cat", "a dog"]', **over}))
    if state is not None:
        run.write_state(state)
    return run


def live(**values: Any) -> State:
    """A state that says that this very process is the trainer."""
    return State(
        **{
            "status": "running",
            "phase": "training",
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            **values,
        }
    )


def picture(run: Run, name: str, side: int = 64) -> None:
    Image.new("RGB", (side, side), (200, 30, 30)).save(run.samples / name)


def said(answer: Any) -> str:
    assert answer.status_code == 422, answer.text
    return " ".join(f"{f['field']}: {f['message']} {f['remedy']}" for f in answer.json()["findings"])


# --- the list ---------------------------------------------------------------------------------------------------------


def test_no_runs(client: TestClient) -> None:
    answer = client.get("/api/runs").json()
    assert answer["runs"] == {} and answer["queue"] == [] and answer["order"] == []


def test_the_list_is_newest_first_and_says_the_essentials(client: TestClient) -> None:
    old = made("old", State("failed", step=3, steps=9, error="error: optimizer.lr: too high. Lower it."))
    new = made("new", live(step=5, steps=10, progress=(5, 10)), **{"launch.device": "cpu"})
    os.utime(old.path / "config.toml", (1_000_000_000, 1_000_000_000))
    disk.write_json(new.path / "plan.json", {"family": "sd1", "device": "cpu"})
    picture(new, "step-00000005_00.png")
    for second in range(3):
        with (new.path / "events.jsonl").open("a") as file:
            file.write(
                json.dumps({"event": "step", "step": 3 + second, "loss": 0.5, "lr": {}, "time": 100.0 + 2 * second}) + "\n"
            )
    answer = client.get("/api/runs").json()
    assert answer["order"] == [new.id, old.id]
    brief = answer["runs"][new.id]
    assert {k: brief[k] for k in ("name", "kind", "family", "device", "status", "phase", "step", "steps", "progress")} == {
        "name": "new", "kind": "lora", "family": "sd1", "device": "cpu", "status": "running", "phase": "training",
        "step": 5, "steps": 10, "progress": [5, 10],
    }  # fmt: skip
    assert brief["speed"] == 0.5 and brief["seconds_left"] == 10 and brief["sample"] == "step-00000005_00.png"
    assert answer["runs"][old.id]["error"] == "error: optimizer.lr: too high. Lower it."
    assert answer["runs"][old.id]["created"] == 1_000_000_000


def test_only_what_changed_is_sent_again(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.web.run_facts._FRESH_SECONDS", 0.0)
    one, two = made("one"), made("two")
    first = client.get("/api/runs").json()
    again = client.get("/api/runs", params={"since": first["version"]}).json()
    assert again == {"version": first["version"], "queue": [], "runs": {}}
    one.write_state(State("done", step=4, steps=4))
    third = client.get("/api/runs", params={"since": first["version"]}).json()
    assert list(third["runs"]) == [one.id] and third["runs"][one.id]["status"] == "done" and "order" not in third
    runs.delete(two)
    assert client.get("/api/runs", params={"since": third["version"]}).json()["order"] == [one.id]
    assert set(client.get("/api/runs", params={"since": "x-99999999999999999999"}).json()["runs"]) == {one.id}


def test_a_dead_trainer_is_told_with_its_reason(client: TestClient) -> None:
    run = made(state=live(pid=2**22 - 3, parent=7, step=5, steps=10))
    disk.write_json(run.path / "exit.json", {"pid": 7, "code": -9, "time": 0})
    brief = client.get("/api/runs").json()["runs"][run.id]
    assert brief["status"] == "failed" and brief["error"].startswith("the trainer was killed (signal 9); ")
    assert "resume" in client.get(f"/api/runs/{run.id}").json()["actions"]


def test_a_damaged_run_does_not_hide_the_others(client: TestClient) -> None:
    bad, good = made("bad"), made("good")
    (bad.path / "config.toml").write_text("= nonsense")
    (bad.path / "state.json").write_text("{")
    (bad.path / "command.json").write_text('{"argv": 3}')
    assert set(client.get("/api/runs").json()["runs"]) == {bad.id, good.id}
    full = client.get(f"/api/runs/{bad.id}").json()
    assert full["config"]["toml"] == "" and full["actions"] == ["delete"]
    assert "cannot duplicate" in said(client.post(f"/api/runs/{bad.id}/duplicate"))


@pytest.mark.long
def test_five_hundred_runs_stay_cheap(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.web.run_facts._FRESH_SECONDS", 0.0)
    text = files.render(files.build({}, {}))
    for n in range(500):
        path = runs.home() / "runs" / f"run-{n:03d}"
        (path / "samples").mkdir(parents=True)
        (path / "config.toml").write_text(text)
        Run(path).write_state(State("done", step=9, steps=9))
    version = client.get("/api/runs").json()["version"]
    began = time.process_time()
    for _ in range(10):
        assert client.get("/api/runs", params={"since": version}).json()["runs"] == {}
    each = (time.process_time() - began) / 10
    print(f"{each * 1000:.1f} ms")
    assert each < 0.05


# --- one run ----------------------------------------------------------------------------------------------------------


def test_one_run_in_full(client: TestClient) -> None:
    run = made(state=State("stopped", step=20, steps=60), **{"train.steps": "60"})
    for n in (1, 0):
        picture(run, f"step-00000020_0{n}.png")
    run.event("sample", step=20, path="step-00000020_00.png", prompt="a cat", seed=0)
    run.event("memory", step=20, memory_mib=700)
    run.event("speed", step=20, images_per_second=4.0, device=0.5, hint="launch-bound")
    run.event("warning", message="2 captions are too long")
    (run.samples / "notes.txt").write_text("no sample")
    (run.checkpoints / "cat-step00000020.safetensors").write_bytes(b"x" * 300)
    run.event("checkpoint", step=20, path=str(run.checkpoints / "cat-step00000020.safetensors"))
    (run.states / "step-00000020").mkdir()
    run.log.write_text("a line\n" * 2000 + "the last line\n")
    disk.write_json(run.path / "command.json", {"argv": ["python", "-m", "limner.engine", "a b"], "environment": {"X": "1"}})
    full = client.get(f"/api/runs/{run.id}").json()
    assert full["actions"] == ["resume", "duplicate", "delete"] and full["resume_step"] == 20 and full["memory"] == 700
    assert full["meter"]["images_per_second"] == 4.0 and full["meter"]["hint"] == "launch-bound"
    assert full["meter"]["tflops"] is full["meter"]["utilisation"] is None
    assert full["status"] == "stopped" and full["warnings"] == ["2 captions are too long"]
    assert full["samples"] == {"names": ["step-00000020_00.png", "step-00000020_01.png"], "prompts": {"00": "a cat"}}
    (checkpoint,) = full["checkpoints"]
    assert (checkpoint["name"], checkpoint["bytes"], checkpoint["step"]) == ("cat-step00000020.safetensors", 300, 20)
    assert full["config"]["differences"] == [
        {"field": "train.steps", "value": "60", "default": ""},
        {"field": "sample.prompts", "value": '["a cat","a dog"]', "default": "[]"},
        {"field": "output.name", "value": "cat", "default": "limner"},
    ]
    assert files.build(files.parse(full["config"]["toml"], ""), {}) == run.config()
    assert full["config"]["command"] == "X=1 python -m limner.engine 'a b'"
    assert full["log"]["tail"].endswith("a line\nthe last line\n") and len(full["log"]["tail"]) == 8000


def test_unchanged_parts_are_left_out(client: TestClient) -> None:
    run = made(state=live(step=1, steps=5))
    first = client.get(f"/api/runs/{run.id}").json()
    again = client.get(f"/api/runs/{run.id}", params={"since": first["version"]}).json()
    assert not {"config", "samples", "checkpoints", "log"} & again.keys() and again["status"] == "running"
    picture(run, "step-00000001_00.png")
    run.log.write_text("hello")
    third = client.get(f"/api/runs/{run.id}", params={"since": first["version"]}).json()
    assert third["samples"]["names"] == ["step-00000001_00.png"] and third["log"] == {"tail": "hello"} and "config" not in third


def test_curves_are_sent_once(client: TestClient) -> None:
    run = made()
    run.event("step", step=1, loss=0.5, lr={"denoiser": 0.001})
    first = client.get(f"/api/runs/{run.id}/curves").json()
    assert (
        first["steps"] == [1]
        and first["smooth"] == [0.5]
        and first["rates"] == {"denoiser": [0.001]}
        and first["norm"] == [None]
    )
    path = f"/api/runs/{run.id}/curves"
    assert client.get(path, params={"since": first["version"]}).json() == {"version": first["version"]}
    run.event("step", step=2, loss=0.25, lr={"denoiser": 0.001})
    assert client.get(path, params={"since": first["version"]}).json()["steps"] == [1, 2]
    assert client.get(path, params={"points": 10**9}).status_code == 422


def test_two_runs_compared(client: TestClient) -> None:
    one, two = made("one", **{"optimizer.lr": "1e-3"}), made("two", **{"train.steps": "7"})
    rows = client.get(f"/api/runs/{one.id}/compare", params={"other": two.id}).json()["differences"]
    assert {row["field"]: (row["value"], row["other"]) for row in rows} == {
        "optimizer.lr": ("0.001", ""), "train.steps": ("", "7"), "output.name": ("one", "two"),
    }  # fmt: skip


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_are_attachments_that_are_not_sniffed(client: TestClient) -> None:
    run = made()
    picture(run, "step-00000001_00.png", 300)
    (run.checkpoints / "cat.safetensors").write_bytes(b"\0" * (3 << 20))
    run.log.write_text("<script>")
    base = f"/api/runs/{run.id}"
    begins = {
        "samples/step-00000001_00.png": PNG,
        "checkpoints/cat.safetensors": b"\0\0",
        "log": b"<script>",
        "config.toml": b"[model]",
    }
    for path, first in begins.items():
        answer = client.get(f"{base}/{path}")
        assert answer.status_code == 200 and answer.content.startswith(first)
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["content-disposition"].startswith(
            "attachment"
        )
    assert client.get(f"{base}/checkpoints/cat.safetensors").content == b"\0" * (3 << 20)
    small = client.get(f"{base}/samples/step-00000001_00.png", params={"w": 100})
    assert small.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(small.content)).size == (128, 128)


def test_small_samples_are_made_once_and_sent_once(client: TestClient, home: Path) -> None:
    run = made()
    picture(run, "step-00000001_00.png", 300)
    address = f"/api/runs/{run.id}/samples/step-00000001_00.png"
    first = client.get(address, params={"w": 256})
    [kept] = (home / "cache" / "thumbnails").glob("??/*")
    assert first.content == kept.read_bytes() and Image.open(kept).size == (256, 256)
    again = client.get(address, params={"w": 256}, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    kept.write_bytes(b"\xff\xd8kept\xff\xd9")
    assert client.get(address, params={"w": 200}).content == b"\xff\xd8kept\xff\xd9", "it is not made anew"
    kept.write_bytes(first.content[:-9])
    assert client.get(address, params={"w": 200}).content == first.content, "a damaged one is"
    picture(run, "step-00000001_00.png", 200)
    changed = client.get(address, params={"w": 256}, headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200 and Image.open(io.BytesIO(changed.content)).size == (200, 200)


def test_a_whole_model_comes_as_a_zip(client: TestClient) -> None:
    run = made()
    folder = run.checkpoints / "cät"
    (folder / "unet").mkdir(parents=True)
    content = os.urandom(2_500_000)
    (folder / "unet" / "weights.safetensors").write_bytes(content)
    (folder / "model_index.json").write_text("{}")
    (folder / "link").symlink_to("/etc/passwd")
    answer = client.get(f"/api/runs/{run.id}/checkpoints/cät")
    assert answer.headers["content-type"] == "application/zip" and "c%C3%A4t.zip" in answer.headers["content-disposition"]
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert sorted(archive.namelist()) == ["cät/model_index.json", "cät/unet/weights.safetensors"] and archive.testzip() is None
    assert archive.read("cät/unet/weights.safetensors") == content


def test_in_a_shared_folder_only_the_runs_own_files_are_served(client: TestClient, tmp_path: Path) -> None:
    shared = tmp_path / "loras"
    shared.mkdir()
    run = made(**{"output.path": str(shared)})
    for name in ("cat.safetensors", "somebody-elses.safetensors"):
        (shared / name).write_bytes(b"x")
    run.event("checkpoint", step=3, path=str(shared / "cat.safetensors"))
    assert [c["name"] for c in client.get(f"/api/runs/{run.id}").json()["checkpoints"]] == ["cat.safetensors"]
    assert client.get(f"/api/runs/{run.id}/checkpoints/cat.safetensors").content == b"x"
    assert "has no file" in said(client.get(f"/api/runs/{run.id}/checkpoints/somebody-elses.safetensors"))


HOSTILE = ["..", "%2e%2e", "%2e%2e%2fconfig.toml", "..%5cconfig.toml", "%2fetc%2fpasswd", "C:%5cWindows", "%00", "a%00b"]
HOSTILE += ["x" * 10_000, ".", "%20", "$(x)", "%22;touch%20x%20%23"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_find_nothing(client: TestClient, name: str, home: Path) -> None:
    run = made()
    picture(run, "step-00000001_00.png")
    (run.samples / "link_00.png").symlink_to("/etc/passwd")
    (run.checkpoints / "link").symlink_to("/etc/passwd")
    before = sorted(str(p) for p in home.rglob("*"))
    paths = [f"/api/runs/{name}", f"/api/runs/{name}/curves", f"/api/runs/{name}/log", f"/api/runs/{name}/config.toml"]
    paths += [f"/api/runs/{run.id}/samples/{name}", f"/api/runs/{run.id}/checkpoints/{name}", f"/api/runs/{name}/samples/a.png"]
    for path in paths:
        answer = client.get(path)
        listed = path == "/api/runs/." or answer.url.path in ("/api/runs/", "/api/runs", f"/api/runs/{run.id}")
        assert answer.status_code in (404, 405, 422) or listed, (path, answer.status_code)
        assert b"root:" not in answer.content and len(answer.content) < 10_000
    for action in ("stop", "delete", "resume"):
        assert client.post(f"/api/runs/{name}/{action}").status_code in (404, 405, 422)
    assert client.post(f"/api/runs/{run.id}/{name}").status_code in (404, 405, 422)
    assert sorted(str(p) for p in home.rglob("*")) == before


def test_links_are_not_followed(client: TestClient) -> None:
    run = made()
    (run.samples / "step-00000001_00.png").symlink_to("/etc/passwd")
    (run.checkpoints / "link").symlink_to("/etc")
    assert "has no file" in said(client.get(f"/api/runs/{run.id}/samples/step-00000001_00.png"))
    assert "has no file" in said(client.get(f"/api/runs/{run.id}/checkpoints/link"))


# --- changes ----------------------------------------------------------------------------------------------------------


def test_requests_to_a_live_run(client: TestClient) -> None:
    run = made(state=live(step=1, steps=9))
    assert client.get(f"/api/runs/{run.id}").json()["actions"] == ["stop", "sample", "save", "change", "stop-now", "duplicate"]
    for action in ("sample", "save", "stop"):
        assert client.post(f"/api/runs/{run.id}/{action}").json() == {}
        assert (run.path / "control" / action).exists()
    full = client.get(f"/api/runs/{run.id}").json()
    assert full["asked"] is True and full["actions"] == ["stop-now", "duplicate"]
    assert "cannot stop" in said(client.post(f"/api/runs/{run.id}/stop"))
    assert "is running or waiting" in said(client.post(f"/api/runs/{run.id}/delete"))
    assert "is running" in said(client.post(f"/api/runs/{run.id}/resume"))


def test_changes_of_a_live_run(client: TestClient) -> None:
    run = made(state=live(step=3, steps=9), **{"train.steps": "9", "optimizer.lr": "0.001"})
    held = {"optimizer.lr": "0.001", "train.steps": "9", "sample.every_steps": "", "sample.prompts": ["a cat", "a dog"]}
    assert client.get(f"/api/runs/{run.id}").json()["now"] == held
    asked = {"options": {"optimizer.lr": "5e-5", "sample.prompts": '["x"]', "sample.every_steps": "2"}}
    assert client.post(f"/api/runs/{run.id}/change", json=asked).json() == {}
    ((_, text),) = run.take_changes()
    options = changes.parse(text, "")
    assert options == {"optimizer.lr": 5e-5, "sample.prompts": ["x"], "sample.every_steps": 2}
    run.event("change", step=3, id="a", options=options)
    full = client.get(f"/api/runs/{run.id}").json()
    assert full["config"]["changes"] == [{"step": 3, "options": options}]
    assert full["now"] == held | {"optimizer.lr": "5e-05", "sample.prompts": ["x"], "sample.every_steps": "2"}
    for refused, words in (
        ({"data.resolution": "64"}, "data.resolution: cannot be changed while a run goes on"),
        ({"train.steps": "2"}, "less than the 3 steps"),
        ({}, "nothing is to be changed"),
    ):
        answer = client.post(f"/api/runs/{run.id}/change", json={"options": refused})
        assert words.replace("resolution cannot", "resolution: cannot") in said(answer).replace("  ", " ") or words in said(
            answer
        )
    assert client.post(f"/api/runs/{run.id}/change", json={"options": {"train.steps": 3}}).status_code == 422
    assert run.take_changes() == []
    run.request("stop")
    assert "is being stopped" in said(client.post(f"/api/runs/{run.id}/change", json=asked))


def test_stop_now_does_not_keep_the_server_waiting(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, ended = threading.Event(), threading.Event()
    called: list[tuple[str, bool]] = []

    def stop(run: Run, now: bool) -> None:
        called.append((run.id, now))
        may_end.wait(60)
        ended.set()

    monkeypatch.setattr(runs_api.jobs, "stop", stop)
    run = made(state=live())
    assert client.post(f"/api/runs/{run.id}/stop-now").status_code == 200
    assert not ended.is_set(), "the answer comes while the stopping goes on"
    may_end.set()
    assert ended.wait(60) and called == [(run.id, True)]


def test_resume_goes_through_the_queue(client: TestClient, started: list[int]) -> None:
    one, two = made("one", State("stopped", step=3, steps=9)), made("two", State("failed"))
    for run in (one, two):
        assert client.post(f"/api/runs/{run.id}/resume").status_code == 200
    assert started == [1, 1] and client.get("/api/runs").json()["queue"] == [one.id, two.id]
    assert client.post("/api/queue", json={"order": [two.id, "../x", two.id]}).json() == {"queue": [two.id, one.id]}
    assert "is running, waiting or finished" in said(client.post(f"/api/runs/{one.id}/resume"))
    assert client.get(f"/api/runs/{one.id}").json()["actions"] == ["stop", "duplicate"]
    assert client.post(f"/api/runs/{one.id}/stop").status_code == 200
    assert queue.waiting() == [two.id] and one.state().status == "stopped" and one.state().step == 3


@pytest.mark.parametrize("body", [{}, {"order": "x"}, {"order": [1]}, {"order": ["x"] * 10_001}, []])
def test_a_misshapen_order_is_refused(client: TestClient, body: Any) -> None:
    assert client.post("/api/queue", json=body).status_code == 422


@pytest.mark.parametrize(
    ("state", "refused"),
    [
        (State("queued"), ["stop", "stop-now", "sample", "save"]),
        (State("done"), ["stop", "stop-now", "sample", "save", "resume"]),
        (State("stopped"), ["stop", "stop-now", "sample", "save"]),
        (State("failed"), ["stop", "stop-now", "sample", "save"]),
    ],
)
def test_what_does_not_apply_is_refused_in_words(client: TestClient, state: State, refused: list[str]) -> None:
    run = made(state=state)
    before = sorted(p.name for p in run.path.rglob("*"))
    for action in refused:
        assert f"cannot {action}: it is" in said(client.post(f"/api/runs/{run.id}/{action}"))
    assert sorted(p.name for p in run.path.rglob("*")) == before
    assert "is not known" in said(client.post(f"/api/runs/{run.id}/explode"))


def test_sampling_needs_prompts(client: TestClient) -> None:
    run = made(state=live(), **{"sample.prompts": "[]"})
    assert "has no prompts" in said(client.post(f"/api/runs/{run.id}/sample"))


def test_duplicate_gives_back_what_was_set(client: TestClient) -> None:
    run = made("cat", State("done"), **{"train.steps": "7", "adapter.kind": "none"})
    values = client.post(f"/api/runs/{run.id}/duplicate").json()["values"]
    assert files.build({}, values) == run.config() and values["train.steps"] == "7"


def test_delete_moves_to_the_trash(client: TestClient, home: Path) -> None:
    run = made(state=State("done"))
    assert client.post(f"/api/runs/{run.id}/delete").status_code == 200
    assert (home / "trash" / run.id / "config.toml").exists() and client.get("/api/runs").json()["order"] == []
    assert "there is no run" in said(client.get(f"/api/runs/{run.id}"))


@pytest.mark.parametrize("action", ["stop", "stop-now", "sample", "save", "resume", "delete", "duplicate"])
def test_reading_never_changes(client: TestClient, action: str) -> None:
    run = made(state=live())
    assert client.get(f"/api/runs/{run.id}/{action}").status_code in (404, 405)
    assert list((run.path / "control").iterdir()) == []
