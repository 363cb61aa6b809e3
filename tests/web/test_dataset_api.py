"""The Dataset tab's routes: what they say of a folder, what they write, and what they refuse."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from httpx import Response
from PIL import Image

from limner.data import undo
from limner.errors import UserError
from limner.settings import Settings
from limner.web import dataset_api, thumbnails
from limner.web.context import Context
from limner.web.words import Words

SIZES = {"a": (640, 480), "b": (512, 512), "c": (100, 100), "d": (1200, 110), "sub/e": (480, 640)}
CAPTIONS = {"a": "zwx, a cat, hat", "b": "A Cat", "c": "", "d": "a very long one, " + "word " * 80, "sub/e": "zwx, a dog"}


def client_of(*roots: Path) -> TestClient:
    context, app = Context(Settings(), tuple(r.resolve() for r in roots), Words()), FastAPI()
    app.include_router(dataset_api.router(context))
    app.include_router(thumbnails.router(context))

    @app.exception_handler(UserError)
    def _(request: object, error: UserError) -> JSONResponse:
        return JSONResponse({"findings": [f"{f.field}: {f.message}" for f in error.findings]}, 422)

    return TestClient(app)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures" / "Mia’s 猫"
    (root / "sub").mkdir(parents=True)
    for name, size in SIZES.items():
        Image.new("RGB", size, (len(name) * 40, size[0] % 256, 90)).save(root / f"{name}.png")
        if CAPTIONS[name]:
            (root / f"{name}.txt").write_text(CAPTIONS[name] + "\nsecond", encoding="utf-8")
    (root / "bad.jpg").write_bytes(b"")
    return root


@pytest.fixture
def client(folder: Path) -> TestClient:
    return client_of(folder.parent)


@pytest.fixture
def view(folder: Path) -> dict[str, str]:
    return {"data.path": str(folder), "data.resolution": "512", "data.bucket_step_px": "64", "data.trigger": "zwx"}


def ok(answer: Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(found: dict[str, Any]) -> list[str]:
    return [p["name"] for p in found["pictures"]]


def test_what_is_said_of_a_folder(client: TestClient, view: dict[str, str]) -> None:
    found = ok(client.get("/api/dataset", params=view))
    assert names(found) == ["a.png", "b.png", "c.png", "d.png", "sub/e.png"]
    a, b, c, d, e = found["pictures"]
    # brought to 597 x 448, of which 10 px go at the left and 11 at the right
    assert (a["bucket"], a["lost"], a["crop"]) == ([576, 448], 0.0352, [10.7, 0.0, 628.2, 480.0])
    assert (b["bucket"], b["crop"], b["enlarged"], b["problems"]) == ([512, 512], [0, 0, 512, 512], 1, ["no-trigger"])
    assert (c["enlarged"], c["caption"], c["problems"]) == (5.12, "zwx", ["small"])
    assert d["bucket"] == [1024, 256] and d["problems"] == ["small", "cropped", "no-trigger", "long-caption"]
    assert d["lost"] == pytest.approx(1 - 1024 * 256 / (2793 * 256), abs=1e-4)
    assert e["bucket"] == [448, 576] and e["caption"] == "zwx, a dog"
    assert found["tags"][:3] == [{"tag": "zwx", "count": 3}, {"tag": "a cat", "count": 2}, {"tag": "a dog", "count": 1}]
    assert {tuple(b["bucket"]): b["pictures"] for b in found["buckets"]} == {
        (512, 512): 2, (576, 448): 1, (448, 576): 1, (1024, 256): 1,
    }  # fmt: skip
    assert found["problems"] == {"small": 2, "cropped": 1, "no-caption": 0, "no-trigger": 2, "long-caption": 1}
    assert found["broken"] == [{"name": "bad.jpg", "message": "is empty (0 bytes)."}]
    assert (found["total"], found["resolution_px"], found["bucket_step_px"], found["undo"]) == (5, 512, 64, None)


def test_without_options_the_base_models_own_hold(client: TestClient, folder: Path) -> None:
    found = ok(client.get("/api/dataset", params={"path": str(folder)}))
    assert (found["resolution_px"], found["bucket_step_px"]) == (64, 16)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"tag": "A CAT"}, ["a.png", "b.png"]),
        ({"tag": ["a cat", "hat"]}, ["a.png"]),
        ({"text": "SUB"}, ["sub/e.png"]),
        ({"text": "Dog"}, ["sub/e.png"]),
        ({"problem": "small"}, ["c.png", "d.png"]),
        ({"problem": "none of ours"}, []),
        ({"bucket": "448x576"}, ["sub/e.png"]),
        ({"offset": 3}, ["d.png", "sub/e.png"]),
        ({"offset": 1, "limit": 2}, ["b.png", "c.png"]),
        ({"offset": 99}, []),
    ],
)
def test_filters_and_pages(client: TestClient, view: dict[str, str], wanted: dict[str, Any], expected: list[str]) -> None:
    assert names(ok(client.get("/api/dataset", params={**view, **wanted}))) == expected
    if "offset" not in wanted:
        assert ok(client.get("/api/dataset/names", params={**view, **wanted}))["names"] == expected


def test_an_edit_is_previewed_written_undone_and_done_again(client: TestClient, view: dict[str, str], folder: Path) -> None:
    operation = {"kind": "add", "tags": "new", "place": "front"}
    asked = {"view": view, "filter": {"tags": ["a cat"]}, "operation": operation}
    preview = ok(client.post("/api/dataset/preview", json=asked))
    assert preview["changes"] == [
        {"picture": "a.png", "old": "zwx, a cat, hat", "new": "new, zwx, a cat, hat"},
        {"picture": "b.png", "old": "A Cat", "new": "new, A Cat"},
    ]
    assert (folder / "a.txt").read_text() == "zwx, a cat, hat\nsecond"
    done = ok(client.post("/api/dataset/apply", json={"id": preview["id"]}))
    assert done["changed"] == 2 and done["undo"] == {"kind": "add", "detail": "new", "files": 2} and done["redo"] is None
    assert (folder / "a.txt").read_text() == "new, zwx, a cat, hat\nsecond"
    assert ok(client.get("/api/dataset", params={**view, "tag": "new"}))["matching"] == 2
    assert client.post("/api/dataset/apply", json={"id": preview["id"]}).status_code == 422, "only once"
    again = client_of(folder.parent)  # the server was started again
    assert ok(again.post("/api/dataset/undo", json={"view": view}))["changed"] == 2
    assert (folder / "a.txt").read_text() == "zwx, a cat, hat\nsecond"
    assert ok(again.post("/api/dataset/redo", json={"view": view}))["changed"] == 2
    assert (folder / "b.txt").read_text() == "new, A Cat\nsecond"
    assert ok(again.post("/api/dataset/redo", json={"view": view}))["entry"] is None


def test_files_changed_since_the_preview_are_named_and_left(client: TestClient, view: dict[str, str], folder: Path) -> None:
    asked = {"view": view, "pictures": ["a.png", "c.png"], "operation": {"kind": "set", "text": "猫"}}
    preview = ok(client.post("/api/dataset/preview", json=asked))
    (folder / "a.txt").write_text("mine")
    done = ok(client.post("/api/dataset/apply", json={"id": preview["id"]}))
    assert done["changed"] == 1
    assert done["refused"] == [{"picture": "a.txt", "message": "it was changed by somebody else since"}]
    assert (folder / "a.txt").read_text() == "mine" and (folder / "c.txt").read_text(encoding="utf-8") == "猫\n"


def test_two_previews_are_kept(client: TestClient, view: dict[str, str]) -> None:
    body = {"view": view, "operation": {"kind": "add", "tags": "hat"}}
    first, second, third = [ok(client.post("/api/dataset/preview", json=body))["id"] for _ in range(3)]
    assert client.post("/api/dataset/apply", json={"id": first}).status_code == 422
    assert ok(client.post("/api/dataset/apply", json={"id": third}))["changed"] > 0
    ok(client.post("/api/dataset/apply", json={"id": second}))


def test_an_edit_too_large_to_be_undone_is_refused_at_its_preview(
    view: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undo, "Journal", partial(undo.Journal, max_bytes=2000))
    client = client_of(folder.parent)
    small = {"view": view, "pictures": ["a.png"], "operation": {"kind": "add", "tags": "mat"}}
    assert ok(client.post("/api/dataset/preview", json=small))["total"] == 1
    large = {"view": view, "operation": {"kind": "add", "tags": "hat" * 300}}
    refused = client.post("/api/dataset/preview", json=large)
    assert refused.status_code == 422 and "too much to be undone" in refused.json()["findings"][0]


def test_putting_away_takes_the_caption_along_and_comes_back(client: TestClient, view: dict[str, str], folder: Path) -> None:
    done = ok(client.post("/api/dataset/remove", json={"view": view, "pictures": ["a.png", "sub/e.png", "bad.jpg"]}))
    assert done["changed"] == 5
    away = folder / ".limner-removed"
    assert sorted(p.relative_to(away).as_posix() for p in away.rglob("*.*")) == [
        "a.png", "a.txt", "bad.jpg", "sub/e.png", "sub/e.txt",
    ]  # fmt: skip
    found = ok(client.get("/api/dataset", params=view))
    assert names(found) == ["b.png", "c.png", "d.png"] and found["num_broken"] == 0
    assert ok(client.post("/api/dataset/undo", json={"view": view}))["changed"] == 5
    assert len(ok(client.get("/api/dataset", params=view))["pictures"]) == 5


def test_pictures_that_are_alike(client: TestClient, view: dict[str, str], folder: Path) -> None:
    picture = Image.open(Path(pytest.importorskip("skimage").__file__).parent / "data" / "coffee.png")
    picture.save(folder / "x.png")
    picture.resize((300, 200)).save(folder / "y.jpg")
    (folder / "z.png").write_bytes((folder / "x.png").read_bytes())
    while not (found := ok(client.get("/api/dataset/alike", params=view)))["done"]:
        time.sleep(0.02)
    (group,) = [g for g in found["groups"] if any(p["name"] == "x.png" for p in g["pictures"])]
    assert names(group) == ["x.png", "y.jpg", "z.png"] and group["copies"] == [["x.png", "z.png"]]
    assert found["seen"] == found["total"] == 8


def test_thumbnails_are_small_kept_and_asked_for_once(client: TestClient, folder: Path, home: Path) -> None:
    asked = {"path": str(folder / "a.png"), "size": "200"}
    first = client.get("/api/thumbnail", params=asked)
    assert first.status_code == 200 and first.headers["content-type"] == "image/jpeg"
    kept = list((home / "cache" / "thumbnails").glob("??/*"))
    assert len(kept) == 1 and Image.open(kept[0]).size == (256, 192)
    again = client.get("/api/thumbnail", params=asked, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content
    Image.new("RGB", (20, 40)).save(folder / "a.png")
    changed = client.get("/api/thumbnail", params=asked, headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200 and changed.headers["etag"] != first.headers["etag"]
    assert client.get("/api/thumbnail", params={"path": str(folder / "bad.jpg")}).status_code == 422


def test_the_shelf_of_thumbnails_is_bounded(folder: Path, tmp_path: Path) -> None:
    shelf = thumbnails.Shelf(tmp_path / "shelf", limit_bytes=2500)
    sizes = [len(shelf.get(folder / f"{n}.png", 256, f"{n}{n}{n}")) for n in "abcd"]
    assert sum(sizes) > 2500
    shelf.prune()
    left = [p.name for p in sorted((tmp_path / "shelf").glob("??/*"))]
    assert sum(p.stat().st_size for p in (tmp_path / "shelf").glob("??/*")) <= 2500 and "ddd" in left and "aaa" not in left


# --- what is refused --------------------------------------------------------------------------------------------------

HOSTILE = [
    "../outside",
    "/etc",
    "{folder}/../../outside",
    "C:\\Windows",
    "\\\\host\\share",
    "",
    "x\0y",
    "$(x)",
    '"; touch x #',
    "~root",
]


@pytest.mark.parametrize("typed", HOSTILE)
def test_folders_that_are_not_ours(client: TestClient, folder: Path, tmp_path: Path, typed: str) -> None:
    (tmp_path / "outside").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "outside" / "secret.png")
    path = typed.format(folder=folder)
    for ask in (
        lambda: client.get("/api/dataset", params={"data.path": path}),
        lambda: client.get("/api/dataset/alike", params={"path": path}),
        lambda: client.get("/api/thumbnail", params={"path": path + "/secret.png"}),
        lambda: client.post("/api/dataset/undo", json={"view": {"data.path": path}}),
        lambda: client.post("/api/dataset/remove", json={"view": {"data.path": path}, "pictures": ["secret.png"]}),
    ):
        answer = ask()
        assert answer.status_code == 422 and "secret" not in answer.text.replace("/secret.png", ""), answer.text
    assert (tmp_path / "outside" / "secret.png").exists()


@pytest.mark.parametrize(
    "body",
    [
        {"pictures": ["../../outside/secret.png"]},
        {"pictures": ["/etc/passwd"]},
        {"pictures": ["a.txt"]},
        {"pictures": ["a.png"] * 100_001},
        {"pictures": "a.png"},
        {"pictures": [None]},
        {"filter": {"tags": ["x"] * 21}},
        {"filter": {"text": "x\0"}},
        {"operation": {"kind": "set", "text": "a\nb"}},
        {"operation": {"kind": "set", "text": "x" * 20_001}},
        {"operation": {"kind": "set", "text": "\x1b]0;x"}},
        {"operation": {"kind": "set", "text": float("1e400")}},
        {"operation": {"kind": "exec"}},
        {"operation": None},
        {"extra": 1},
        {"view": {}},
        {"view": {"model.base": "/etc"}},
        {"view": {"output.path": "x"}},
        {"view": {"data.resolution": "NaN"}},
        {"view": {"data.resolution": "1" + "0" * 400}},
        {"view": {"data.resolution": "31"}},
        {"view": {"data.caption_extensions": '["/../../x"]'}},
        {"view": {"data.caption_extensions": '[".png"]'}},
        {"view": {"data.caption_extensions": "[]"}},
        {"view": {"data.nothing": "1"}},
    ],
    ids=lambda body: str(body)[:50],
)
def test_bodies_that_are_refused(client: TestClient, view: dict[str, str], folder: Path, body: dict[str, Any]) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*.*")}
    asked = {"view": view, "pictures": ["a.png"], "operation": {"kind": "set", "text": "x"}}
    if "filter" in body:
        del asked["pictures"]
    sent = {**asked, **body, "view": {**view, **body["view"]} if body.get("view") else body.get("view", view)}
    # httpx writes no infinity; a script may
    answer = client.post("/api/dataset/preview", content=json.dumps(sent), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["findings"] and len(answer.text) < 20_000
    assert {p: p.read_bytes() for p in folder.rglob("*.*")} == before


@pytest.mark.skipif(os.name == "nt", reason="POSIX file systems only")
def test_links_out_are_named_and_not_followed(client: TestClient, view: dict[str, str], folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (40, 40)).save(outside / "secret.png")
    (outside / "secret.txt").write_text("a secret")
    (folder / "link").symlink_to(outside)
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "c.txt").symlink_to(outside / "secret.txt")
    answer = client.get("/api/dataset", params=view)
    found = ok(answer)
    assert "a secret" not in answer.text and "link.png" not in names(found) and len(names(found)) == 5
    assert {b["name"] for b in found["broken"]} == {"bad.jpg", "c.txt", "link", "link.png"}
    asked = {"view": view, "pictures": ["c.png"], "operation": {"kind": "set", "text": "x"}}
    preview = ok(client.post("/api/dataset/preview", json=asked))
    assert preview["total"] == 0 and "outside the allowed folders" in preview["faults"][0]["message"]
    assert client.get("/api/thumbnail", params={"path": str(folder / "link.png")}).status_code == 422
    assert (outside / "secret.txt").read_text() == "a secret"


@pytest.mark.slow
def test_ten_thousand_pictures_in_time(tmp_path: Path, home: Path) -> None:
    (folder := tmp_path / "many").mkdir()
    for i in range(20):
        Image.new("RGB", (512 + i, 512), (i * 12, 40, 90)).save(tmp_path / f"{i}.png")
    for i in range(10_000):
        os.link(tmp_path / f"{i % 20}.png", folder / f"{i:05}.png")
        (folder / f"{i:05}.txt").write_text(f"a cat, tag {i % 50}")
    client, view = client_of(tmp_path), {"data.path": str(folder), "data.resolution": "512"}

    def timed(ask: Callable[[], Response]) -> tuple[dict[str, Any], float]:
        begun = time.process_time()
        return ok(ask()), time.process_time() - begun

    first, seconds = timed(lambda: client.get("/api/dataset", params=view))
    assert first["total"] == 10_000 and seconds < 12
    paged, seconds = timed(lambda: client.get("/api/dataset", params={**view, "tag": "tag 7", "offset": 100, "limit": 100}))
    assert paged["matching"] == 200 and len(paged["pictures"]) == 100 and seconds < 12
    asked = {"view": view, "operation": {"kind": "add", "tags": "new"}}
    preview, seconds = timed(lambda: client.post("/api/dataset/preview", json=asked))
    assert preview["total"] == 10_000 and len(preview["changes"]) == 200 and seconds < 20
