"""Hostile values in every text of every tool, through the page's routes: nothing outside is reached, nothing is started.

The tools work in this process, so that the audit hook of hostile_world sees all that they open.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tool_uses
from hostile_world import SECRET, Asked, World, world

from limner.config.fields import walk
from limner.config.tools import Tools
from limner.tools import hub

pytestmark = pytest.mark.slow

__all__ = ["world"]


def hostile(world: World) -> list[str]:
    """What people try in a text, and (False, text) what is no place for the page."""
    touched = world.outside.parent / "touched"
    return [
        f'"; touch {touched} #', f"$(touch {touched})", f"`touch {touched}`", f"| touch {touched}", f"--out={touched}",
        f"a\n[convert]\nfile = '{world.outside}/secret.txt'\n", '"""', "'''", "\\", "<img src=x onerror=alert(1)>",
        "{0.__class__}", "%s%n", f'["$(touch {touched})", "\\u0000"]', "../" * 30 + "etc/passwd",
    ]  # fmt: skip


def places_outside(world: World) -> list[str]:
    """What no option takes for a path."""
    return [
        str(world.outside / "secret.txt"), str(world.root / "links" / "out" / "secret.txt"), "/etc/passwd", "../outside",
        f"{world.root}/pics/../../outside",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tools work on, made once."""
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_HOME", str(folder / "home"))
        (folder / "files").mkdir()
        tool_uses.prepare(folder / "files")
    return folder / "files"


@pytest.mark.long
@pytest.mark.parametrize("tool", Tools.model_fields)
def test_hostile_texts_of_a_tool(world: World, inputs: Path, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "_FIRST_WAIT_SECONDS", 0.001)
    before, place = world.snapshot(), world.root / "files"

    def ask(route: str, path: str, value: str) -> int:
        if not place.exists():
            shutil.copytree(inputs, place)
        good = tool_uses.values(tool, place, "http://127.0.0.1:9/v1")
        good.pop("merge_model.preview_prompt", None)  # painting takes seconds, each time
        if tool == "caption_by_server":
            good |= {"caption_by_server.retries": "0", "caption_by_server.timeout_seconds": "0.2"}
        if not path:
            return world.ask(route, Asked({"tool": tool, "values": good})).status_code
        answer = world.ask(route, Asked({"tool": tool, "values": {**good, path: value}}))
        told = (route, path, value, answer.status_code, answer.text[:300])
        assert answer.status_code in (200, 422) and SECRET not in answer.text and "root:" not in answer.text, told
        if answer.status_code == 422:
            assert all(f["field"].startswith((path, tool)) and f["message"] for f in answer.json()["findings"]), told
        return answer.status_code

    assert ask("/api/tools/look", "", "") == 200
    for option in (o for o in walk(Tools) if o.section == tool and o.name != "preview_prompt"):
        is_path = Path in option.types or option.holds_files
        for value in places_outside(world) if is_path else ():
            assert ask("/api/tools/look", option.path, f'["{value}"]' if option.is_list else value) == 422, (option.path, value)
        if not (is_path or option.is_list or str in option.types):
            continue
        for value in hostile(world):
            ask("/api/tools/look", option.path, value)
        for value in hostile(world)[:2]:
            if ask("/api/tools/start", option.path, value) == 200:
                shutil.rmtree(place)
    assert world.snapshot() == before
    assert not (world.outside.parent / "touched").exists()
