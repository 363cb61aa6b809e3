"""[validation]: pictures that are not trained on, to see whether what is learnt goes beyond those that are."""

from __future__ import annotations

from limner.config.base import FilePath, Section, option


class Validation(Section):
    """The loss on held-out pictures, always at the same timesteps and with the same noise. It changes nothing in the
    training."""

    share: float = option(0.0, ge=0, le=0.5, kohya="validation_split", advanced=True)
    """Share of the pictures that is held out, drawn by the seed; 0 holds out none."""

    path: FilePath | None = option(None, advanced=True)
    """A folder of pictures for it, besides or instead of the share."""

    every_steps: int | None = option(None, ge=1, le=10_000_000, kohya="validate_every_n_steps", advanced=True)
    """Measure every so many steps. When neither every_steps nor every_epochs is given: every epoch."""

    every_epochs: int | None = option(None, ge=1, le=100_000, kohya="validate_every_n_epochs", advanced=True)
    """Measure every so many epochs."""
