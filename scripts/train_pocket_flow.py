"""Make the pocket model's flow: a Stable-Diffusion-3-shaped transformer of 2.3 million parameters, in the same small world.

    python scripts/train_pocket_flow.py --out build/pocket-flow --minutes 65

The VAE, the tokenizer and the text encoder are the pocket model's, and stay as they are; only the transformer learns, through
Limner's own family `sd3` and its flow. Pictures, latents and the training's state are kept in `--out`, so that a cut-off run
goes on where it was; so does a finished one that is given more minutes. Set OMP_NUM_THREADS=1 and the allocator's variables
that `train_pocket.py` names.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from limner.config import files
from limner.config.prompts import Prompt
from limner.engine import paint, sampling
from limner.engine.runtime import Runtime
from limner.models.family import Conditioning, Family
from limner.pocket import MODEL
from limner.pocket.exam import held_out_scenes, score_scenes
from limner.pocket.world import Scene
from train_pocket import Average, caption_for, encode_all, lay_out, pictures, report

RUNTIME = Runtime(torch.device("cpu"), "fp32")
WIDTH, HEADS, BLOCKS, TEXT_WIDTH = 128, 4, 4, 96
SHIFT = 2.0  # flat pictures are hidden late: the noisiest part, which alone asks the text for the background, needs its share
BATCH, RATE = 64, 2e-3


# --- the model --------------------------------------------------------------------------------------------------------


def make_transformer() -> SD3Transformer2DModel:
    """As arXiv:2212.09748, section 3.2, begins: each block does nothing yet, and the prediction is zero."""
    torch.manual_seed(4)
    out = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=BLOCKS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    for name, module in out.named_modules():
        if isinstance(module, nn.Linear) and (name.endswith("linear") or name == "proj_out"):
            nn.init.zeros_(module.weight), nn.init.zeros_(module.bias)
    return out


def make_text_encoder(layers: int) -> CLIPTextModelWithProjection:
    """The pocket model's text encoder, or its first layers. The pooled vector is the end's hidden state as it is."""
    text = CLIPTextModelWithProjection.from_pretrained(MODEL / "text_encoder", dtype=torch.float32, num_hidden_layers=layers)
    nn.init.eye_(text.text_projection.weight)
    return text


def export(folder: Path, transformer: SD3Transformer2DModel) -> None:
    """Write the whole model in fp16. The second text encoder says the words alone: its last but one states are embeddings."""
    parts = [copy.deepcopy(m).half() for m in (transformer, make_text_encoder(3), make_text_encoder(1))]
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    vae = AutoencoderKL.from_pretrained(MODEL / "vae", torch_dtype=torch.float16)
    for part in (*parts[1:], vae):  # a path of this machine is nobody's business
        part.config._name_or_path = ""
    vae.register_to_config(_name_or_path="")
    StableDiffusion3Pipeline(
        transformer=parts[0],
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=parts[1],
        tokenizer=tokenizer,
        text_encoder_2=parts[2],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder, safe_serialization=True)


@torch.no_grad()
def level_text(family: Family, captions: Sequence[str]) -> None:
    """Let the first layer take all numbers of the text as if they had mean 0 and deviation 1: here they have 0.04 to 27."""
    text = family.encode_captions(captions)["text"][:, : words_of(family)].flatten(0, 1)
    layer = family.denoiser.context_embedder
    layer.weight /= text.std(0)
    layer.bias -= layer.weight @ text.mean(0)


def load(folder: Path) -> Family:
    return sampling.load_whole(files.build({"model": {"base": str(folder)}}, {}), RUNTIME)


# --- 256 equal tokens as one ------------------------------------------------------------------------------------------


class Folded:
    """Joint attention to a text whose last token stands for `count` equal ones.

    T5's absent tokens are all zeros, text has no places in this architecture, and so they stay equal from block to block: one
    whose weight is `count` times as large gives the same, in a quarter of the time.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_) -> tuple[Tensor, Tensor]:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        picture, text = hidden_states, encoder_hidden_states
        query = [attn.norm_q(heads(attn.to_q(picture))), attn.norm_added_q(heads(attn.add_q_proj(text)))]
        key = [attn.norm_k(heads(attn.to_k(picture))), attn.norm_added_k(heads(attn.add_k_proj(text)))]
        value = [heads(attn.to_v(picture)), heads(attn.add_v_proj(text))]
        # not torch's fused attention: its backward pass takes four times as long at this size (measured, bf16 on a CPU)
        scores = torch.cat(query, 2) @ (torch.cat(key, 2) * attn.scale).transpose(-1, -2)
        more = scores.new_zeros(scores.shape[-1])
        more[-1] = math.log(self.count)
        found = ((scores + more).softmax(-1) @ torch.cat(value, 2)).transpose(1, 2).flatten(2)
        of_picture, of_text = found.split([picture.shape[1], text.shape[1]], dim=1)
        return attn.to_out[0](of_picture), of_text if attn.context_pre_only else attn.to_add_out(of_text)


