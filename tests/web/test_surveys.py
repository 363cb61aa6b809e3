"""Surveys and searches are made once for those who ask for the same, and nobody waits for another folder's."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from limner.data.survey import Filter, Survey, survey
from limner.settings import Settings
from limner.web import kept, surveys
from limner.web.context import Context
from limner.web.surveys import Searches, Surveys
from limner.web.words import Words

WAIT = 60


class Slow:
    """`survey` that counts its calls, and holds those of the folder "slow" until `go` is set."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.made: list[str] = []

    def __call__(self, config: Any, *rest: Any) -> Survey:
        self.made.append(config.data.path.name)
        found = survey(config, *rest)
        if config.data.path.name == "slow":
            self.begun.set()
            assert self.go.wait(WAIT)
        return found


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    monkeypatch.setattr(surveys, "survey", made := Slow())
    return made


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("slow", "other"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / name / "a.png")
    return tmp_path


@pytest.fixture
def held(folders: Path) -> Surveys:
    return Surveys(Context(Settings(), (folders.resolve(),), Words()))


def test_a_long_scan_holds_up_no_other_folder_and_is_made_once(held: Surveys, slow: Slow, folders: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(held.get, {"data.path": str(folders / "slow")})
        assert slow.begun.wait(WAIT)
        second = pool.submit(held.get, {"data.path": str(folders / "slow")})
        other = pool.submit(held.get, {"data.path": str(folders / "other")})
        try:
            assert len(other.result(WAIT).rows) == 1
        finally:
            slow.go.set()
        assert first.result(WAIT) is second.result(WAIT)
    assert sorted(slow.made) == ["other", "slow"]


def test_a_scan_that_took_longer_than_it_is_fresh_is_kept(
    held: Surveys, slow: Slow, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "time", SimpleNamespace(monotonic=lambda: 100.0 * len(slow.made)))  # 100 s a scan
    view = {"data.path": str(folders / "other")}
    assert held.get(view) is held.get(view)


def test_what_is_written_during_a_scan_is_seen_at_the_next_look(held: Surveys, slow: Slow, folders: Path) -> None:
    view = {"data.path": str(folders / "slow")}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(held.get, view)
        assert slow.begun.wait(WAIT)
        (folders / "slow" / "a.txt").write_text("a cat")
        held.forget()
        slow.go.set()
        assert first.result(WAIT).rows[0].picture.caption == ""
    assert held.get(view).rows[0].picture.caption == "a cat"


def test_a_search_is_as_old_as_its_end(held: Surveys, folders: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches, found = Searches(), held.get({"data.path": str(folders / "other")})
    first = searches.get(found)
    first.wait()
    now = first.ended
    monkeypatch.setattr(surveys, "time", SimpleNamespace(monotonic=lambda: now + surveys._SEARCHED_SECONDS - 1))
    assert searches.get(found) is first
    monkeypatch.setattr(surveys, "time", SimpleNamespace(monotonic=lambda: now + surveys._SEARCHED_SECONDS + 1))
    assert searches.get(found) is not first


def test_what_took_long_is_fresh_for_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr(kept, "time", SimpleNamespace(monotonic=lambda: now[0]))
    made: list[int] = []

    def make(seconds: float) -> int:
        now[0] += seconds
        made.append(len(made))
        return made[-1]

    held = kept.Kept[int](0.0, lambda _: [str(tmp_path)], lambda _: 1)
    assert [held.get("short", lambda: make(4)) for _ in range(2)] == [0, 1]
    assert held.get("long", lambda: make(30)) == 2
    now[0] += 299
    assert held.get("long", lambda: make(30)) == 2
    now[0] += 2
    assert held.get("long", lambda: make(30)) == 3
    os.utime(tmp_path, (0, 0))  # something came or went
    assert held.get("long", lambda: make(30)) == 4
    held.forget()
    assert held.get("long", lambda: make(30)) == 5


def test_of_large_things_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_MOST", 10)
    made: list[str] = []
    held = kept.Kept[str](1e9, lambda _: [], lambda value: 6 if value.isupper() else 1)
    for name in ("a", "b", "A", "a", "B", "A"):
        held.get(name, lambda name=name: made.append(name) or name)
    assert made == ["a", "b", "A", "B", "A"], "B and A do not go together"


def test_pages_of_a_survey_are_counted_once(held: Surveys, folders: Path) -> None:
    (folders / "other" / "a.txt").write_text("Cat, dog, cat")
    found = held.get({"data.path": str(folders / "other")})
    first = found.selection(Filter(text="cat"))
    assert [row.name for row in first.rows] == ["a.png"] and first.tags == [("cat", 1), ("dog", 1)]
    assert found.selection(Filter(text="cat")) is first and found.selection(Filter(text="bird")).rows == []
    for text in "wxyz":
        found.selection(Filter(text=text))
    assert found.selection(Filter(text="cat")) is not first, "it is not kept for ever"
