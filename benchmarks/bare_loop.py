"""The reference: the plainest loop that trains the same LoRA, with diffusers' UNet and two matrices beside each layer.

    python benchmarks/bare_loop.py MODEL_FOLDER PICTURES --steps 10 --precision fp32

Of Limner it has nothing but the pure functions that draw: the order of the pictures, latents, noise, timesteps and what the
matrices begin with. So both see the same inputs, and their losses can be compared step by step. After each step a line of JSON
says its number, time and loss; after all of them the last steps' losses are told once more without the LoRA, as a measure
of what it learnt.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from limner.data.plan import Order
from limner.diffusion.draws import generator, noise_like, posterior_sample
from limner.randomness import mix

_TARGETS = re.compile(r".*\.attentions\.\d+\.(proj_in|proj_out|transformer_blocks\..*(to_[qkv]|to_out\.0|net\.0\.proj|net\.2))")
_TOLD_AGAIN = 5


class Lora(nn.Module):
    """y = W x + up(down(x)) beside a linear layer or a 1x1 convolution."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, source: torch.Generator) -> None:
        super().__init__()
        self.base, self.is_on = base, True
        inputs, outputs = base.weight.shape[1], base.weight.shape[0]
        ones = base.weight.shape[2:]
        self.down = nn.Parameter(torch.empty(rank, inputs, *ones))
        self.up = nn.Parameter(torch.zeros(outputs, rank, *ones))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=source)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.is_on:
            return y
        apply = nn.functional.conv2d if self.down.ndim == 4 else nn.functional.linear
        return y + apply(apply(x, self.down), self.up)


def add_lora(unet: nn.Module, rank: int, seed: int) -> list[Lora]:
    """Put a LoRA, its alpha the rank, before each layer of the transformer blocks."""
    out = []
    for name, module in list(unet.named_modules()):
        if not _TARGETS.fullmatch(name):
            continue
        source = torch.Generator().manual_seed(mix(seed, f"init lora_unet_{name.replace('.', '_')}"))
        parent, _, last = name.rpartition(".")
        layer = Lora(module, rank, source)  # type: ignore[arg-type]
        setattr(unet.get_submodule(parent), last, layer)
        out.append(layer)
    return out


@torch.no_grad()
def encoded(folder: Path, pictures: list[Path], dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(mean of the latents, deviation, text) of each picture, which has the size to train at already."""
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype).eval()
    text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    out = []
    for path in pictures:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1
        latents = vae.encode(pixels.to(dtype)).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        words = path.with_suffix(".txt").read_text(encoding="utf-8")
        tokens = tokenizer(words, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        scale = vae.config["scaling_factor"]
        out.append((latents.mean.float() * scale, latents.std.float() * scale, text(tokens["input_ids"])[0]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    pictures = sorted(args.pictures.glob("*.png"), key=lambda p: p.name)
    data = encoded(args.model, pictures, dtype)
    order = Order(range(len(pictures)), [0] * len(pictures), 1, 1, args.seed)
    scheduler: Any = DDPMScheduler.from_pretrained(args.model, subfolder="scheduler")
    alphas = scheduler.alphas_cumprod

    unet = UNet2DConditionModel.from_pretrained(args.model, subfolder="unet", torch_dtype=dtype).train().requires_grad_(False)
    layers = add_lora(unet, args.rank, args.seed)
    params = [p for layer in layers for p in (layer.down, layer.up)]
    optimizer = torch.optim.AdamW(params, lr=args.lr, weight_decay=0.01, fused=True)

    def loss_of(step: int) -> Tensor:
        mean, deviation, text = data[order.step(step)[0][0]]
        x0, noise = posterior_sample(mean, deviation, args.seed, step, [0]), noise_like(mean, args.seed, step, [0])
        t = torch.randint(0, len(alphas), (1,), generator=generator(args.seed, "timestep", step, 0))
        noisy = alphas[t].sqrt().view(-1, 1, 1, 1) * x0 + (1 - alphas[t]).sqrt().view(-1, 1, 1, 1) * noise
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            pred = unet(noisy.to(dtype), t, encoder_hidden_states=text, return_dict=False)[0]
        return nn.functional.mse_loss(pred.float(), noise)

    for step in range(args.steps):
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(json.dumps({"step": step + 1, "time": time.time(), "loss": loss.item()}), flush=True)
    for layer in layers:
        layer.is_on = False
    with torch.no_grad():
        for step in range(max(args.steps - _TOLD_AGAIN, 0), args.steps):
            print(json.dumps({"step": step + 1, "loss_without": loss_of(step).item()}), flush=True)


if __name__ == "__main__":
    main()
