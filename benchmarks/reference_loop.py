"""The loop to be measured against: diffusers' denoiser, peft's LoRA, fused AdamW, cached inputs, nothing computed again.

    python benchmarks/reference_loop.py MODEL --resolution 1024 --batch 1

Prints one line of JSON. The LoRA sits on the layers that Limner's does; inputs are random, of the right shapes, and lie on the
device before the clock starts. FLOPs are those of one step as torch counts them, attention included: what is useful, since
nothing is computed twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import time
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from limner.config import files
from limner.engine.fetching import find_base, keep_of
from limner.models import family as families

_WARM_STEPS = 5
RANK = 16


def inputs(family: Any, side: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(latents, timesteps, conditioning) of random numbers."""
    config, rng = family.denoiser.config, torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=rng, device=device)

    factor = 2 ** (len(family.config("vae")["block_out_channels"]) - 1)
    latents = normal(family.base.latent_channels, side // factor, side // factor)
    t = torch.randint(1, 1000, (batch,), generator=rng, device=device)
    if "joint_attention_dim" in config:
        cond = {"text": normal(512, config["joint_attention_dim"]), "pooled": normal(config["pooled_projection_dim"])}
    else:
        cond = {"text": normal(77, config["cross_attention_dim"])}
    if config.get("addition_embed_type") == "text_time":
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        cond["pooled"] = normal(width)
    told = torch.tensor([[side, side, 0, 0, side, side]] * batch, dtype=torch.float32, device=device)
    return latents, t, cond | {"geometry": told, "guidance": torch.ones(batch, device=device)}


def measure(model: str, side: int, batch: int, steps: int, device: torch.device) -> dict[str, Any]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = files.build({"model": {"base": model}}, {})
    family: Any = families.make(find_base(config), keep_of(config))
    family.load("denoiser", dtype, device)
    names = [t.name for t in family.adapter_targets(convolutions=False)]
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names), family.denoiser)
    params = [p for p in family.denoiser.parameters() if p.requires_grad]
    for p in params:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
    latents, t, cond = inputs(family, side, batch, device)

    def step() -> None:
        noise = torch.randn_like(latents)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            pred = family.predict(latents + noise, t, cond)
        torch.nn.functional.mse_loss(pred.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    # torch has no formula for the CPU's fused attention
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
    with FlopCounterMode(display=False) as counter, plain:
        step()
    for _ in range(_WARM_STEPS):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = list[float]()
    for _ in range(steps):
        began = wait()
        step()
        seconds.append(wait() - began)
    on_cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    peak = torch.cuda.max_memory_allocated() >> 20 if device.type == "cuda" else on_cpu
    return {
        "seconds_per_step_median": statistics.median(seconds), "seconds_per_step_least": min(seconds),
        "most_memory_mib": peak, "flops_per_step": counter.get_total_flops(), "num_adapted": len(names),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--resolution", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(measure(args.model, args.resolution, args.batch, args.steps, device)))


if __name__ == "__main__":
    main()
