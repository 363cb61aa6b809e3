"""The newest training state is that of the highest step, however the folders are called and whenever they were written."""

from __future__ import annotations

import os
from pathlib import Path

from limner import disk
from limner.engine.checkpoint import newest_state, step_of


def state(folder: Path, name: str) -> Path:
    def fill(inside: Path) -> None:
        (inside / "weights").write_bytes(name.encode())

    disk.write_folder(folder / name, fill)
    return folder / name


def test_the_highest_step_is_the_newest(tmp_path: Path) -> None:
    made = [state(tmp_path, name) for name in ("step-00000100", "step-00000020", "step-9")]
    for number, path in enumerate(made):
        os.utime(path, (1e9 + number,) * 2)
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-00000200").write_bytes(b"a file")
    (tmp_path / ".tmp-012345").mkdir()
    assert newest_state(tmp_path) == (made[0], [])
    (made[0] / "weights").write_bytes(b"x" * 13)
    path, faults = newest_state(tmp_path)
    assert path == made[1] and step_of(made[1]) == 20 and faults == ["step-00000100: weights is damaged"]


def test_two_folders_of_one_step(tmp_path: Path) -> None:
    other = state(tmp_path, "step-20")
    whole = state(tmp_path, "step-00000020")
    assert newest_state(tmp_path) == (other, [])
    (other / "weights").unlink()
    assert newest_state(tmp_path)[0] == whole
