"""[launch]: which trainer, and on which devices it runs."""

from __future__ import annotations

from typing import Literal

from limner.config.base import FilePath, Section, option


class Launch(Section):
    """Devices and processes."""

    device: Literal["cpu", "cuda", "mps"] | None = option(None)
    """Where to train. The best device of the machine when not given."""

    num_processes: int = option(1, ge=1, le=1024, kohya="num_processes")
    """Processes, one on each GPU. On a CPU they share its cores."""

    num_threads: int | None = option(None, ge=1, le=4096, kohya="num_cpu_threads_per_process", advanced=True)
    """CPU threads of each process. PyTorch's choice when not given."""

    trainer: Literal["limner", "sd-scripts"] = option("limner", advanced=True)
    """Who trains: Limner itself, or kohya's sd-scripts in a checkout of yours. The options are translated for it, and Limner
    starts it, watches it and keeps what it writes in the run's folder."""

    sd_scripts: FilePath | None = option(None, advanced=True, when="launch.trainer = sd-scripts")
    """The folder of sd-scripts, the one with train_network.py in it."""

    python: FilePath | None = option(None, advanced=True, when="launch.trainer = sd-scripts")
    """The Python that sd-scripts is installed for. When not given: that of a folder venv or .venv in the checkout, or of
    kohya_ss around it, else the one that Limner runs in."""
