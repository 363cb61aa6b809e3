"""[sample]: pictures painted on the way, to see what has been learnt."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from limner.config.base import FilePath, Section, Text, Texts, option

Solver = Literal["ddim", "euler", "euler_a", "dpmpp_2m"]


def own_solver(name: Any) -> Any:
    """Our name of one of kohya's samplers; what has none stays as it is."""
    plain = name.lower().removeprefix("k_") if isinstance(name, str) else ""
    own = "dpmpp_2m" if plain == "dpmsolver++" else plain
    return own if own in get_args(Solver) else name


class Sample(Section):
    """Preview pictures painted during training."""

    prompts: Texts = option((), kohya="sample_prompts")
    """What to paint. kohya's flags work at the end of a prompt: --w --h --d --s --l --n --ss (width, height, seed, steps,
    guidance, negative prompt, solver). Flux.1 dev is told the guidance; with --g for that, --l is classifier-free guidance on
    top. --fs is the shift of a flow (Stable Diffusion 3, Flux.1)."""

    prompt_file: FilePath | None = option(None, kohya="sample_prompts")
    """A kohya prompt file: .txt (one prompt a line), .toml or .json. It is copied into the run before the start."""

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

    solver: Annotated[Solver, BeforeValidator(own_solver)] | None = option(None, kohya="sample_sampler")
    """How the noise is removed: DDIM (arXiv:2010.02502), Euler (arXiv:2206.00364), Euler ancestral (arXiv:2011.13456), which
    adds new noise at each step, or DPM-Solver++ 2M (arXiv:2211.01095), which needs fewer steps. When not given: DDIM, for
    Stable Diffusion 3 and Flux.1 Euler, the only one that they can use."""

    seed: int = option(0, ge=0, le=2**63 - 1)
    """Seed of the first prompt; the second gets the next one, and so on."""
