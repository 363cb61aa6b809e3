"""[sample]: pictures painted on the way, to see what has been learnt."""

from __future__ import annotations

from typing import Literal

from limner.config.base import FilePath, Section, Text, Texts, option


class Sample(Section):
    """Preview pictures painted during training."""

    prompts: Texts = option((), kohya="sample_prompts")
    """What to paint. kohya's flags work at the end of a prompt: --w --h --d --s --l --n --ss (width, height, seed, steps,
    guidance, negative prompt, solver)."""

    prompt_file: FilePath | None = option(None, kohya="sample_prompts")
    """A kohya prompt file (.txt, one prompt a line). It is copied into the run before the start."""

    every_steps: int | None = option(None, ge=1, le=10_000_000, kohya="sample_every_n_steps")
    """Paint every so many steps. When neither every_steps nor every_epochs is given: at the end."""

    every_epochs: int | None = option(None, ge=1, le=100_000, kohya="sample_every_n_epochs")
    """Paint every so many epochs."""

    at_start: bool = option(False, kohya="sample_at_first")
    """Paint before the first step too, to see what the base model makes of the prompts."""

    negative: Text = option("")
    """What the pictures shall not show."""

    width: int | None = option(None, ge=16, le=8192, unit="px")
    """Width. The training resolution when not given."""

    height: int | None = option(None, ge=16, le=8192, unit="px")
    """Height. The training resolution when not given."""

    steps: int = option(20, ge=1, le=1000)
    """Denoising steps."""

    guidance: float | None = option(None, ge=0, le=100)
    """How strongly the prompt is followed (classifier-free guidance, arXiv:2207.12598); 1 is off. When not given: 7, for
    Flux.1 dev 3.5."""

    solver: Literal["ddim", "euler"] | None = option(None, kohya="sample_sampler")
    """How the noise is removed: DDIM (arXiv:2010.02502) or Euler (arXiv:2206.00364). When not given: DDIM, for
    Stable Diffusion 3 and Flux.1 Euler."""

    seed: int = option(0, ge=0, le=2**63 - 1)
    """Seed of the first prompt; the second gets the next one, and so on."""
