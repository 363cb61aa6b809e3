"""The routes of "New run": what is taken in, what is refused, and that nothing wrong is ever written or started."""

from __future__ import annotations

import io
import json
import os
import shlex
import stat
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import tiny
from headers import parts_beside, published, single_file
from limner import early, machine, queue, runner, runs
from limner.cli import words as typed
from limner.config import files, presets
from limner.data import undo
from limner.errors import Finding
from limner.settings import Settings
from limner.web import intake
from limner.web.app import bare_app
from limner.web.context import Context
from limner.web.words import Words

TOKEN = "0123456789abcdef"
CPU = {"torch": "2.13.0", "torch_build": "cpu", "cores": 2, "memory_mib": 16_000, "gpu_without_torch": ""}
CPU |= {"devices": [{"kind": "cpu", "name": "x86", "memory_mib": 16_000, "bf16": True}]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one allowed folder: all folders of these tests lie in it."""
    return tmp_path_factory.getbasetemp().resolve()


@pytest.fixture(scope="module")
def client(root: Path) -> TestClient:
    return TestClient(bare_app(Context(Settings(), (root,), Words())))  # not entered: nothing runs beside the requests


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that wait when the runner is called. It is not started: what it does has tests of its own."""
    out: list[str] = []
    monkeypatch.setattr(machine, "_ask", lambda: CPU)
    monkeypatch.setattr(runner, "ensure_runner", lambda: out.extend(queue.waiting()))
    return out


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    return tiny.pictures(tmp_path / "pics")


def ask(client: TestClient, route: str, /, **body: Any) -> Any:
    answer = client.post(f"/api/{route}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(client: TestClient, route: str, /, **body: Any) -> list[dict[str, str]]:
    answer = client.post(f"/api/{route}", json=body)
    assert answer.status_code == 422, answer.text
    assert all(f["field"] and f["message"] and f["remedy"] for f in answer.json()["findings"])
    return answer.json()["findings"]


def upload(client: TestClient, name: str, content: bytes, token: str = TOKEN) -> Any:
    return client.post("/api/upload", params={"token": token, "name": name}, content=content)


def png(side: int = 32, colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(out, "PNG")
    return out.getvalue()


def packed(entries: dict[str, bytes], **flags: Any) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = flags.get(name.split("/")[-1].split(".")[0], 0) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# --- pictures ---


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("a.png", "a.png"),
        ("Ünï 猫 🐈.PNG", "Ünï 猫 🐈.png"),
        ("../../etc/x.png", "x.png"),
        ("C:\\Users\\me\\a.jpg", "a.jpg"),
        ('a"b<c>:d|e?.png', "a_b_c__d_e_.png"),
        ("con.png", "_con.png"),
        (".hidden.png", "hidden.png"),
        ("$(touch x).png", "_(touch x).png"),
        ("a\u202eb\x00.png", "ab.png"),
        ("-rf.png", "rf.png"),
    ],
)
def test_names_become_harmless(client: TestClient, home: Path, name: str, saved: str) -> None:
    answer = upload(client, name, png()).json()
    assert answer["saved"] == [saved]
    assert tree(home) == [f"pictures/{TOKEN}/{saved}"]


def test_a_long_name_is_cut_and_keeps_its_ending(client: TestClient, home: Path) -> None:
    [saved] = upload(client, "ü" * 3000 + ".png", png()).json()["saved"]
    assert saved == "ü" * 75 + ".png"


def test_pictures_of_one_name_are_numbered_and_captions_replaced(client: TestClient, home: Path) -> None:
    for name, content in (("a.png", png()), ("a.png", png()), ("a.jpg", png()), ("a.txt", b"one"), ("a.txt", b"two")):
        upload(client, name, content)
    folder = home / "pictures" / TOKEN
    assert tree(folder) == ["a-2.png", "a-3.jpg", "a.png", "a.txt"]
    assert (folder / "a.txt").read_text() == "two"


@pytest.mark.parametrize("name", ["a.svg", "a.exe", "a", "", "a.png.sh", "..", "/"])
def test_what_is_no_picture_is_refused(client: TestClient, home: Path, name: str) -> None:
    assert upload(client, name, b"x").status_code == 422
    assert not home.exists() or tree(home) == []


@pytest.mark.parametrize("token", ["", "../../x", "a" * 15, "g" * 16, "a" * 65, "0123456789ABCDEF"])
def test_only_our_own_tokens_name_a_folder(client: TestClient, home: Path, token: str) -> None:
    assert upload(client, "a.png", png(), token).status_code == 422
    assert not home.exists() or tree(home) == []


def test_a_picture_that_is_too_large_leaves_nothing(client: TestClient, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_PICTURE_BYTES", 1 << 20)
    answer = upload(client, "a.png", bytes((1 << 20) + 1))
    assert answer.status_code == 422 and "larger than 1 MiB" in answer.json()["findings"][0]["message"]
    assert tree(home) == []


def test_what_is_too_large_can_be_learnt_without_sending_it(client: TestClient, home: Path) -> None:
    about = {"token": TOKEN, "name": "a.zip"}
    answer = client.post("/api/upload", params=about | {"size": (4 << 30) + 1})
    assert answer.status_code == 422 and "Pack it in parts" in answer.json()["findings"][0]["remedy"]
    answer = client.post("/api/upload", params=about | {"name": "a.png", "size": 9}, content=b"12345678")
    assert answer.status_code == 422 and "did not come whole" in answer.json()["findings"][0]["message"]
    assert not home.exists() or tree(home) == []


def test_a_zip_gives_its_pictures_and_captions_and_nothing_else(client: TestClient, home: Path, tmp_path: Path) -> None:
    content = packed(
        {
            "10_cat/a.png": png(),
            "10_cat/a.txt": b"a cat",
            "猫/b.png": png(),
            "__MACOSX/._a.png": b"x",
            "10_cat/.DS_Store": b"x",
            "run.sh": b"#!",
            "../out.png": png(),
            "/abs.png": png(),
            "C:/win.png": png(),
            "..\\back.png": png(),
            "link.png": b"/etc/passwd",
            "bomb.png": bytes(5_000_000),
            "1/2/3/4/5/deep.png": png(),
        },
        link=stat.S_IFLNK,
    )
    answer = upload(client, "all.zip", content).json()
    assert sorted(answer["saved"]) == ["10_cat/a.png", "10_cat/a.txt", "猫/b.png"]
    folder = home / "pictures" / TOKEN
    assert tree(folder) == ["10_cat/a.png", "10_cat/a.txt", "猫/b.png"]
    why = {f["field"]: f["message"] for f in answer["refused"]}
    assert len(why) == 8 and "link" in why["link.png"] and "tightly" in why["bomb.png"] and "elsewhere" in why["../out.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]
    again = upload(client, "again.zip", packed({"10_cat/a.txt": b"another cat", "10_cat/a.png": png()})).json()
    assert sorted(again["saved"]) == ["10_cat/a-2.png", "10_cat/a-2.txt"]
    assert (folder / "10_cat" / "a.txt").read_text() == "a cat"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip", packed({"a.png": png()})[:-30]])
def test_a_damaged_zip_is_refused(client: TestClient, home: Path, content: bytes) -> None:
    assert upload(client, "a.zip", content).status_code == 422
    assert tree(home) == []


def test_a_zip_of_too_many_files_is_refused_whole(client: TestClient, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_FILES", 2)
    answer = upload(client, "a.zip", packed({f"{i}.png": png() for i in range(3)}))
    assert answer.status_code == 422 and "holds 3 files" in answer.json()["findings"][0]["message"]
    assert tree(home) == []


def test_pictures_are_listed_with_captions_and_faults(client: TestClient, pics: Path) -> None:
    (pics / "broken.png").write_bytes(b"")
    found = ask(client, "pictures/list", values={"data.path": str(pics), "data.trigger": "zwx", "train.steps": "wrong"})
    assert (found["total"], found["num_broken"]) == (4, 1)
    assert found["broken"][0]["name"] == "broken.png" and "empty" in found["broken"][0]["message"]
    first = found["pictures"][0]
    with Image.open(first["path"]) as picture:
        assert (first["width"], first["height"]) == picture.size
    assert "zwx" not in first["caption"]


def test_captions_are_written_beside_their_pictures(client: TestClient, pics: Path) -> None:
    picture = pics / "new.png"
    picture.write_bytes(png())
    values = {"data.path": str(pics)}
    assert ask(client, "caption", values=values, path=str(picture), text="  a cat\n on a mat ") == {"caption": "a cat on a mat"}
    assert (pics / "new.txt").read_text() == "a cat on a mat\n"
    values["data.caption_extensions"] = '[".caption",".txt"]'
    ask(client, "caption", values=values, path=str(picture), text="猫")
    assert (pics / "new.txt").read_text(encoding="utf-8") == "猫\n" and not (pics / "new.caption").exists()
    ask(client, "caption", values=values, path=str(picture), text=" ")
    assert not (pics / "new.txt").exists()
    refusal(client, "caption", values=values, path=str(picture), text="bell \x07")
    refusal(client, "caption", values=values, path=str(picture), text="x" * (2 << 20))
    refusal(client, "caption", values=values, path="/etc/passwd", text="x")
    refusal(
        client, "caption", values=values | {"data.caption_extensions": '["/../../../x.txt"]'}, path=str(picture), text=["x"]
    )
    refusal(client, "caption", values=values | {"data.caption_extensions": '["/../../../x.txt"]'}, path=str(picture), text="y")
    assert not (pics.parent.parent / "x.txt").exists()
    # the Dataset page can take it back
    ask(client, "caption", values={"data.path": str(pics)}, path=str(picture), text="y")
    assert (pics / "new.txt").read_text() == "y\n"
    assert undo.Journal(runs.home() / "undo").undo(pics, lambda _: True) is not None
    assert not (pics / "new.txt").exists()


def test_a_caption_never_follows_a_link_out(client: TestClient, pics: Path) -> None:
    (pics / "new.png").write_bytes(png())
    (pics / "new.txt").symlink_to("/etc/passwd")
    refusal(client, "caption", values={"data.path": str(pics)}, path=str(pics / "new.png"), text="x")


# --- values ---


def test_the_plan_and_what_the_pictures_propose(client: TestClient, pics: Path) -> None:
    said = ask(client, "check", values={"data.path": str(pics), "train.batch_size": "2"})
    assert [f for f in said["findings"] if f["severity"] == "error"] == []
    plan = said["plan"]
    assert (plan["family"], plan["trains"], plan["resolution"], plan["pictures"], plan["steps"]) == ("sd1", "lora", 64, 4, 500)
    assert sum(count for _, _, count in plan["buckets"]) == 4
    assert plan["seconds"] is None and plan["memory_mib"] is None
    assert said["proposals"]["sample.every_steps"] == "100"
    assert len(json.loads(said["proposals"]["sample.prompts"])) in (1, 2)


def test_time_and_memory_are_those_of_the_last_run_of_the_same_shape(client: TestClient, pics: Path) -> None:
    values = {"data.path": str(pics), "train.steps": "40"}
    run = runs.create(files.build({}, values))
    lines = [{"event": "step", "time": 100.0 + 2 * i, "step": i, "loss": 1.0} for i in range(1, 21)]
    lines.append({"event": "memory", "time": 150.0, "step": 20, "memory_mib": 1234})
    (run.path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = ask(client, "check", values=values)["plan"]
    assert (plan["seconds"], plan["memory_mib"]) == (80, 1234)
    assert ask(client, "check", values=values | {"train.batch_size": "2"})["plan"]["seconds"] is None


def test_train_makes_a_run_that_waits_with_exactly_what_was_typed(
    client: TestClient, pics: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(early, "read_early", read.append)
    assert client.post("/api/train", json={"values": {"data.path": str(pics), "model.base": "/etc/passwd"}}).status_code == 422
    assert read == []
    values = {"data.path": str(pics), "data.trigger": 'a "zwx" 猫', "train.steps": "7", "optimizer.lr": "1e-300"}
    run = runs.find(ask(client, "train", values=values)["run"])
    assert started == [run.id] and run.state().status == "waiting"
    assert files.overrides_of(run.config()) == values
    assert read == [run.config()]


WRONG: list[tuple[str, str]] = [
    ("data.path", "/etc"),
    ("data.path", "/"),
    ("data.path", "../../etc"),
    ("data.path", "{pics}/../../../../../../../../etc"),
    ("data.path", "{pics}/out"),
    ("data.path", "C:\\x"),
    ("data.path", "\\\\host\\share"),
    ("data.path", "relative"),
    ("data.path", "x" * 10_000_000),
    ("data.path", ""),
    ("data.path", "/x\0y"),
    ("data.path", "~root"),
    ("model.base", "/etc/passwd"),
    ("model.base", "../x"),
    ("model.base", "C:\\x"),
    ("model.base", "{pics}/out/model.safetensors"),
    ("model.base", "$(x)"),
    ("model.base", "x" * 10_000_000),
    ("model.config", "/etc"),
    ("output.path", "/etc/limner"),
    ("output.path", "C:\\x"),
    ("output.path", "{pics}/out/new"),
    ("output.path", "relative"),
    ("sample.prompt_file", "/etc/passwd"),
    ("memory.cache_path", "/var/tmp/limner-not-allowed"),
    ("output.name", "/../../x"),
    ("output.name", '"; touch x #'),
    ("output.name", "$(x)"),
    ("output.name", "C:\\x"),
    ("output.name", ""),
    ("output.name", "x" * 10_000_000),
    ("data.trigger", "x" * 10_000_000),
    ("sample.prompts", "x" * 10_000_000),
    ("sample.prompts", '["x", 1]'),
    ("train.seed", "nan"),
    ("train.seed", "1" + "0" * 400),
    ("train.seed", "-1"),
    ("train.steps", "1" + "0" * 400),
    ("train.steps", "0"),
    ("train.steps", "$(x)"),
    ("optimizer.lr", "nan"),
    ("optimizer.lr", "inf"),
    ("optimizer.lr", "1" + "0" * 400),
    ("optimizer.lr", "1e400"),
    ("optimizer.lr", "x" * 10_000_000),
    ("optimizer.weight_decay", "NaN"),
    ("train.clip_norm", "nan"),
    ("train.clip_norm", "1" + "0" * 400),
    ("data.buckets", "yes"),
    ("adapter.kind", "../x"),
    ("no.such", "1"),
    ("__class__", "1"),
    ("x" * 100_000, "1"),
]


@pytest.mark.parametrize(("field", "typed"), WRONG, ids=[f"{f[:30]}-{t[:30]!r}" for f, t in WRONG])
@pytest.mark.parametrize("route", ["train", "toml", "command"])
def test_wrong_values_are_refused_at_their_field_and_nothing_is_written(
    client: TestClient, pics: Path, tmp_path: Path, home: Path, started: list[str], field: str, typed: str, route: str
) -> None:
    (pics / "out").symlink_to("/etc")
    before = tree(tmp_path)
    values = {"data.path": str(pics), field: typed.replace("{pics}", str(pics))}
    if route != "train" and (field, typed) in LATER:
        return  # a file's name or a base model does no harm before there is a run
    found = refusal(client, route, values=values)
    assert field in [f["field"] for f in found], found
    assert len(json.dumps(found)) < 300_000
    assert started == [] and runs.all_runs() == []
    assert [p for p in tree(tmp_path) if p not in before and not p.endswith("machine.json")] == []


LATER = [(f, t) for f, t in WRONG if f == "output.name" or (f == "model.base" and t in ("C:\\x", "$(x)"))]


def test_a_broken_torch_is_asked_once_and_said_beside_the_plan(
    client: TestClient, pics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def broken() -> None:
        asked.append(1)
        raise machine.NoAnswer([Finding("torch", "cannot be used here.", "Install it again.")])

    monkeypatch.setattr(machine, "_ask", broken)
    for _ in range(5):
        said = ask(client, "check", values={"data.path": str(pics)})
        while said["again"]:  # a busy machine: the question was not answered in time
            said = ask(client, "check", values={"data.path": str(pics)})
        assert said["findings"][0]["field"] == "torch" and said["plan"]["pictures"] > 0
    assert refusal(client, "train", values={"data.path": str(pics)})[0]["field"] == "torch"
    assert asked == [1] and queue.waiting() == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"values": []}', b'{"values": {"train.steps": 1}}', b'{"values": {"a": null}}']
)
@pytest.mark.parametrize("route", ["check", "train", "toml", "command", "pictures/list", "caption", "presets/save"])
def test_misshapen_requests_are_refused(client: TestClient, home: Path, body: bytes, route: str) -> None:
    answer = client.post(f"/api/{route}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and answer.json()["findings"]
    assert not (home / "runs").exists() and not (home / "presets").exists()


def test_toml_goes_out_and_comes_back(client: TestClient, pics: Path) -> None:
    values = {"data.path": str(pics), "adapter.kind": "none", "sample.prompts": '["a \\"b\\"","猫"]', "output.author": ""}
    said = ask(client, "toml", values=values)
    assert said["name"] == "limner.toml" and tomllib.loads(said["text"])["adapter"]["kind"] == "none"
    assert ask(client, "import", name="a.toml", text=said["text"]) == {"values": values, "report": []}
    assert refusal(client, "import", name="a.toml", text="[train]\nsteps = 0\nnope = 1\n")[0]["field"] == "train.steps"
    refusal(client, "import", name="a.toml", text="not toml")
    refusal(client, "import", name="a.toml", text="[" * 5000)
    refusal(client, "import", name="a.toml", text="#" * (2 << 20))


def test_the_command_line_says_the_same(client: TestClient, pics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"data.path": str(pics), "data.trigger": "a 'b' \"c\" $(x) --y\nz", "train.seed": "3", "output.author": ""}
    said = ask(client, "command", values=values)
    program, verb, *flags = shlex.split(said["flags"])
    assert (program, verb) == ("limner", "train")
    assert dict(typed.pairs(tuple(flags))) == values
    assert "limner.engine" in said["process"] and said["process"].endswith(os.path.join("runs", "RUN"))


# --- presets and models ---


def test_shipped_presets_load_say_why_and_differ(client: TestClient) -> None:
    """Whether they suit their families is tested in test_presets.py."""
    listed = client.get("/api/presets").json()
    found = {p["name"]: p for p in listed}
    sd1 = {f"sd1-{k}" for k in ("lora-person", "lora-style", "lora-object", "fine-tune")}
    assert {n for n in found if not n.startswith("memory-")} == sd1 | {"sdxl-lora", "sdxl-fine-tune", "sd3-flux-lora"}
    assert all(not p["problem"] and len(p["about"]) > 40 and p["values"] and not p["own"] for p in listed)
    assert len({json.dumps([p["families"], p["values"], p["about"]]) for p in listed}) == len(found) == len(listed)
    for file in presets.SHIPPED.glob("*.toml"):
        assert file.read_text(encoding="utf-8").startswith("# ")
    assert {n for n in found if found[n]["adds"]} == {n for n in found if n.startswith("memory-")}
    flux = [n for n in found if found[n]["families"] == ["flux"] and "lora" in n]
    assert flux == [f"memory-flux-lora-{gb}gb" for gb in (12, 16, 24, 48)]
    # what is stated is sent, be it the default: an earlier preset's is taken back by it
    assert found["memory-flux-lora-48gb"]["values"]["memory.swap_blocks"] == "0"


def test_a_preset_that_could_not_be_read_again_is_refused(client: TestClient, home: Path) -> None:
    def prompts(letter: str, size: int) -> dict[str, str]:
        return {"sample.prompts": json.dumps([letter * 10_000] * (size // 10_000), ensure_ascii=False)}

    assert ask(client, "presets/save", name="long", values=prompts("x", 1_000_000))["problem"] == ""
    more = prompts("x", 1_000_000) | {"output.tags": prompts("x", 1_000_000)["sample.prompts"]}
    unknown = {f"optimizer.learn{i:06}": "1" for i in range(100_000)}
    for values in (prompts("猫", 400_000), more, unknown):
        [said] = refusal(client, "presets/save", name="longer", values=values)
        assert (said["field"], said["message"]) == ("preset", "would be longer than 1 MiB.")
    assert tree(home / "presets") == ["long.toml"]


def test_presets_of_ones_own(client: TestClient, home: Path) -> None:
    values = {"train.steps": "5", "output.author": "", "adapter.kind": "none"}
    kept = ask(client, "presets/save", name="Mein 猫 v1", values=values)
    assert kept["own"] and kept["values"] == values and kept["about"] == "Mein 猫 v1"
    assert "Mein 猫 v1" in [p["name"] for p in client.get("/api/presets").json()]
    (home / "presets" / "bad.toml").write_text("[train]\nsteps = 'x'\n")
    assert "train.steps" in next(p for p in client.get("/api/presets").json() if p["name"] == "bad")["problem"]
    ask(client, "presets/delete", name="Mein 猫 v1")
    assert tree(home / "presets") == ["bad.toml"]
    for name in ("", "..", "../x", "a/b", "C:\\x", "/etc/x", "con", "$(x)", "x" * 500, ".h"):
        refusal(client, "presets/save", name=name, values=values)
        refusal(client, "presets/delete", name=name)
    refusal(client, "presets/delete", name="sd1-fine-tune")
    assert tree(home / "presets") == ["bad.toml"]


def test_models_are_found_and_recognised(client: TestClient, home: Path, tiny_model: Path) -> None:
    (home / "models" / "mine").mkdir(parents=True)
    (home / "models" / "mine" / "model").symlink_to(tiny_model)
    (home / "models" / "broken.safetensors").write_bytes(b"x" * 100)
    found = {m["name"]: m for m in client.get("/api/models").json()}
    assert next(iter(found)) == "pocket" and found["pocket"]["resolution"] == 64
    assert (found["model"]["family"], found["model"]["base"]) == ("sd1", str(home / "models" / "mine" / "model"))
    assert found["broken.safetensors"]["problem"]


def test_a_model_that_lacked_its_parts_is_known_once_they_lie_beside_it(client: TestClient, home: Path) -> None:
    folder = home / "models"
    folder.mkdir(parents=True)
    single_file(folder / "dev.safetensors", published("flux"))

    def said() -> dict[str, Any]:
        return next(m for m in client.get("/api/models").json() if m["name"] == "dev.safetensors")

    assert "holds no VAE" in said()["problem"]
    parts_beside(folder, 16)
    assert (said()["problem"], said()["family"]) == ("", "flux")


def test_links_that_lead_out_are_not_followed(client: TestClient, pics: Path, root: Path) -> None:
    outside = root.parent / f"{root.name}-outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret.png").write_bytes(png())
    (outside / "secret.txt").write_text("secret words")
    (pics / "in.png").write_bytes(png())
    (pics / "out").symlink_to(outside)
    listed = client.post("/api/pictures/list", json={"values": {"data.path": str(pics)}})
    assert "secret words" not in listed.text and listed.json()["num_broken"] == 1
    checked = client.post("/api/check", json={"values": {"data.path": str(pics)}}).json()
    assert [f["field"] for f in checked["findings"] if f["severity"] == "error"] == [str(pics / "out")]
    assert client.post("/api/train", json={"values": {"data.path": str(pics)}}).status_code == 422
    skipping = {"values": {"data.path": str(pics), "data.skip_broken": "true"}}
    assert client.post("/api/train", json=skipping).status_code == 422


def test_folders_that_are_dropped_stay_apart(client: TestClient) -> None:
    token = "f" * 16
    for inside, words in (("10_dog", "a dog"), ("1_cat", "a cat")):
        for name, body in (("1.png", png()), ("1.txt", words.encode())):
            taken = client.post("/api/upload", params={"token": token, "name": name, "inside": inside}, content=body)
            assert taken.status_code == 200, taken.text
    folder = taken.json()["path"]
    listed = client.post("/api/pictures/list", json={"values": {"data.path": str(Path(folder).parent)}}).json()
    assert sorted((p["name"].split("/")[-2], p["caption"]) for p in listed["pictures"] if token in p["path"]) == [
        ("10_dog", "a dog"), ("1_cat", "a cat"),
    ]  # fmt: skip
    for inside in ("../../../x", "/etc", "a/b/c/d/e/f"):
        params = {"token": token, "name": "1.png", "inside": inside}
        answer = client.post("/api/upload", params=params, content=png())
        assert answer.status_code == 422 or str(runs.home()) in answer.json()["path"], answer.text
    assert not list(runs.home().parent.glob("x")) and not Path("/etc/1.png").exists()
