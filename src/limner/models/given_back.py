"""Memory that is free goes back to the system between phases.

A run on a CPU has glibc keep what it frees, which makes steps faster (see `launch`). What a phase leaves behind would stay in
memory beside the next one, full of holes that fit nothing: so between phases it is given back after all.
"""

from __future__ import annotations

import ctypes
import gc
import sys

import torch


def give_back() -> None:
    """Forget what nothing refers to, and return what is free to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_holes_back()


def give_holes_back() -> None:
    """Return what is free of the C library's memory. An aligned tensor does not fit where one of its size has been."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's alone
        libc.malloc_trim(0)
