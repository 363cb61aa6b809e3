"""The published holes of kohya_ss, AUTOMATIC1111, ComfyUI and Gradio, each tried where Limner's like of it would be.

One test an advisory, named after it; its docstring says what went wrong there, and where the payload is sent here. Besides,
five ways in which words of a configuration become a command's own in kohya_ss and sd-scripts of 2026, which have no number.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_world import SECRET, Asked, World, alone, requests, standing_in
from raw_requests import ask
from safetensors.numpy import save_file

import limner
from limner import jobs, runs, tool_jobs
from limner.config.fields import walk
from limner.config.tools import Tools
from limner.web import gate

SOURCE = Path(limner.__file__).parent
start_as_it_is = tool_jobs.start

SHELL = {  # each fired in a command of kohya_ss 22.6.1; {} is a file that must not come to be
    "quote and semicolon": '"; touch {}; "',
    "quote and newline": 'x"\ntouch {}\n"',
    "quote and ampersands": '" && touch {} && "',
    "dollar": "$(touch {})",
    "backquotes": "`touch {}`",
    "semicolon": ".txt; touch {};",
    "pipe": ".txt|touch {}",
    "ampersand": ".txt & touch {} &",
    "redirection": ".txt > {}",
    "no spaces": ".txt;touch${{IFS}}{}",
}
KOHYA_2024 = pytest.mark.parametrize("payload", SHELL.values(), ids=list(SHELL))


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory, machine_file: Path) -> Iterator[World]:
    """One world for all: each test asserts that it left nothing where it should not."""
    with standing_in(tmp_path_factory.mktemp("world"), machine_file) as world:
        yield world


@pytest.fixture(autouse=True)
def home(standing: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMNER_HOME", str(standing.home))
    return standing.home


@pytest.fixture
def world(standing: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    alone(monkeypatch)
    monkeypatch.chdir(standing.outside.parent)  # where `touch touched` would leave its trace
    before = standing.snapshot()
    yield standing
    assert standing.snapshot() == before
    assert sorted(p.name for p in standing.outside.parent.iterdir()) == ["home", "outside", "root"]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of each process that Limner would start; one that does nothing is started instead."""
    seen: list[list[str]] = []

    def spawn(words: list[str], log: Path, extra: Any = None) -> subprocess.Popen[bytes]:
        seen.append(list(words))
        return subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])

    monkeypatch.setattr(jobs, "spawn", spawn)
    return seen


def pics(world: World) -> Path:
    return world.root / "pics"


def form(world: World, **changed: str) -> dict[str, str]:
    """The values of a run that can be started; `changed` has __ for dots."""
    given: dict[str, str] = requests(pics(world), "")["/api/train"].body["values"]
    return {**given, **{name.replace("__", "."): value for name, value in changed.items()}}


def findings(answer: Any) -> set[str]:
    """The fields at which a request was refused."""
    assert answer.status_code == 422, (answer.status_code, answer.text[:500])
    return {f["field"] for f in answer.json()["findings"]}


def train(world: World, values: dict[str, str], commands: list[list[str]]) -> bool:
    """Press Train, and start what is queued; whether it was taken. The command has nothing of the values in it."""
    answer = world.ask("/api/train", Asked({"values": values}))
    if answer.status_code != 200:
        assert findings(answer)
        return False
    run = runs.named(answer.json()["run"])
    process = jobs.start(run, "cpu")
    assert process is not None
    process.wait()
    assert commands[-1] == [sys.executable, "-m", "limner.engine", str(run.path)]
    assert "touch" not in run.id.replace("touch-touched", "") and set(run.id) <= set(
        "abcdefghijklmnopqrstuvwxyzIFS0123456789-_."
    )
    shutil.rmtree(run.path)
    return True


# --- kohya_ss, April 2024 ---------------------------------------------------------------------------------------------


