"""Publishing, by the Hub's real client, to a server on loopback that answers as the Hub does."""

from __future__ import annotations

import json
import re
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from fake_hub import REPO, TOKEN, FakeHub
from limner import disk, runs
from limner.config import files
from limner.config.files import build_as
from limner.config.tools import Tools
from limner.errors import StopRequested, UserError
from limner.tools import hub, model_card, publish
from limner.tools.model_card import Card, Sample
from limner.tools.tool import Report


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # which speaks to other servers
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_FIRST_WAIT_SECONDS", 0.02)


def lora(path: Path, **metadata: str) -> Path:
    """A LoRA of one layer of SD 1, with metadata."""
    names = {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (4, 768)}
    entries, end = {}, 0
    for name, shape in names.items():
        entries[f"{name}.lora_down.weight"] = {
            "dtype": "F16",
            "shape": shape,
            "data_offsets": [end, end + 2 * shape[0] * shape[1]],
        }
        end += 2 * shape[0] * shape[1]
    told = {"modelspec.architecture": "stable-diffusion-v1/lora", **{k.replace("__", "."): v for k, v in metadata.items()}}
    raw = json.dumps({"__metadata__": told, **entries}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(end))
    return path


@pytest.fixture
def run(home: Path, tmp_path: Path) -> runs.Run:
    """A run that is done: two checkpoints, two paintings of two prompts."""
    raw: dict[str, dict[str, Any]] = {
        "model": {"base": "someone/some-model", "family": "sd1"},
        "data": {"path": str(tmp_path / "private pictures"), "trigger": "zwx cat"},
        "adapter": {"rank": 8}, "output": {"name": "cat"}, "optimizer": {"lr": 2e-4},
    }  # fmt: skip
    made = runs.create(files.build(raw, {}))
    for step, name in ((50, "cat-step00000050"), (100, "cat")):
        for number, prompt in enumerate(("a zwx cat", "<b>zwx</b> | cat")):
            picture = f"step-{step}_{number}.png"
            Image.new("RGB", (8, 8), (step, number, 0)).save(made.samples / picture)
            made.event("sample", step=step, path=picture, prompt=prompt, seed=number)
        lora(
            made.checkpoints / f"{name}.safetensors",
            ss_steps=str(step),
            ss_tag_frequency="{}",
            modelspec__trigger_phrase="zwx cat",
        )
        made.event("checkpoint", step=step, path=str(made.checkpoints / f"{name}.safetensors"))
    made.write_state(runs.State("done", step=100, steps=100))
    return made


def asked(**options: Any) -> Any:
    section = build_as(Tools, {"publish": {"repo": REPO, **options}}, {}).publish
    assert section is not None
    return section


def told(done: int, total: int, words: str = "") -> None:
    assert 0 <= done <= total and TOKEN not in words


def refusal(**options: Any) -> str:
    with pytest.raises(UserError) as caught:
        publish.run(asked(**options), told)
    assert TOKEN not in str(caught.value) and all(f.remedy for f in caught.value.findings)
    return str(caught.value)


def text_of(report: Report) -> str:
    return "\n".join([*report.lines, *map(str, report.remarks)])


# --- what is published ---