def fold(cond: Conditioning, words: int) -> Conditioning:
    return {**cond, "text": cond["text"][:, : words + 1]}


@torch.no_grad()
def folding_error(family: Family) -> float:
    """The largest difference of a prediction that folding makes, in units of the prediction's deviation."""
    cond = family.encode_captions([c for _, c in held_out_scenes(4)])
    noisy, t = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([50.0, 300, 700, 990])
    whole, words = family.predict(noisy, t, cond), words_of(family)
    transformer = copy.deepcopy(family.denoiser)
    family.denoiser.set_attn_processor(Folded(cond["text"].shape[1] - words))
    folded = family.predict(noisy, t, fold(cond, words))
    family.denoiser = transformer
    return ((whole - folded).abs().max() / whole.std()).item()


def words_of(family: Family) -> int:
    return family.tokenizers["text_encoder"].model_max_length


# --- training ---------------------------------------------------------------------------------------------------------


def sigmas() -> Tensor:
    """Logit-normal as the family's flow draws them, one from each of as many equal shares: less variance than free draws."""
    shares = (torch.arange(BATCH) + torch.rand(BATCH)) / BATCH
    return torch.sigmoid(torch.special.ndtri(shares.clamp(1e-4, 1 - 1e-4)))


def rate(step: int, done: float) -> float:
    return RATE * min(1, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * max(0, done - 0.3) / 0.7)) / 2)


def train(
    out: Path, scenes: Sequence[Scene], latents: Tensor, family: Family, minutes: float, exam_minutes: float
) -> SD3Transformer2DModel:
    """The averaged transformer after so many minutes of processor time: what others take of the machine is not counted."""
    torch.manual_seed(2)
    rng, picker = random.Random(2), np.random.default_rng(2)
    transformer = family.denoiser.train().requires_grad_(True)
    words, flow = words_of(family), family.process
    transformer.set_attn_processor(Folded(256))
    average = Average([transformer], 0.999)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    state_path, step, spent = out / "training.pt", 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        transformer.load_state_dict(state["model"]), average.shadow[0].load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
        rng, picker = random.Random(step), np.random.default_rng(step)
        torch.manual_seed(step)
        print("continued at", step, flush=True)

    def keep() -> None:
        state = {"model": transformer.state_dict(), "average": average.shadow[0].state_dict(), "step": step, "spent": spent}
        torch.save(state | {"optimizer": optimizer.state_dict()}, state_path.with_suffix(".tmp"))
        state_path.with_suffix(".tmp").replace(state_path)

    last_report = last_exam = time.monotonic()
    losses: list[Tensor] = []
    while (done := spent / 60 / minutes) < 1:
        begin = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, done)
        index = picker.integers(len(scenes), size=BATCH)
        x0 = latents[torch.from_numpy(index)]
        t = 1000 * flow.shifted(sigmas(), *x0.shape[-2:])
        noise = torch.randn_like(x0)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                cond = fold(family.encode_captions([caption_for(scenes[i], rng) for i in index]), words)
            pred = family.predict(flow.add_noise(x0, noise, t), t, cond).float()
        loss = (pred - flow.target(x0, noise, t)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
        step += 1
        losses.append(loss.detach())
        spent += time.process_time() - begin
        if time.monotonic() - last_report > 30:
            print(f"step {step} loss {torch.stack(losses).mean().item():.4f} {done:.0%}", flush=True)
            losses, last_report = [], time.monotonic()
        if time.monotonic() - last_exam > 60 * exam_minutes:
            last_exam = time.monotonic()
            keep()
            export(out / "model", average.shadow[0])
            print(json.dumps({"step": step} | examine(out / "model", 64, out / f"grid-{step}.png")), flush=True)
    keep()
    return average.shadow[0]


def examine(folder: Path, count: int, grid: Path, steps: int = 20, guidance: float = 4.0) -> dict[str, float]:
    family, wanted = load(folder), held_out_scenes(count)
    prompts = [Prompt(c, "", 64, 64, steps, guidance, 1000 + i, None) for i, (_, c) in enumerate(wanted)]
    encoded = paint.encode_prompts(family, RUNTIME, prompts)
    images = [np.asarray(paint.to_image(p)) for p in paint.paint(family, RUNTIME, prompts, encoded, together=32)]
    lay_out(images, grid)
    return score_scenes(images, wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--minutes", type=float, default=65)
    parser.add_argument("--exam-minutes", type=float, default=12)
    parser.add_argument("--only-examine", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.only_examine:
        scenes, pixels, _ = pictures(args.out, args.pictures)
        export(args.out / "begin", make_transformer())
        family = load(args.out / "begin")
        rng = random.Random(0)
        level_text(family, [caption_for(scene, rng) for scene in scenes[:500]])
        latents = encode_all(args.out, family.vae, pixels)
        export(args.out / "model", train(args.out, scenes, latents, family, args.minutes, args.exam_minutes))
    print("folding changes predictions by", folding_error(load(args.out / "model")))
    report(args.out, examine(args.out / "model", 200, args.out / "grid.png"))


if __name__ == "__main__":
    main()
