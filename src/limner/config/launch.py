"""[launch]: on which devices the trainer runs."""

from __future__ import annotations

from typing import Literal

from limner.config.base import Section, option


class Launch(Section):
    """Devices and processes."""

    device: Literal["cpu", "cuda", "mps"] | None = option(None)
    """Where to train. The best device of the machine when not given."""

    num_processes: int = option(1, ge=1, le=1024, kohya="num_processes")
    """Processes, one on each GPU. On a CPU they share its cores."""

    num_threads: int | None = option(None, ge=1, le=4096, kohya="num_cpu_threads_per_process", advanced=True)
    """CPU threads of each process. PyTorch's choice when not given."""
