"""A checkout of sd-scripts on the disk: its version, and the Python it is installed for. Told from files; nothing is run."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

from limner.config.launch import Launch

_VERSION = re.compile(r"\bversion\s+(\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)\b", re.IGNORECASE)
_HASH = re.compile(r"[0-9a-f]{40}")
_TAG = re.compile(r"refs/tags/v?(\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)")
_READ_BYTES = 1 << 20
_MARK = "train_network.py"
"""The script that every version has had."""


def is_checkout(folder: Path) -> bool:
    """Whether a folder looks like one of sd-scripts."""
    return (folder / _MARK).is_file() and (folder / "library").is_dir()


def version_of(checkout: Path) -> tuple[int, ...] | None:
    """The version, such as (0, 10, 1): of the tag that is checked out, else the newest that the README tells of."""
    return _tagged(_git_folder(checkout)) or _told(checkout / "README.md")


def _told(readme: Path) -> tuple[int, ...] | None:
    found = [_numbers(text) for text in _VERSION.findall(_read(readme))]
    return max(found, default=None)


def _git_folder(checkout: Path) -> Path:
    """`.git`, or the folder that it points to: in a submodule, as kohya_ss has it, it is a file."""
    git = checkout / ".git"
    said = _read(git) if git.is_file() else ""
    return checkout / said.removeprefix("gitdir:").strip() if said.startswith("gitdir:") else git


def _tagged(git: Path) -> tuple[int, ...] | None:
    head, packed = _read(git / "HEAD").strip(), _read(git / "packed-refs")
    if head.startswith("ref:"):
        name = head.removeprefix("ref:").strip()
        head = _read(git / name).strip() if ".." not in name and not name.startswith("/") else ""
        head = head or next((line[:40] for line in packed.splitlines() if line[41:] == name), "")
    if not _HASH.fullmatch(head):
        return None
    last = ""
    for line in packed.splitlines():
        commit, _, name = line.partition(" ")
        # an annotated tag's own hash comes first, and behind it, marked ^, that of its commit
        last = name if not line.startswith("^") else last
        if line.removeprefix("^")[:40] == head or commit == head:
            match = _TAG.fullmatch(last)
            if match:
                return _numbers(match[1])
    for path in sorted((git / "refs" / "tags").glob("*")) if (git / "refs" / "tags").is_dir() else ():
        match = _TAG.fullmatch(f"refs/tags/{path.name}")
        if match and _read(path).strip() == head:
            return _numbers(match[1])
    return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_READ_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def python_of(section: Launch) -> Path:
    """The Python that runs sd-scripts. Not resolved: a virtual environment's is a link, and known by its place."""
    if section.python is not None:
        return section.python.absolute()
    if section.sd_scripts is not None:
        checkout = section.sd_scripts.absolute()
        # as a submodule of kohya_ss it uses the environment of that
        around = [checkout.parent] if (checkout.parent / "kohya_gui.py").is_file() else []
        for folder in (checkout, *around):
            for name in ("venv", ".venv"):
                found = folder / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
                if found.is_file():
                    return found
    return Path(sys.executable)


def has_package(python: Path, package: str) -> bool | None:
    """Whether a Python has a package; None where its files do not tell (it has no environment of its own)."""
    if python == Path(sys.executable):
        return importlib.util.find_spec(package) is not None
    root = python.parent.parent
    if not (root / "pyvenv.cfg").is_file():
        return None
    if re.search(r"include-system-site-packages\s*=\s*true", _read(root / "pyvenv.cfg"), re.IGNORECASE):
        return None
    places = [root / "Lib" / "site-packages", *root.glob("lib/python3*/site-packages")]
    return any((place / package).is_dir() for place in places)