@KOHYA_2024
def test_CVE_2024_32022(world: World, payload: str) -> None:
    """GHSL-2024-019, a caption's text was part of a shell line. Here captions come by /api/caption and /api/dataset."""
    text, view = payload.format("touched"), requests(pics(world), "")["/api/caption"].body["values"]
    picture, file = pics(world) / "a.png", pics(world) / "a.txt"
    answer = world.ask("/api/caption", Asked({"values": view, "path": str(picture), "text": text}))
    assert answer.status_code == 200 and file.read_text() == " ".join(text.split())
    operation = {"kind": "affix", "text": text, "place": "front"}
    seen = world.ask("/api/dataset/preview", Asked({"view": view, "pictures": ["a.png"], "operation": operation}))
    if "\n" in text:
        assert findings(seen)
    else:
        assert world.ask("/api/dataset/apply", Asked({"id": seen.json()["id"]})).json()["changed"] == 1
        assert file.read_text() == (text + " ".join(text.split())).strip()
    file.write_text("a cat")


@KOHYA_2024
def test_CVE_2024_32026(world: World, payload: str, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """GHSL-2024-020, model, ending and folder of the GIT captioner. Here they are a tool's, started by /api/tools/start."""
    monkeypatch.setattr(tool_jobs, "start", start_as_it_is)
    text = payload.format("touched")
    for option in ("model", "path", "caption_extension", "prompt"):
        given = {"caption.path": str(pics(world)), f"caption.{option}": text, "caption.device": "cpu"}
        answer = world.asking.post("/api/tools/start", json={"tool": "caption", "values": given})
        if answer.status_code != 200:
            assert findings(answer) == {f"caption.{option}"}
            continue
        job = tool_jobs.folder_of_all() / answer.json()["job"]
        assert commands.pop() == [sys.executable, "-m", "limner.tools", str(job)]
        assert job.name.endswith("_caption") or job.name.rpartition("-")[0].endswith("_caption")
        _, section = tool_jobs.read((job / "tool.toml").read_text())
        assert getattr(section, option) == text  # a text it was, a text it is
        assert option in ("model", "prompt")
    assert not commands


@KOHYA_2024
def test_CVE_2024_32025(world: World, payload: str) -> None:
    """GHSL-2024-021, folders and ending of "group images". Here: the tool group_pictures, on a folder of such a name."""
    text = payload.format("touched")
    folder = pics(world) / f"x{text}"  # a name with a dot before it is not shown
    folder.mkdir()
    shutil.copy(pics(world) / "a.png", folder / "a.png")
    try:
        values = {"group_pictures.folder": str(folder), "group_pictures.output": f"{folder}-out", "group_pictures.how": "copy"}
        values |= {"group_pictures.resolution": "64", "group_pictures.least": "1"}
        for route in ("/api/tools/look", "/api/tools/start"):
            answer = world.ask(route, Asked({"tool": "group_pictures", "values": values}))
            assert answer.status_code == 200 if "\n" not in text else findings(answer)
        assert len(list(Path(f"{folder}-out").rglob("a.png"))) == ("\n" not in text)
    finally:
        for made in (folder, Path(f"{folder}-out")):
            shutil.rmtree(made, ignore_errors=True)


@KOHYA_2024
def test_CVE_2024_32027(world: World, payload: str, commands: list[list[str]]) -> None:
    """GHSL-2024-022, ending, folder and metadata file of the fine-tuning tab. Here: the values of Train."""
    text = payload.format("touched")
    taken = {
        name: train(world, form(world, **{name: value}), commands)
        for name, value in {
            "data__trigger": text,
            "data__caption_extensions": json.dumps([text]),
            "data__path": str(pics(world) / text),
            "data__metadata": str(pics(world) / text),
            "output__name": text,
            "sample__prompts": json.dumps([text]),
        }.items()
    }
    assert not taken["data__path"] and not taken["data__metadata"] and not taken["output__name"]
    assert taken["data__caption_extensions"]  # there is no caption of that ending: the trigger is one
    assert "\n" in text or (taken["data__trigger"] and taken["sample__prompts"])


@pytest.mark.parametrize("ending", [".py", "rc", ".bashrc", "", "/../../outside/x", ".sh", ".toml", ".TXT.py"])
def test_CVE_2024_32024(world: World, ending: str) -> None:
    """GHSL-2024-023, a prefix was written into a file of any ending beside any picture. Here: edits of the Dataset page."""
    _no_caption_file(world, ending, {"kind": "affix", "text": "import os; ", "place": "front"})


@pytest.mark.parametrize("ending", ["rc", ".py", ".conf", ""])
def test_CVE_2024_32023(world: World, ending: str) -> None:
    """GHSL-2024-024, words were replaced in all files of any ending in any folder. Here: edits of the Dataset page."""
    _no_caption_file(world, ending, {"kind": "replace", "find": "cat", "by": "import os"})


def _no_caption_file(world: World, ending: str, operation: dict[str, str]) -> None:
    view = {"data.path": str(pics(world)), "data.caption_extensions": json.dumps([ending])}
    beside = pics(world) / "a.py"
    beside.write_text("cat = 1\n")
    try:
        asked = {"view": view, "pictures": ["a.png"], "operation": operation}
        assert findings(world.ask("/api/dataset/preview", Asked(asked))) == {"data.caption_extensions"}
        assert findings(world.ask("/api/dataset/remove", Asked({"view": view, "pictures": ["a.png"]})))
        caption = {"values": view, "path": str(pics(world) / "a.png"), "text": "import os"}
        assert findings(world.ask("/api/caption", Asked(caption))) == {"data.caption_extensions"}
        for folder in (world.outside, Path("/root"), Path("/etc")):
            elsewhere = {**asked, "view": {"data.path": str(folder)}}
            assert findings(world.ask("/api/dataset/preview", Asked(elsewhere))) == {"data.path"}
        assert beside.read_text() == "cat = 1\n"
    finally:
        beside.unlink()


# --- arguments of the trainer's command, kohya_ss and sd-scripts of 2026 ------------------------------------------------


def imported(world: World, **fields: Any) -> dict[str, str]:
    """What the page makes of a form of kohya_ss with these fields."""
    raw = {"LoRA_type": "Standard", "model_list": "", "train_data_dir": str(pics(world)), **fields}
    answer = world.ask("/api/import", Asked({"name": "form.json", "text": json.dumps(raw)}))
    assert answer.status_code == 200
    values: dict[str, str] = answer.json()["values"]
    return values | {"data.path": str(pics(world)), "model.base": "pocket"}


def test_argument_injection_output_folder(world: World, commands: list[list[str]]) -> None:
    """`additional_parameters` could send results anywhere. Here: launch.extra, and the imported form's output folder."""
    assert not train(world, form(world, launch__num_processes="2", launch__extra='["--output_dir=/etc"]'), commands)
    values = imported(world, additional_parameters=f"--output_dir={world.outside}")
    assert values.get("output.path") in (None, str(world.outside))
    answer = world.ask("/api/train", Asked({"values": values | {"output.path": str(world.outside)}}))
    assert "output.path" in findings(answer)


def test_argument_injection_first_word(world: World, commands: list[list[str]]) -> None:
    """`accelerate launch ... ./evil.py ... train.py` runs evil.py. Here: launch.extra, with several processes."""
    evil = world.root / "evil.py"
    evil.write_text(f"open({str(world.touched)!r}, 'w')")
    for words in (
        [str(evil)],
        ["./evil.py"],
        ["--monitor_interval=1", str(evil)],
        ["-m", "evil"],
        ["--module"],
        ["--", "evil"],
    ):
        values = form(world, launch__num_processes="2", launch__extra=json.dumps(words))
        assert "launch.extra" in findings(world.ask("/api/train", Asked({"values": values}))), words
    values = imported(world, extra_accelerate_launch_args=f"--num_machines=1 {evil}")
    assert "evil" not in json.dumps(values)
    evil.unlink()


def test_argument_injection_config_file(world: World) -> None:
    """`--config_file=x.toml` among the parameters replaced the whole configuration. Here: the imported form's."""
    (world.root / "x.toml").write_text(f'output_dir = "{world.outside}"\noutput_name = "evil"\n')
    values = imported(world, additional_parameters=f"--config_file={world.root}/x.toml", output_name="cat")
    assert "evil" not in json.dumps(values) and values["output.name"] == "cat"
    assert not any("x.toml" in value for value in values.values())
    (world.root / "x.toml").unlink()


@pytest.mark.parametrize(
    "field", ["network_module", "optimizer", "lr_scheduler_type", "dataset_class", "additional_parameters"]
)
def test_argument_injection_module(
    world: World, commands: list[list[str]], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--network_module`, `--optimizer_type` and others import what they name. Here: the import, and optimizer.class_path."""
    (world.root / "evil_pkg.py").write_text(f"open({str(world.touched)!r}, 'w')\nclass Class: pass\n")
    monkeypatch.syspath_prepend(str(world.root))
    word = "--network_module=evil_pkg --optimizer_type=evil_pkg.Class" if field == "additional_parameters" else "evil_pkg.Class"
    values = imported(world, **{field: word})
    assert not train(world, values | {"optimizer.kind": "other", "optimizer.class_path": "evil_pkg.Class"}, commands)
    for path in ("os.system", "builtins.eval", "subprocess.Popen", "torch.optim.__builtins__.eval", "limner.jobs.kill"):
        assert not train(world, form(world, optimizer__kind="other", optimizer__class_path=path), commands)
    assert "evil_pkg" not in sys.modules
    (world.root / "evil_pkg.py").unlink()


@pytest.mark.parametrize(
    "argument",
    [
        "x=__import__('os').system('touch touched')",
        "x=9**9**9",
        f"x={'(' * 5000}{')' * 5000}",
        "__class__=1",
        "x=open('y','w')",
    ],
)
def test_argument_injection_evaluated(world: World, commands: list[list[str]], argument: str) -> None:
    """`optimizer_args` were evaluated. Here: optimizer.arguments, typed and imported."""
    began = time.process_time()
    assert not train(world, form(world, optimizer__arguments=json.dumps([argument])), commands)
    values = imported(world, optimizer_args=argument)
    if values.get("optimizer.arguments"):
        assert not train(world, values, commands)
    assert time.process_time() - began < 5


# --- AUTOMATIC1111 ----------------------------------------------------------------------------------------------------

NAMES = [
    "../../x", "..\\..\\x", "/etc/cron.d/x", "C:\\x", "x\0.toml", "x" * 300, "CON", "a:b", ".htaccess", "..", "", " ", "x/y",
    "\u202ex", "%2e%2e%2fx", "~/x", "$(touch touched)",
]  # fmt: skip


def test_CVE_2024_31462(world: World) -> None:
    """GHSL-2024-010, a configuration's name was a path to write JSON to. Here: presets, and the names of results."""
    kept = world.home / "presets"
    for name in NAMES:
        answer = world.ask("/api/presets/save", Asked({"values": form(world), "name": name}))
        if answer.status_code != 422:
            assert answer.status_code == 200 and name == "%2e%2e%2fx"  # an odd name, but one
            assert [p.name for p in kept.iterdir()] == [f"{name}.toml"]
            assert world.ask("/api/presets/delete", Asked({"name": name})).status_code == 200
        assert not kept.is_dir() or not list(kept.iterdir())
        assert world.ask("/api/presets/delete", Asked({"name": name})).status_code == 422
        if name not in ("%2e%2e%2fx",):
            assert "output.name" in findings(world.ask("/api/train", Asked({"values": form(world, output__name=name)}))), name


# --- ComfyUI ----------------------------------------------------------------------------------------------------------

UP = [
    "../../../token", "..%2f..%2f..%2ftoken", "%2e%2e%2f%2e%2e%2f%2e%2e%2ftoken", "..%252f..%252ftoken", "..\\..\\..\\token",
    "/etc/passwd", "//etc/passwd", "....//....//token", "..;/..;/token", "config.toml", "state.json", "\0", ".", "..", "",
]  # fmt: skip


def test_CVE_2026_56671(world: World) -> None:
    """A file's name in an address was joined to a folder. Here: samples, checkpoints, tools' and static files."""
    name = world.run.id
    for file in UP:
        for path in (
            f"/api/runs/{name}/samples/{file}", f"/api/runs/{name}/checkpoints/{file}", f"/api/runs/{file}/log",
            f"/api/tools/{file}/files/0", f"/api/tools/x/files/{file}", f"/studio/{file}", f"/assets/{file}", f"/static/{file}",
        ):  # fmt: skip
            for shown in {path, _decoded(path)}:
                status, _, body = world.watched(lambda shown=shown: ask(world.app, "GET", shown, own(world)), shown)
                assert status in (400, 403, 404, 405, 422) or (shown.rstrip("/") == f"/api/runs/{name}"), (shown, status)
                assert not set((b"root:", SECRET.encode(), token(world))) & {
                    w for w in (b"root:", SECRET.encode(), token(world)) if w in body
                }
        answer = world.asking.get("/api/thumbnail", params={"path": f"{pics(world)}/{file}"})
        assert answer.status_code == 422


def test_CVE_2024_10099(world: World) -> None:
    """VA-26-238-01 too: what was uploaded as .html or .svg ran in the page. Here: uploads, and what lies in a run's folder."""
    script = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    for name in ("x.html", "x.svg", "x.xml", "x.js", "x.png.html", "x.htm"):
        answer = world.asking.post("/api/upload", params={"token": "0" * 16, "name": name}, content=script)
        assert answer.status_code == 422
    taken = world.asking.post("/api/upload", params={"token": "0" * 16, "name": "x.png"}, content=script)
    assert world.asking.get("/api/thumbnail", params={"path": f"{taken.json()['path']}/x.png"}).status_code == 422
    for folder, file in (("checkpoints", "x.html"), ("checkpoints", "x.svg"), ("samples", "step-000001_0.png")):
        (world.run.path / folder / file).write_bytes(script)
        answer = world.asking.get(f"/api/runs/{world.run.id}/{folder}/{file}")
        assert answer.status_code == 200 and answer.content == script
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["content-type"] in ("application/octet-stream", "image/png")
        (world.run.path / folder / file).unlink()


def test_CVE_2025_6107(world: World) -> None:
    """A weight's dotted name was walked with getattr and setattr. Here: files of weights; and there is no such call."""
    import numpy as np

    names = ["time_embed.__class__.__base__.__getattribute__", "a.__init__.__globals__.x", "lora_unet___class__.lora_up.weight"]
    save_file({name: np.zeros((4, 4), np.float32) for name in names}, path := pics(world) / "evil.safetensors")
    before = object.__getattribute__
    for tool, option in (("inspect", "file"), ("metadata", "file")):
        known = {o.path for o in walk(Tools)}
        values = {f"{tool}.{option}": str(path)} if f"{tool}.{option}" in known else {f"{tool}.source": str(path)}
        answer = world.ask("/api/tools/look", Asked({"tool": tool, "values": values}))
        assert answer.status_code in (200, 422), answer.text
    answer = world.ask("/api/train", Asked({"values": form(world, model__base=str(path))}))
    assert "model.base" in findings(answer)
    assert object.__getattribute__ is before
    path.unlink()
    setters = _calls(lambda name: name.split(".")[-1] in ("setattr", "__setattr__", "rsetattr"))
    # the one sets a finding's texts, the other a model's own layers under their own names
    assert {place.partition(":")[0] for place in setters} == {"errors.py", "models/quantized.py"}


def test_CVE_2026_123790(world: World, commands: list[list[str]]) -> None:
    """Saving a preview could replace a program's file. Here: uploads, and Limner's own folder."""
    for name in ("x.py", "__init__.py", "x.pth", "x.so", "x.sh"):
        answer = world.asking.post("/api/upload", params={"token": "0" * 16, "name": name}, content=b"import os")
        assert answer.status_code == 422
        answer = world.asking.post(
            "/api/upload", params={"token": "0" * 16, "name": "a.txt", "inside": f"../../{name}"}, content=b"x"
        )
        assert "a.txt" in answer.text and not (world.home / name).exists() and not (world.home / "pictures" / name).exists()
    for field in ("output.path", "memory.cache_path"):
        values = form(world) | {field: str(SOURCE)}
        assert field in findings(world.ask("/api/train", Asked({"values": values})))
    assert not [p for p in world.home.rglob("*.py") if not p.is_dir()]
    shutil.rmtree(world.home / "pictures")


# --- Gradio -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("advisory", ["CVE-2021-43831", "CVE-2023-34239", "CVE-2023-51449"])
def test_gradio_serves_files_by_path(world: World, advisory: str) -> None:
    """Three times /file served any path: it begins with the folder, it is in a temporary one, its case differs. Here: Gradio's
    own routes, which are closed."""
    inside = {
        "CVE-2021-43831": "/etc/passwd",
        "CVE-2023-34239": "/../../../../etc/passwd",
        "CVE-2023-51449": "\\..\\..\\etc\\passwd",
    }
    for start in ("/file=", "/file/", "/gradio_api/file=", "/gradio_api/file/", "/gradio_api/file%3D"):
        for target in (
            inside[advisory],
            str(world.outside / "secret.txt"),
            str(pics(world) / "a.png"),
            "http://127.0.0.1:9/",
            "token",
        ):
            status, _, body = ask(world.app, "GET", start + target, own(world))
            assert status == 404 and SECRET.encode() not in body and b"root:" not in body


def test_CVE_2024_1561(world: World) -> None:
    """/component_server called any method of a component with any argument. Here: the same routes, which are closed."""
    call = {"component_id": "1", "data": "/etc/passwd", "fn_name": "move_resource_to_block_cache", "session_hash": "x"}
    for path in ("/component_server", "/component_server/", "/gradio_api/component_server", "/gradio_api/component_server/"):
        status, _, body = ask(world.app, "POST", path, own(world), pieces=[json.dumps(call).encode()])
        assert status == 404 and b"passwd" not in body


def test_CVE_2024_47084(world: World) -> None:
    """The origin was not looked at when there was a cookie. Here: every change, with the session's cookie, from elsewhere."""
    before = world.snapshot(world.home)
    for path in ("/api/settings", "/gradio_api/run/predict", "/gradio_api/queue/join", "/api/presets/save"):
        for origin in (
            "https://evil.example",
            "null",
            "http://127.0.0.1:1",
            "http://localhost",
            "http://127.0.0.1.evil.example",
        ):
            status, answered, _ = ask(
                world.app, "POST", path, {**own(world), "origin": origin}, pieces=[b'{"theme": "dark", "data": []}']
            )
            assert status in (403, 404) and not {"access-control-allow-origin", "set-cookie"} & set(answered)
    assert world.snapshot(world.home) == before


def test_CVE_2025_48889(world: World, commands: list[list[str]]) -> None:
    """Flagging copied any readable file, endless ones too. Here: what a run copies (its prompts), and what the page reads."""
    os.mkfifo(pipe := pics(world) / "pipe.txt")
    (pics(world) / "zero.txt").symlink_to("/dev/zero")
    began = time.monotonic()
    for file in (
        "/dev/urandom",
        "/dev/zero",
        "/proc/kcore",
        str(pipe),
        str(pics(world) / "zero.txt"),
        str(world.outside / "secret.txt"),
    ):
        values = form(world, sample__prompt_file=file)
        assert "sample.prompt_file" in findings(world.ask("/api/train", Asked({"values": values}))), file
        for route in ("/api/thumbnail", "/api/folders", "/api/dataset"):
            assert world.asking.get(route, params={"path": file}).status_code == 422, (route, file)
    assert time.monotonic() - began < 30
    for path in (pipe, pics(world) / "zero.txt"):
        path.unlink()


def test_CVE_2025_23042(world: World) -> None:
    """A list of forbidden paths was passed by other capitals. Here: folders are listed, and the secret is in none."""
    for file in (str(world.outside).upper(), f"{world.outside}".swapcase(), "/ETC/passwd", "/Etc/Passwd"):
        assert world.asking.get("/api/folders", params={"path": file}).status_code == 422
    (world.home / "TOKEN").write_bytes(token(world))  # as a file system that knows no capitals shows it
    for name in ("token", "TOKEN", "./token"):
        answer = world.ask("/api/train", Asked({"values": form(world, sample__prompt_file=f"{world.home}/{name}")}))
        assert "sample.prompt_file" in findings(answer) and token(world) not in answer.content
    (world.home / "TOKEN").unlink()


def test_CVE_2024_10648(world: World) -> None:
    """A format that was to be one of a few was a path, and emptied files. Here: every choice of every option."""
    tried = 0
    for option in (o for o in walk() if o.choices and not o.types):
        kinds = {f"{option.section}.kind": option.tags[0]} if option.tags and option.section != "data" else {}
        for value in ("../../outside/secret.txt", str(world.outside / "secret.txt"), "safetensors/../x"):
            answer = world.ask("/api/toml", Asked({"values": form(world) | kinds | {option.path: value}}))
            assert option.path in findings(answer), (option.path, answer.text[:300])
            tried += 1
    assert tried > 60


def test_CVE_2026_28414(world: World) -> None:
    """/windows/win.ini is not absolute to Python 3.13 on Windows. Here: all paths that are typed, in Windows' spellings."""
    for file in (
        "/windows/win.ini", "\\windows\\win.ini", "C:win.ini", "C:\\windows\\win.ini", "\\\\?\\C:\\windows\\win.ini",
        "C:/windows/win.ini",
        "\\\\.\\C:", "\\\\server\\share\\x", "//server/share/x", "a.png::$DATA", "a.png:stream", "CON", "NUL",
        "file:///C:/windows/win.ini",
    ):  # fmt: skip
        for route in ("/api/folders", "/api/thumbnail", "/api/dataset"):
            assert world.asking.get(route, params={"path": file}).status_code == 422, (route, file)
        assert "data.path" in findings(world.ask("/api/toml", Asked({"values": form(world, data__path=file)})))


def test_CVE_2026_28416(world: World) -> None:
    """A loaded Space's address could send the server anywhere. Here: Gradio's proxy route; and nothing is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as inner:
        inner.settimeout(0.2)
        address = f"http://127.0.0.1:{inner.getsockname()[1]}/x"
        for start in ("/proxy=", "/gradio_api/proxy=", "/gradio_api/file=", "/file=", "/gradio_api/stream/"):
            for method in ("GET", "POST"):
                assert ask(world.app, method, start + address, own(world))[0] == 404
        for body in ({"data": [{"path": address, "meta": {"_type": "gradio.FileData"}}]}, {"url": address}):
            for path in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/upload", "/queue/join"):
                assert ask(world.app, "POST", path, own(world), pieces=[json.dumps(body).encode()])[0] == 404
        with pytest.raises(TimeoutError):
            inner.accept()
    assert _calls(lambda name: name in ("gr.load", "gradio.load", "gr.Interface.load")) == []


# --- what no code of ours does ----------------------------------------------------------------------------------------


def test_CVE_2025_32434_and_all_that_runs_text() -> None:
    """PyTorch before 2.6 ran code though weights_only=True. Here: all calls that load, evaluate or use a shell."""
    assert (
        _calls(lambda name: name in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "os.execvp")) == []
    )
    assert (
        _calls(lambda name: name.startswith(("marshal.", "shelve.", "commands.", "pty.", "yaml.load", "dill.", "joblib.")))
        == []
    )
    assert _calls(lambda name: name.endswith("torch.load"), without={"weights_only": True}) == []
    assert _calls(lambda name: name.endswith("np.load"), without={"allow_pickle": False}) == []
    assert _calls(lambda _: True, having={"shell": True}) == _calls(lambda _: True, having={"trust_remote_code": True}) == []
    assert _calls(lambda name: name.endswith("torch.load")) != []  # it can see them


def _calls(
    is_meant: Callable[[str], bool], without: dict[str, Any] | None = None, having: dict[str, Any] | None = None
) -> list[str]:
    """file:line of each call of such a name in Limner's source, without (or with) these constants as arguments."""
    found = [(place, given) for place, name, given in _all_calls() if is_meant(name)]
    return [
        place
        for place, given in found
        if not (without and without.items() <= given.items()) and (having is None or having.items() <= given.items())
    ]


@functools.cache
def _all_calls() -> list[tuple[str, str, dict[str, Any]]]:
    """(file:line, dotted name, constants given by name) of each call in Limner's source."""
    out = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                given = {k.arg or "": k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                out.append((f"{path.relative_to(SOURCE).as_posix()}:{node.lineno}", _dotted(node.func), given))
    return out


def _dotted(node: ast.expr) -> str:
    """a.b.c of what is called; what is no name in it is left out."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_there_are_twenty_six() -> None:
    """6 of kohya_ss, 5 of arguments, 1 of AUTOMATIC1111, 4 of ComfyUI, 10 of Gradio."""
    names = [name for name in globals() if name.startswith(("test_CVE_", "test_argument_injection_"))]
    names.remove("test_CVE_2025_32434_and_all_that_runs_text")
    assert len(names) + 3 == 26


# --- the page's own requests ------------------------------------------------------------------------------------------


def own(world: World) -> dict[str, str]:
    """The headers of the page's own requests, with its session."""
    rules = gate.Rules(token(world).decode())
    headers = {"host": "127.0.0.1", "origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
    return {**headers, "cookie": f"{rules.cookie}={rules.session}", "content-type": "application/json"}


def token(world: World) -> bytes:
    return (world.home / "token").read_bytes()


def _decoded(path: str) -> str:
    from urllib.parse import unquote

    return unquote(path)
