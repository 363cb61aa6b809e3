"""Imports are not looked through for garbage; everything else is."""

import gc
import sys

import pytest

from limner.garbage import uncollected


def test_what_was_on_is_on_again() -> None:
    with pytest.raises(ImportError), uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_only_what_came_with_a_module_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_freeze_count()
    with uncollected():
        pass
    assert gc.get_freeze_count() == before
    try:
        with uncollected():
            monkeypatch.setitem(sys.modules, "limner.none_such", sys)
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
