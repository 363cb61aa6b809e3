"""[speed]: how the arithmetic is carried out. Nothing here changes what is learnt beyond rounding."""

from __future__ import annotations

from limner.config.base import Section, option


class Speed(Section):
    """How a step is computed."""

    prepack: bool = option(True, advanced=True)
    """On a CPU: lay the frozen layers' weights out once, as its kernels want them, and not in every step anew."""