def test_a_run_becomes_one_commit(server: FakeHub, run: runs.Run, capfd: pytest.CaptureFixture[str]) -> None:
    report = publish.run(asked(run=run.id), told)
    assert server.repos == {REPO: {"private": True}}
    [(message, content)] = server.commits
    assert message == "Add cat.safetensors"
    assert sorted(content) == ["README.md", "cat.safetensors", "samples/step-100_0.png", "samples/step-100_1.png"]
    assert content["cat.safetensors"] == (run.checkpoints / "cat.safetensors").read_bytes()
    assert content["samples/step-100_1.png"] == (run.samples / "step-100_1.png").read_bytes()
    page = content["README.md"].decode()
    head = yaml.safe_load(page.split("---\n")[1])
    assert head["instance_prompt"] == "zwx cat" and head["base_model"] == "someone/some-model" and "license" not in head
    assert head["widget"][1] == {"text": "<b>zwx</b> | cat", "output": {"url": "samples/step-100_1.png"}}
    assert {"text-to-image", "lora", "stable-diffusion"} <= set(head["tags"])
    html = MarkdownIt("commonmark").enable("table").render(page.split("---\n", 2)[2])
    assert "<td>adapter.rank</td>\n<td>8</td>" in html and "<td>steps</td>\n<td>100</td>" in html
    assert "private pictures" not in page
    assert f"Published: {server.url}/{REPO}" in report.lines
    assert [f.field for f in report.remarks] == ["publish.license", "publish.run"]
    # the token went to the Hub, to be sure, and nowhere else
    assert ("create", f"Bearer {TOKEN}") in server.asked and ("put", f"Bearer {TOKEN}") not in server.asked
    said = capfd.readouterr()
    kept = b"".join(p.read_bytes() for p in run.path.rglob("*") if p.is_file())
    assert TOKEN not in said.out + said.err + text_of(report) + page and TOKEN.encode() not in kept


def test_all_checkpoints_without_samples_for_everybody(server: FakeHub, run: runs.Run) -> None:
    options = {"checkpoints": "all", "samples": False, "private": False, "license": "openrail++", "message": "My  cat"}
    publish.run(asked(file=str(run.path), **options), told)
    [(message, content)] = server.commits
    assert sorted(content) == ["README.md", "cat-step00000050.safetensors", "cat.safetensors"] and message == "My  cat"
    assert server.repos[REPO] == {"private": False} and "license: openrail++" in content["README.md"].decode()


