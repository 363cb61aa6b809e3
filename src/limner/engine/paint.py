"""Paint pictures from prompts with the resident model: previews, `limner sample`, the demo's examination."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from limner.config.prompts import Prompt
from limner.diffusion.process import Flow
from limner.diffusion.solvers import solve
from limner.engine.runtime import Runtime
from limner.models.family import Conditioning, Family


@torch.no_grad()
def encode_prompts(family: Family, runtime: Runtime, prompts: Sequence[Prompt]) -> list[tuple[Conditioning, Conditioning]]:
    """(conditioning, negative conditioning) of each prompt, on the CPU. The text encoder must be loaded."""
    with runtime.autocast():
        encoded = [family.encode_prompt(p.text, p.negative) for p in prompts]
    return [({k: v.float().cpu() for k, v in a.items()}, {k: v.float().cpu() for k, v in b.items()}) for a, b in encoded]


def paint(
    family: Family,
    runtime: Runtime,
    prompts: Sequence[Prompt],
    encoded: Sequence[tuple[Conditioning, Conditioning]],
    together: int = 1,
    look: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """Paint each prompt; yields pixels (3, H, W) in [-1, 1] in the prompts' order. Denoiser and VAE must be loaded. `look` is
    called before each evaluation of the denoiser, and may raise.

    All noise comes from the prompt's own seed, drawn on the CPU as diffusers' pipelines do. Neighbours that differ in nothing
    but their words (of equally many tokens) and seed are painted together, up to `together` of them.
    """
    start = 0
    while start < len(prompts):
        end = start + 1
        kind = _kind(prompts[start], encoded[start])
        while end < len(prompts) and end - start < together and _kind(prompts[end], encoded[end]) == kind:
            end += 1
        yield from _paint_alike(family, runtime, prompts[start:end], encoded[start:end], look)
        start = end


def _kind(prompt: Prompt, encoded: tuple[Conditioning, Conditioning]) -> tuple:
    return encoded[0]["text"].shape, replace(prompt, text="", negative="", seed=0)


@torch.no_grad()
def _paint_alike(
    family: Family,
    runtime: Runtime,
    prompts: Sequence[Prompt],
    encoded: Sequence[tuple[Conditioning, Conditioning]],
    look: Callable[[], None],
) -> Tensor:
    first, device = prompts[0], runtime.device
    factor = family.base.latent_factor
    shape = (family.base.latent_channels, first.height // factor, first.width // factor)
    sources = [torch.Generator().manual_seed(p.seed) for p in prompts]
    cond = {k: torch.cat([c[k] for c, _ in encoded]).to(device) for k in encoded[0][0]}
    told, guidance = first.guidances(family.base.takes_guidance, family.base.guidance)
    guided = guidance != 1
    if guided:
        cond = {k: torch.cat([torch.cat([n[k] for _, n in encoded]).to(device), v]) for k, v in cond.items()}
    size = first.height, first.width  # of a picture that was never cut
    geometry = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=device)
    cond["geometry"] = geometry.expand((1 + guided) * len(prompts), -1)
    cond["guidance"] = torch.full(((1 + guided) * len(prompts),), told, device=device)

    def draw() -> Tensor:
        return torch.stack([torch.randn(shape, generator=source) for source in sources]).to(device)

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        look()
        with runtime.autocast():
            if not guided:
                return family.predict(noisy, t, cond).float()
            negative, positive = family.predict(torch.cat([noisy, noisy]), torch.cat([t, t]), cond).float().chunk(2)
        return negative + guidance * (positive - negative)  # arXiv:2207.12598, eq. 6, guidance = 1 + w

    process = family.process
    if isinstance(process, Flow) and first.shift is not None:
        process = process.with_shift(first.shift)
    latents = solve(predict, draw, process, family.scheduler, first.steps, first.solver)
    return family.decode_latents(latents).clamp(-1, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [-1, 1] as an 8-bit picture."""
    return Image.fromarray(((pixels.float().cpu().permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy())
