"""[logging]: who else is told of the run's numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from limner.config.base import Section, Text, option, to_tuple

Tracker = Literal["wandb", "trackio"]


class Logging(Section):
    """TensorBoard files are always written, into the run's own folder. Other trackers are told only when asked for."""

    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(to_tuple)] = option((), kohya="log_with")
    """Also tell these: "wandb" (Weights & Biases, over the network) or "trackio" (on this machine). A key is never written
    here: wandb takes it from WANDB_API_KEY or from its own login, and WANDB_MODE=offline needs none."""

    project: Text = option("limner", kohya="log_tracker_name", when="logging.trackers")
    """Name of the project under which the trackers list the run."""

    run_name: Text | None = option(None, kohya="wandb_run_name", when="logging.trackers")
    """Name of the run there. The run's id when not given."""
