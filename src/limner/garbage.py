"""Python's looks for garbage, which are in vain among the thousands of modules of a library that is being imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Around imports: nobody looks for garbage meanwhile, and if any module came, nobody ever looks at what is there then.

    That is a fifth of the time they take, and makes each later look shorter. What is garbage by then stays, and so would what
    later refers to itself by way of what is there.
    """
    known, was_on = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        if was_on:
            gc.enable()
