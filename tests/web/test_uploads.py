"""What was dropped on the page and left for a day goes; nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

from limner.web import uploads


def test_sweeping(tmp_path: Path) -> None:
    folder, outside, now = tmp_path / "uploads", tmp_path / "outside.png", 1_000_000_000.0
    for name, age in (("old/a.png", 90_000), ("old/new.png", 10), ("gone/b.png", 90_000), ("edge/c.png", 86_399)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (now - age, now - age))
    outside.write_bytes(b"x")
    os.utime(outside, (now - 90_000, now - 90_000))
    (folder / "link.png").symlink_to(outside)
    (folder / "folder-link").symlink_to(tmp_path)
    os.utime(folder / "gone", (now - 90_000, now - 90_000))
    assert uploads.sweep(folder, now=now) == 2
    assert {p.name for p in folder.rglob("*.png")} == {"new.png", "c.png", "link.png"}
    assert outside.exists()
    assert uploads.sweep(tmp_path / "missing", now=now) == 0
