"""Hostile values in every place of every request that changes something, through the gate, with a session.

Nothing outside the allowed folders is opened, listed or written, whatever a value says: an audit hook sees all that Python
opens, lists and starts. Which requests there are is read from the application's routes.
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_world import HUGE, SECRET, Asked, World, requests, world
from route_table import routes_of

from limner import launch, runs
from limner.settings import Settings
from limner.web import gate, places
from limner.web.app import bare_app
from limner.web.context import Context
from limner.web.words import Words

pytestmark = pytest.mark.slow

__all__ = ["world"]

PATHS = {
    "data.path", "output.path", "sample.prompt_file", "memory.cache_path", "path", "pictures", "models", "output",
    "inspect.file",
}  # fmt: skip
"""What is a path, or names a picture in a folder: not one hostile value is taken for it."""


def hostile(root: Path, outside: Path) -> list[Any]:
    """The list of what people try."""
    touched = outside.parent / "touched"
    return [
        str(outside), f"{outside}/secret.png", f"{root}/../outside", f"{root}/pics/../../outside/secret.png", "..",
        "../../outside/secret.png", f"{root}/links/out", f"{root}/links/out/secret.png", f"{root}/links/secret.png",
        f"{outside}/new.txt", "/", "/etc/passwd", "/proc/self/environ", "~root/x", "C:\\Windows\\x", "\\\\server\\share\\x",
        "//server/share/x", "file:///etc/passwd", "/../../x", '["/../../x"]', f'[".txt/../../{outside.name}/x"]',
        f'"; touch {touched} #', f"$(touch {touched})", f"`touch {touched}`", f"x; touch {touched}", f"| touch {touched}",
        f"--out={touched}", "x\0y", "\ud800", "x\x1b[2J", "NaN", "inf", "1" + "0" * 400, "-1", float("nan"), 10**400, HUGE,
        None, True, [], {}, ["/etc/passwd"], {"path": str(outside / "secret.png"), "meta": {"_type": "gradio.FileData"}},
        "[" * 3000, "x" * 10_000_000, "x" * 300_000,
    ]  # fmt: skip


# --- one text after another -------------------------------------------------------------------------------------------


def slots(content: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the texts stand in a JSON value."""
    if isinstance(content, str):
        yield here
    for key, value in content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ():
        yield from slots(value, (*here, key))


def with_value(content: Any, slot: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(content)
    inner = changed
    for key in slot[:-1]:
        inner = inner[key]
    inner[slot[-1]] = value
    return changed


def poisoned(asked: Asked, value: Any) -> Iterator[tuple[str, Asked]]:
    """(what was replaced, the request) for each place of a request where a text can stand."""
    for part in ("body", "query", "where", "files"):
        content = getattr(asked, part)
        if part != "body":  # an address and a form know nothing but text, and the client makes no longer address
            if not isinstance(value, str):
                continue
            value = value[:9000]
        for slot in slots(content):
            changed = with_value(content, slot, value)
            name = next(key for key in reversed(slot) if isinstance(key, str))
            yield name, Asked(**{**asked.__dict__, part: changed})
        if part == "body" and isinstance(value, str) and isinstance(content, dict):  # and as a name
            inner = content.get("values") or content.get("view") or content
            if inner is not content and not value.startswith("x" * 100):
                name = "values" if "values" in content else "view"
                yield "a key", Asked(**{**asked.__dict__, part: {**content, name: {**inner, value: "1"}}})


def is_refused(route: str, answer: Any) -> bool:
    """Whether an answer says no: by its status, or by what is found where asking about wrong values is the very purpose."""
    if answer.status_code != 200:
        return True
    said = answer.json()
    return (route == "/api/check" and any(f["severity"] == "error" for f in said["findings"])) or (
        route == "/api/pictures/list" and said["total"] == 0
    )


def test_the_table_is_the_applications() -> None:
    app = bare_app(Context(Settings(), (), Words()))
    found = {path: route for methods, path, route in routes_of(app) if "POST" in methods and "POST" in gate._methods(path)}
    takes = {path for path, route in found.items() if any(route.dependant.body_params + route.dependant.query_params)}
    assert takes | {"/api/runs/{name}/{action}"} <= requests(Path("/x"), "x").keys() - {"/login"}
    assert found.keys() - requests(Path("/x"), "x").keys() == {"/api/tensorboard"}  # takes nothing


@pytest.mark.long
@pytest.mark.parametrize("route", sorted(requests(Path("/x"), "x").keys() - {"/login"}))
def test_hostile_values_reach_nothing(world: World, route: str, tmp_path: Path) -> None:
    before = world.snapshot()
    asked = requests(world.root / "pics", world.run.id)[route]
    if not route.startswith("/gradio_api"):
        good = world.ask(route, asked)
        assert good.status_code == 200 or route in ("/api/dataset/apply", "/api/presets/delete", "/api/tools/stop"), good.text
    tried = 0
    for value in hostile(world.root, world.outside):
        for name, request in poisoned(asked, value):
            answer, tried = world.ask(route, request), tried + 1
            told = (route, name, str(value)[:60], answer.status_code, answer.text[:300])
            assert answer.status_code < 500 or route.startswith("/gradio_api"), told  # Gradio knows no such event, and says 500
            assert SECRET not in answer.text and "root:" not in answer.text, told
            if name in PATHS and value is not None:
                assert is_refused(route, answer), told
            if answer.status_code == 422 and not route.startswith("/gradio_api"):
                findings = answer.json()["findings"]
                assert findings and all(f["field"] and f["message"] for f in findings), told
                assert len(answer.text) < 100_000, told
                if name in PATHS and isinstance(value, str) and "." in name:
                    assert any(f["field"].endswith(name) for f in findings), told
    print(route, tried)
    assert world.snapshot() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "outside", "root"]
    _nothing_strange(world)


def _nothing_strange(world: World) -> None:
    """What was accepted is harmless: names of files are plain, settings can be read, a trainer is given one path."""
    for path in [*runs.home().rglob("*"), *world.root.rglob("*")]:
        assert not any(unicodedata.category(c)[0] == "C" or c in '<>:"|?*$`' for c in path.name), path
    assert not list(runs.home().glob("*.damaged-*"))
    for run in runs.all_runs():
        assert run.path.parent == runs.home() / "runs"
        assert "touch" not in " ".join(launch.argv(run.config(), Path("RUN"), "cpu"))
        for path in (run.config().data.path, run.config().output.path):
            assert path is None or places.resolve(str(path), (world.root,))
