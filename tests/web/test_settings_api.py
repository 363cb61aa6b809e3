"""Settings, folders and notices through the page's routes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from limner import settings
from limner.errors import Finding
from limner.settings import Settings
from limner.web.context import Context
from limner.web.words import Words


@pytest.fixture
def asking(client: Callable[[Context], TestClient], tmp_path: Path) -> TestClient:
    (tmp_path / "root" / "cats").mkdir(parents=True)
    notices = (Finding("settings.toml", "is damaged.", "It is kept.", "warning"),)
    return client(Context(Settings(), ((tmp_path / "root").resolve(),), Words(), notices))


def test_settings_are_read_and_changed(asking: TestClient, home: Path, tmp_path: Path) -> None:
    before = asking.get("/api/settings").json()
    assert (before["theme"], before["languages"][0], before["home"]) == ("system", "en", str(home))
    after = asking.post("/api/settings", json={"theme": "dark", "pictures": "cats", "defaults": {"optimizer.lr": "0"}}).json()
    assert (after["theme"], after["pictures"]) == ("dark", str((tmp_path / "root" / "cats").resolve()))
    asking.post("/api/settings", json={"language": "ja"})
    kept, findings = settings.read(home)
    assert (kept.theme, kept.language, kept.defaults, findings) == ("dark", "ja", {"optimizer.lr": "0"}, [])
    assert asking.post("/api/settings", json={"pictures": None}).json()["pictures"] is None


def test_the_folder_for_results_is_what_forms_start_from(asking: TestClient, tmp_path: Path) -> None:
    folder = str((tmp_path / "root" / "cats").resolve())
    answer = asking.post("/api/settings", json={"output": folder, "defaults": {"optimizer.lr": "0"}}).json()
    assert answer["defaults"] == {"output.path": folder, "optimizer.lr": "0"}
    answer = asking.post("/api/settings", json={"defaults": {"output.path": "/mine"}}).json()
    assert answer["defaults"] == {"output.path": "/mine"}


def test_a_damaged_file_is_said_and_left_alone(asking: TestClient, home: Path) -> None:
    path = home / settings.NAME
    path.write_text("theme = ")
    for answer in (asking.get("/api/settings"), asking.post("/api/settings", json={"theme": "dark"})):
        [finding] = answer.json()["findings"]
        assert answer.status_code == 422 and finding["field"] == settings.NAME and "damaged" in finding["message"]
    assert path.read_text() == "theme = " and not list(home.glob("*.damaged-*"))
    path.write_text("theme = 'pink'\nfuture = 3\n")
    assert asking.get("/api/settings").json()["theme"] == "system"


@pytest.mark.parametrize(
    "body",
    [
        {"roots": ["/"]}, {"hosts": ["evil.example"]}, {"home": "/"}, {"theme": "pink"}, {"theme": 1},
        {"language": "xx"}, {"pictures": "/etc"},
        {"output": "../.."},        {"models": "C:\\x"}, {"pictures": 5}, {"pictures": ["cats"]},
        {"defaults": {"a": 1}}, {"defaults": []}, [], "x", 3, None, {"x" * 5000: 1},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_whole(asking: TestClient, home: Path, body: object) -> None:
    answer = asking.post("/api/settings", json=body)
    assert answer.status_code == 422
    assert not (home / settings.NAME).exists()


def test_folders(asking: TestClient, tmp_path: Path) -> None:
    root = (tmp_path / "root").resolve()
    assert asking.get("/api/folders").json()["folders"] == [{"name": "root", "path": str(root)}]
    assert asking.get("/api/folders", params={"path": str(root)}).json()["folders"][0]["name"] == "cats"
    refused = asking.get("/api/folders", params={"path": "/etc"})
    assert refused.status_code == 422 and refused.json()["findings"][0]["field"] == "path"


def test_notices(asking: TestClient) -> None:
    assert asking.get("/api/notices").json() == [
        {"field": "settings.toml", "message": "is damaged.", "remedy": "It is kept.", "severity": "warning"}
    ]
