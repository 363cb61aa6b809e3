"""Whom the server lets see what: decided before it answers, from the flags, the settings, the password and the accounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.settings import Settings
from limner.web import places, server
from limner.web.context import Context


def circumstances(kept: Settings, *, password: str = "", root_path: str = "") -> Context:
    return server.context_for(server.Asked(), kept, [], password=password, root_path=root_path, loopback=True)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home folder, in which they started Limner, on a machine of their own."""
    folder = tmp_path / "ada"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(places, "has_other_users", lambda: False)
    return folder.resolve()


def test_alone_one_sees_ones_home_folder(own: Path) -> None:
    context = circumstances(Settings())
    assert own in context.roots and context.loopback and context.notices == ()


@pytest.mark.parametrize(("hosts", "root_path"), [(("studio.example",), ""), ((), "/limner"), (("studio.example",), "/limner")])
def test_behind_a_proxy_the_home_folder_is_not_shown(own: Path, hosts: tuple[str, ...], root_path: str) -> None:
    context = circumstances(Settings(hosts=hosts), root_path=root_path)
    assert own not in context.roots and not context.loopback
    [notice] = context.notices
    assert notice.severity == "warning" and "LIMNER_PASSWORD" in notice.remedy
    guarded = circumstances(Settings(hosts=hosts), root_path=root_path, password="a long password")
    assert own not in guarded.roots and guarded.notices == ()


def test_where_others_have_accounts_the_home_folder_is_not_shown(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "has_other_users", lambda: True)
    context = circumstances(Settings())
    assert own not in context.roots and context.loopback
    assert [notice.severity for notice in context.notices] == ["warning"]
