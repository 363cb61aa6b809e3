"""Putting away moves pictures and their captions, nothing else, and looks at each name once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from limner.config import files
from limner.data.removal import REMOVED, removal
from limner.data.survey import Survey, survey
from limner.errors import UserError
from limner.formats.base import recognise


class Counted(list[str]):
    """Names that count how often they were gone through."""

    times = 0

    def __iter__(self) -> Iterator[str]:
        self.times += 1
        return super().__iter__()


@pytest.fixture
def found(tmp_path: Path) -> Survey:
    for i in range(20):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{i:02}.png")
        (tmp_path / f"{i:02}.txt").write_text("a cat")
    config = files.build({}, {"data.path": str(tmp_path)})
    return survey(config, recognise(config.model.base))


def test_the_names_are_not_gone_through_again_for_each_picture(found: Survey) -> None:
    names = Counted(f"{i:02}.png" for i in range(10))
    changes = removal(found, names, (".txt",))
    assert {c.path.name for c in changes} == {f"{i:02}.{end}" for i in range(10) for end in ("png", "txt")}
    assert names.times <= 3


@pytest.mark.parametrize("extensions", [(), (".txt", ".png"), ("/../x.txt",)])
def test_endings_that_are_none_of_a_caption_move_nothing(found: Survey, extensions: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="caption_extensions"):
        removal(found, ["00.png"], extensions)
    assert not (found.folder / REMOVED).exists()
