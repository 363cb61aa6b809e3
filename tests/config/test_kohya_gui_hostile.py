"""The payloads of kohya_ss's six advisories (GHSL-2024-019 to 024) as values of every field: text stays text."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from limner.config import files
from limner.config.fields import walk
from limner.config.kohya.gui import read

KEYS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "kohya_gui_keys.json").read_text())
PAYLOADS = {
    "CVE-2024-32022, caption text": '"; touch pwned; #',
    "CVE-2024-32026, model id": "$(touch pwned)",
    "CVE-2024-32025, group size": "4; touch pwned",
    "CVE-2024-32027, metadata file": '"; touch pwned #',
    "CVE-2024-32024, caption ending": "/../../pwned",
    "CVE-2024-32023, any ending": ".py",
    "a shell's other quotes": "`touch pwned`",
    "a pipe": "a | touch pwned && touch pwned2 > pwned3",
    "a Python expression": "__import__('os').system('touch pwned')",
    "a flag": "--config_file pwned.toml --output_dir /x",
}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to stand in; whatever starts a process or opens a file ends the test."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a process was started or a file was opened")

    monkeypatch.chdir(tmp_path)
    for module, name in ((os, "system"), (subprocess, "Popen"), (os, "popen"), (os, "open"), (builtins, "open")):
        monkeypatch.setattr(module, name, refuse)
    for name in ("eval", "exec"):
        monkeypatch.setattr(builtins, name, refuse)
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """What is read once from Limner's own files is read before files are watched."""
    for tab in "LDFT":
        read(_form(tab), "form.json")


def _form(tab: str) -> dict[str, Any]:
    return {k: v for k, by in KEYS.items() for tabs, v in by.items() if tab in tabs}


def _texts(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list | tuple) else [str(value)]


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=list(PAYLOADS))
@pytest.mark.parametrize("tab", "LDFT")
def test_a_payload_in_every_field_at_once(watched: Path, tab: str, payload: str) -> None:
    begins = _form(tab)
    raw = {k: v if isinstance(v, bool) else payload for k, v in begins.items()}
    if payload.startswith("--"):
        raw["additional_parameters"] = ""  # there it is what it looks like: an output folder, as if typed in its own field
    got = read(raw, payload)
    assert got is not None
    assert list(got.report.lines) == list(raw)
    assert all(line.why or line.becomes for line in got.report.lines.values())
    config = files.build(got.values, {})
    plain = {o.path: getattr(getattr(config, o.section), o.name) for o in walk() if o.is_of(getattr(config, o.section))}
    held = {path for path, value in plain.items() if payload in _texts(value)}
    assert {"output.name", "model.base", "output.path"} <= held  # as they are, for the preflight to judge
    assert ("data.caption_extensions" in held) == (payload == ".py")
    assert files.build(files.parse(files.render(config), ""), {}) == config
    assert list(watched.iterdir()) == []


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=list(PAYLOADS))
def test_a_payload_in_each_field_alone(watched: Path, payload: str) -> None:
    for key, begins in _form("L").items():
        if isinstance(begins, bool) or key in ("huggingface_token", "wandb_api_key"):
            continue
        raw = {"LoRA_type": "Standard", "model_list": "", "optimizer": "AdamW", key: payload}
        got = read(raw, "form.json")
        assert got is not None
        line = got.report.lines[key]
        assert line.value == payload
        assert line.why or line.becomes, line
        files.build(got.values, {})
    assert list(watched.iterdir()) == []


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=list(PAYLOADS))
def test_a_payload_as_a_key(watched: Path, payload: str) -> None:
    got = read({"LoRA_type": "Standard", "model_list": "", payload: payload}, "form.json")
    assert got is not None
    assert got.report.lines[payload].outcome == "unknown"
    config = read({"basic": {payload: payload}, "advanced": {}, payload: {payload: payload}}, "config.toml")
    assert config is not None
    assert {line.outcome for line in config.report.lines.values()} == {"unknown"}
    assert list(watched.iterdir()) == []


def test_a_class_by_its_path_is_not_imported(watched: Path) -> None:
    """sd-scripts imports whatever module these name."""
    raw = {
        "LoRA_type": "Standard",
        "model_list": "",
        "optimizer": "evil.module.Class",
        "lr_scheduler_type": "evil.module.Class",
    }
    got = read(raw, "form.json")
    assert got is not None
    files.build(got.values, {})
    assert list(watched.iterdir()) == []
