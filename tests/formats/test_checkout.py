"""A checkout's version and Python are told from its files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import fake_sd_scripts
from limner.config import Launch
from limner.formats.checkout import has_package, is_checkout, python_of, version_of

COMMIT, OTHER, TAG = "a" * 40, "b" * 40, "c" * 40


def checkout_with(folder: Path, **files: str) -> Path:
    checkout = fake_sd_scripts.make(folder / "sd-scripts")
    for name, text in files.items():
        path = checkout / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return checkout


@pytest.mark.parametrize(
    ("head", "packed", "version"),
    [
        (COMMIT, f"{COMMIT} refs/tags/v0.9.1\n", (0, 9, 1)),
        ("ref: refs/heads/main", f"{COMMIT} refs/heads/main\n{COMMIT} refs/tags/v0.9.0\n", (0, 9, 0)),
        (COMMIT, f"# pack-refs with: peeled\n{TAG} refs/tags/v0.10.0\n^{COMMIT}\n{OTHER} refs/tags/v0.8.8\n", (0, 10, 0)),
        (OTHER, f"{COMMIT} refs/tags/v0.9.1\n", (0, 10, 1)),  # between releases: what the README tells
        ("ref: ../../../etc/passwd", "", (0, 10, 1)),
        ("nonsense", "", (0, 10, 1)),
    ],
)
def test_the_version_is_that_of_the_tag_or_the_newest_in_the_readme(
    tmp_path: Path, head: str, packed: str, version: tuple[int, ...]
) -> None:
    checkout = checkout_with(tmp_path, **{".git__HEAD": head + "\n", ".git__packed-refs": packed})
    assert version_of(checkout) == version


def test_a_submodule_keeps_its_git_folder_elsewhere_and_a_tag_may_lie_in_a_file(tmp_path: Path) -> None:
    checkout = checkout_with(tmp_path, **{".git": "gitdir: ../.git/modules/sd-scripts\n"})
    git = tmp_path / ".git" / "modules" / "sd-scripts"
    (git / "refs" / "tags").mkdir(parents=True)
    (git / "HEAD").write_text(COMMIT, encoding="utf-8")
    (git / "refs" / "tags" / "v0.9.1").write_text(f"{COMMIT}\n", encoding="utf-8")
    assert version_of(checkout) == (0, 9, 1)


def test_without_any_word_there_is_no_version(tmp_path: Path) -> None:
    assert version_of(checkout_with(tmp_path, **{"README.md": "nothing"})) is None
    assert is_checkout(tmp_path / "sd-scripts") and not is_checkout(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="a virtual environment's Python lies elsewhere")
def test_the_python_is_that_of_the_environment_beside_it(tmp_path: Path) -> None:
    checkout = checkout_with(tmp_path)
    section = Launch(sd_scripts=checkout)
    assert python_of(section) == Path(sys.executable)
    around, own = tmp_path / "venv" / "bin" / "python", checkout / ".venv" / "bin" / "python"
    for path in (around, own):
        path.parent.mkdir(parents=True)
    around.symlink_to(sys.executable)
    assert python_of(section) == Path(sys.executable)  # not any folder's that happens to lie around it
    (tmp_path / "kohya_gui.py").write_text("", encoding="utf-8")
    assert python_of(section) == around  # and not what it links to, which knows nothing of the environment
    own.symlink_to(sys.executable)
    assert python_of(section) == own
    assert python_of(Launch(sd_scripts=checkout, python=around)) == around


def test_packages_are_looked_for_in_the_environment(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    assert has_package(python, "accelerate") is None  # no environment of its own: its files do not tell
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\n", encoding="utf-8")
    assert has_package(python, "accelerate") is False
    (packages / "accelerate").mkdir()
    assert has_package(python, "accelerate") is True
    (tmp_path / "pyvenv.cfg").write_text("include-system-site-packages = true\n", encoding="utf-8")
    assert has_package(python, "torch") is None
    assert has_package(Path(sys.executable), "pydantic") is True and has_package(Path(sys.executable), "no_such") is False