def test_a_look_shows_page_and_sizes_and_asks_nobody(server: FakeHub, run: runs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    report = publish.look(asked(run="last"))
    size = (run.checkpoints / "cat.safetensors").stat().st_size
    assert f"{size / 1024:.1f} KiB  cat.safetensors" in text_of(report)
    assert "# cat" in report.lines and server.asked == [] and report.files == ()
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN" in text_of(publish.look(asked(run="last")))
    assert "no token" in refusal(run="last") and server.asked == []


def test_a_file_speaks_for_itself(server: FakeHub, tmp_path: Path) -> None:
    file = lora(
        tmp_path / "my? style.safetensors", modelspec__title="Mein *Stil*", modelspec__license="mit",
        modelspec__tags="ink, wash", ss_network_dim="16", modelspec__author="<script>alert(1)</script>",
    )  # fmt: skip
    publish.run(asked(file=str(file), base_model="a/b"), told)
    [(_, content)] = server.commits
    assert sorted(content) == ["README.md", "my_ style.safetensors"]
    page = content["README.md"].decode()
    head = yaml.safe_load(page.split("---\n")[1])
    assert head["license"] == "mit" and head["base_model"] == "a/b" and head["tags"][-2:] == ["ink", "wash"]
    html = MarkdownIt("commonmark").enable("table").render(page.split("---\n", 2)[2])
    assert "<h1>Mein *Stil*</h1>" in html and "<td>16</td>" in html and "<script" not in html
    assert "A LoRA for Stable Diffusion 1" in html


def test_a_folder_of_a_whole_model_and_nothing_else_in_it(server: FakeHub, home: Path, tmp_path: Path) -> None:
    raw = {"adapter": {"kind": "none"}, "output": {"name": "whole", "layout": "diffusers"}, "model": {"family": "sd1"}}
    made = runs.create(files.build(raw, {}))

    def fill(folder: Path) -> None:
        (folder / "unet").mkdir()
        lora(folder / "unet" / "model.safetensors")
        (folder / "model_index.json").write_text("{}")
        for name in (".env", "notes.pdf", "optimizer.pt", "README.md"):
            (folder / name).write_text("private")

    disk.write_folder(made.checkpoints / "whole", fill)
    (tmp_path / "secret.json").write_text("private")
    (made.checkpoints / "whole" / "link.json").symlink_to(tmp_path / "secret.json")
    (made.checkpoints / "whole" / "linked").symlink_to(tmp_path)
    made.event("checkpoint", step=1, path=str(made.checkpoints / "whole"))
    publish.run(asked(run=made.id), told)
    [(_, content)] = server.commits
    assert sorted(content) == ["README.md", "model_index.json", "unet/model.safetensors"]
    assert b"A whole model" in content["README.md"]


def test_a_run_cannot_name_files_elsewhere(server: FakeHub, run: runs.Run, tmp_path: Path) -> None:
    lora(tmp_path / "elsewhere.safetensors")
    (run.samples / "step-200_0.png").symlink_to(tmp_path / "elsewhere.safetensors")
    run.event("checkpoint", step=200, path="../../../elsewhere.safetensors", embedding=str(tmp_path / "elsewhere.safetensors"))
    run.event("sample", step=100, path="../config.toml", prompt="x", seed=0)
    run.event("sample", step=100, path=["x"], prompt={"a": 1}, seed="x")
    publish.run(asked(run=run.id), told)
    [(_, content)] = server.commits
    assert sorted(content) == ["README.md", "cat.safetensors", "samples/step-100_0.png", "samples/step-100_1.png"]


# --- the Hub says no ---


def test_a_repository_that_is_there_is_only_added_to_when_told(server: FakeHub, run: runs.Run) -> None:
    server.repos[REPO] = {"private": True}
    assert "exists already" in refusal(run=run.id)
    assert server.commits == []
    publish.run(asked(run=run.id, overwrite=True), told)
    assert len(server.commits) == 1 and "create" not in dict(server.asked)
    server.repos[REPO] = {"private": False}
    assert "is public" in refusal(run=run.id, overwrite=True)
    assert len(server.commits) == 1


@pytest.mark.parametrize("kind", ["info", "create", "preupload", "commit"])
@pytest.mark.parametrize(("status", "words"), [(401, "does not take the token"), (403, "may not write to me/my-cat")])
def test_a_token_that_does_not_do(server: FakeHub, run: runs.Run, kind: str, status: int, words: str) -> None:
    server.answers[kind] = [status]
    server.says = f"not with {TOKEN}"
    said = refusal(run=run.id)
    assert words in said and "not with (the token)" in said and server.commits == []


@pytest.mark.parametrize("kind", ["info", "create", "batch", "commit"])
def test_a_server_that_stumbles_is_asked_again(server: FakeHub, run: runs.Run, kind: str) -> None:
    server.answers[kind] = [503, 500] if kind in ("info", "create", "commit") else [503]
    publish.run(asked(run=run.id), told)
    assert len(server.commits) == 1 and server.answers[kind] == []


def test_a_server_that_goes_on_stumbling(server: FakeHub, run: runs.Run) -> None:
    server.answers["create"] = [502] * 20
    assert "has trouble: 502" in refusal(run=run.id)
    assert len(server.answers["create"]) == 16 and server.commits == []


def test_nobody_is_there(run: runs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as free:
        port = free.server_address[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started = time.monotonic()
    assert f"http://127.0.0.1:{port} does not answer" in refusal(run=run.id)
    assert time.monotonic() - started < 10


def test_stopping_leaves_no_commit(server: FakeHub, run: runs.Run) -> None:
    server.slow = 10.0

    def stop(done: int, total: int, words: str = "") -> None:
        if "Sending cat" in words:
            raise StopRequested

    started = time.monotonic()
    with pytest.raises(StopRequested):
        publish.run(asked(run=run.id), stop)
    assert time.monotonic() - started < 8 and server.commits == []


# --- what is asked ---


@pytest.mark.parametrize(
    "repo",
    [
        "cat", "a/b/c", "me/", "/cat", "me/c at", "me/c\nat", "me/../x", "me/a--b", "me/.x", "me/x.git", "me/猫",
        "me/" + "x" * 97, "me/$(x)",
    ],
)  # fmt: skip
def test_a_name_that_cannot_be(server: FakeHub, run: runs.Run, repo: str) -> None:
    for act in (lambda: publish.look(asked(run=run.id, repo=repo)), lambda: publish.run(asked(run=run.id, repo=repo), told)):
        with pytest.raises(UserError, match="cannot be the name") as caught:
            act()
        assert str(caught.value).isprintable()
    assert server.asked == []


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("publish.run", {}), ("publish.run", {"run": "last", "file": "x.safetensors"}), ("run", {"run": "nope"}),
        ("publish.file", {"file": "nothing.safetensors"}), ("publish.file", {"file": "/etc/hostname"}),
        ("publish.license", {"run": "last", "license": "My: own\nlicense"}),
        ("publish.base_model", {"run": "last", "base_model": "../x"}),
    ],
)  # fmt: skip
def test_what_cannot_be_published(server: FakeHub, run: runs.Run, field: str, options: dict[str, str]) -> None:
    with pytest.raises(UserError) as caught:
        publish.look(asked(**options))
    assert caught.value.findings[0].field == field and server.asked == []


def test_damaged_files_and_runs_without_any(server: FakeHub, run: runs.Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\xff" * 100)
    assert "not a whole safetensors file" in refusal(file=str(bad))
    for file in run.checkpoints.iterdir():
        file.unlink()
    assert "no finished file" in refusal(run=run.id)
    (tmp_path / "empty").mkdir()
    assert "holds no .safetensors" in refusal(file=str(tmp_path / "empty"))
    assert server.asked == []


# --- the page ---

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "![x](http://evil/x.png)",
    "a\n\n# Heading\n---\nlicense: mit", "```\ncode", "| a | b |", "&lt;b&gt;", "<http://evil.example> <a@evil.example>",
    "~~x~~ **x** __x__ `x` $x$ <!-- x -->", "\u202ex\x1b[31m\u200b", "---\nevil: true\n---", "1. one\n- two\n> three",
    "\\<b>", "{{x}} {% x %} :x:", "[x]: http://evil", "x\n===",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_others_wrote_becomes_markup(text: str) -> None:
    """Rendered by another's Markdown, with raw HTML, links and tables on, the page has the tags that we write alone."""
    plain, evil = (
        Card(
            title=t, kind="A LoRA", tags=[t], license=t, base_model=t, trigger=t, description=t, author=t, files=[t],
            settings={"a.b": t}, facts={"steps": t}, samples=[Sample("samples/step-1_0.png", t, 3)],
        ) for t in ("plain", text)
    )  # fmt: skip
    pages = [model_card.render(card) for card in (plain, evil)]
    bodies = [page.split("\n---\n", 1)[1] for page in pages]
    html = [MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(body) for body in bodies]
    tags = [re.findall(r"<[^>]*>", h) for h in html]
    assert tags[1] == tags[0]
    assert pages[1].isprintable() or all(line.isprintable() for line in pages[1].split("\n"))
    heads = [yaml.safe_load(page.split("\n---\n", 1)[0].removeprefix("---\n")) for page in pages]
    assert heads[1].keys() == heads[0].keys() and heads[1]["widget"][0].keys() == {"text", "output"}
    # what can be seen of it stands there
    seen = "".join(c for c in text if c.isalnum())
    shown = re.sub(r"<[^>]*>|&\w+;", "", html[1])
    if "&" not in text and text.isprintable():
        assert seen[:20] in "".join(c for c in shown if c.isalnum())


def test_long_texts_are_cut() -> None:
    page = model_card.render(
        Card(title="x" * 10**6, kind="A LoRA", trigger="y" * 10**6, samples=[Sample("s.png", "z" * 10**6)])
    )
    assert len(page) < 10_000
