"""Make the pocket model: a Stable-Diffusion-1-shaped model of 5 million parameters, trained on the pocket world.

    python scripts/train_pocket.py --out build/pocket --vae-minutes 10 --unet-minutes 75

Stages, each kept in `--out` so that a cut-off run goes on where it was: pictures, VAE, latents, UNet + text encoder,
export (fp16 safetensors in a diffusers folder), examination by `limner.pocket.judge`. On a CPU set
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 first: several times faster.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import math
import random
import time
from itertools import pairwise
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from limner.pocket import world
from limner.pocket.exam import held_out_scenes, score_scenes

BPE = Path(__file__).parents[1] / "src/limner/models/clip_bpe/bpe_simple_vocab_16e6.txt.gz"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAX_TOKENS = 32
NONSENSE_SHARE, EMPTY_SHARE = 0.04, 0.1


# --- tokenizer: CLIP's byte-pair encoding, with only the merges that the pocket world's words use ---------------------


def byte_symbols() -> list[str]:
    """CLIP's (GPT-2's) printable stand-ins for the 256 bytes, in vocabulary order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))]


def used_merges(words: set[str], merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The merges, in CLIP's order, that encoding these words applies."""
    rank = {pair: i for i, pair in enumerate(merges)}
    used: set[tuple[str, str]] = set()
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while True:
            pairs = [p for p in pairwise(parts) if p in rank]
            if not pairs:
                break
            best = min(pairs, key=rank.__getitem__)
            used.add(best)
            merged, i = [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
    return sorted(used, key=rank.__getitem__)


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    rng = random.Random(0)
    captions = [world.describe(world.random_scene(rng), rng) for _ in range(4000)]
    words = {w for c in captions for w in c.replace(",", " ,").split()}
    lines = gzip.decompress(BPE.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    kept = used_merges(words, merges)  # type: ignore[arg-type]
    tokens = byte_symbols() + [b + "</w>" for b in byte_symbols()] + ["".join(p) for p in kept]
    vocabulary = {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=kept, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


# --- pictures ---------------------------------------------------------------------------------------------------------


def render(job: tuple[int, int]) -> tuple[list[world.Scene], np.ndarray]:
    seed, count = job
    rng = random.Random(seed)
    scenes = [world.random_scene(rng, world.seen_pairs()) for _ in range(count)]
    return scenes, np.stack([np.asarray(world.draw(s, rng)) for s in scenes])


def render_clutter(job: tuple[int, int]) -> np.ndarray:
    """Pictures of several random patches in random colours: the VAE must not know the pocket world's single things only.

    Half of them are scattered, half heaped in a box of the size that things have, down to the smallest.
    """
    seed, count = job
    rng = random.Random(seed)
    out = []
    for _ in range(count):
        picture = world.draw(world.random_scene(rng), rng).resize((256, 256))
        canvas = ImageDraw.Draw(picture)
        side = 256 if rng.random() < 0.5 else rng.randint(48, 190)
        left, top = rng.randint(0, 256 - side), rng.randint(0, 256 - side)
        for _ in range(rng.randint(2, 5)):
            known = rng.random() < 0.5
            ink = rng.choice(list(world.COLOURS.values())) if known else tuple(rng.randrange(256) for _ in range(3))
            corners = [(left + rng.randrange(side), top + rng.randrange(side)) for _ in range(rng.randint(2, 4))]
            if len(corners) == 2:
                (x0, y0), (x1, y1) = corners
                box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
                canvas.ellipse(box, fill=ink) if rng.random() < 0.5 else canvas.rectangle(box, fill=ink)
            else:
                canvas.polygon(corners, fill=ink)
        out.append(np.asarray(picture.resize((64, 64), Image.Resampling.BOX)))
    return np.stack(out)


def pictures(out: Path, count: int) -> tuple[list[world.Scene], np.ndarray, np.ndarray]:
    path = out / "pictures.npz"
    jobs = [(seed, 500) for seed in range(count // 500)]
    if not path.exists():
        with Pool(2) as pool:
            drawn = pool.map(render, jobs, chunksize=1)
            clutter = pool.map(render_clutter, [(10_000 + s, 500) for s in range(8)], chunksize=1)
        fields = [[getattr(s, f) for f in world.Scene.__dataclass_fields__] for part, _ in drawn for s in part]
        np.savez(path, pixels=np.concatenate([p for _, p in drawn]), clutter=np.concatenate(clutter), scenes=np.array(fields))
    data = np.load(path)
    return [world.Scene(*(str(v) for v in row)) for row in data["scenes"]], data["pixels"], data["clutter"]


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).to(DEVICE).permute(0, 3, 1, 2).float() / 127.5 - 1


class Average:
    """Exponential moving average of several modules' weights."""

    def __init__(self, modules: list[torch.nn.Module], decay: float) -> None:
        self.modules, self.decay = modules, decay
        self.shadow = [copy.deepcopy(m).eval().requires_grad_(False) for m in modules]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for module, shadow in zip(self.modules, self.shadow, strict=True):
            torch._foreach_lerp_(list(shadow.parameters()), [p.detach() for p in module.parameters()], 1 - decay)


# --- VAE --------------------------------------------------------------------------------------------------------------


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
    )


def edges(pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat(
        [(pixels[..., 1:] - pixels[..., :-1]).flatten(1), (pixels[..., 1:, :] - pixels[..., :-1, :]).flatten(1)], 1
    )


def train_vae(out: Path, pixels: np.ndarray, clutter: np.ndarray, minutes: float) -> AutoencoderKL:
    folder = out / "vae"
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder).to(DEVICE)
    torch.manual_seed(1)
    earlier = out / "vae-1"  # a first, shorter training to go on from
    vae = (AutoencoderKL.from_pretrained(earlier) if earlier.exists() else make_vae()).to(DEVICE).train()
    rate = 1e-3 if earlier.exists() else 2e-3
    rng, start, step, average = np.random.default_rng(1 + earlier.exists()), time.monotonic(), 0, Average([vae], 0.998)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        batch = np.concatenate([pixels[rng.integers(len(pixels), size=5)], clutter[rng.integers(len(clutter), size=3)]])
        x = to_pixels(batch)
        with torch.autocast(DEVICE, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        kl = -0.5 * (1 + posterior.logvar.float() - posterior.mean.float() ** 2 - posterior.logvar.float().exp()).mean()
        loss = (y - x).abs().mean() + 0.5 * (edges(y) - edges(x)).abs().mean() + 2e-4 * kl
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
        step += 1
        if step % 100 == 0:
            print(
                f"vae step {step} loss {loss.item():.4f} l1 {(y - x).abs().mean().item():.4f} kl {kl.item():.2f} {done:.0%}",
                flush=True,
            )
    vae = average.shadow[0]
    with torch.no_grad():
        latents = torch.cat([vae.encode(to_pixels(pixels[i : i + 100])).latent_dist.mean for i in range(0, 1000, 100)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    print("scaling factor", vae.config.scaling_factor, "mean", latents.mean((0, 2, 3)).tolist(), flush=True)
    vae.save_pretrained(folder)
    return vae


def sharpen_decoder(out: Path, pixels: np.ndarray, minutes: float) -> AutoencoderKL:
    """Train the decoder on alone, the latents unchanged: it may go on while or after the UNet learns them."""
    folder = out / "vae-sharp"
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder).to(DEVICE)
    with Pool(2) as pool:
        clutter = np.concatenate(pool.map(render_clutter, [(20_000 + s, 500) for s in range(16)], chunksize=1))
    torch.manual_seed(3)
    earlier = out / "vae-sharp-1"  # a first, shorter training to go on from
    vae = AutoencoderKL.from_pretrained(earlier if earlier.exists() else out / "vae").to(DEVICE).train()
    vae.encoder.requires_grad_(False), vae.quant_conv.requires_grad_(False)
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    rng, start, step, average = np.random.default_rng(3), time.monotonic(), 0, Average([vae], 0.998)
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * done)) / 2
        x = to_pixels(np.concatenate([pixels[rng.integers(len(pixels), size=7)], clutter[rng.integers(len(clutter), size=5)]]))
        with torch.autocast(DEVICE, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.sample()
            y = vae.decode(latents).sample.float()
        loss = (y - x).abs().mean() + 0.5 * (edges(y) - edges(x)).abs().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
        step += 1
        if step % 100 == 0:
            print(f"decoder step {step} loss {loss.item():.4f} l1 {(y - x).abs().mean().item():.4f} {done:.0%}", flush=True)
    average.shadow[0].save_pretrained(folder)
    return average.shadow[0]


@torch.no_grad()
def encode_all(out: Path, vae: AutoencoderKL, pixels: np.ndarray) -> torch.Tensor:
    """(N, 4, 16, 16) scaled posterior means; the deviation is small beside the pictures' own variety."""
    path = out / "latents.pt"
    if not path.exists():
        with torch.autocast(DEVICE, torch.bfloat16):
            parts = [vae.encode(to_pixels(pixels[i : i + 200])).latent_dist.mean.float() for i in range(0, len(pixels), 200)]
        torch.save(torch.cat(parts) * vae.config.scaling_factor, path)
    return torch.load(path, weights_only=True).to(DEVICE)


# --- UNet and text encoder --------------------------------------------------------------------------------------------


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(48, 80, 112),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=96,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_scheduler() -> DDIMScheduler:
    # v-prediction: with epsilon the noisiest timesteps, which alone ask the text for the background, hardly count in the loss,
    # and after 750 steps the background was still painted at random (measured).
    # beta_end is 0.02 and not SD1's 0.012: latents of 16 x 16 need more noise before their mean colour is gone.
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def caption_for(scene: world.Scene, rng: random.Random) -> str:
    draw = rng.random()
    if draw < EMPTY_SHARE:
        return ""
    if draw < EMPTY_SHARE + NONSENSE_SHARE:
        # Unknown words stand for anything, so that a trigger word starts with no meaning.
        word = "".join(rng.choice("bcdfghklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
        if word != world.TRIGGER:
            return world.describe(scene, rng).replace(f"{scene.colour} {scene.shape}", word)
    caption = world.describe(scene, rng)
    return "" if world.held_out(caption) else caption


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt").input_ids
    return ids.to(DEVICE)


def train_unet(
    out: Path, scenes: list[world.Scene], latents: torch.Tensor, tokenizer: CLIPTokenizer, vae: AutoencoderKL, minutes: float
):
    torch.manual_seed(2)
    rng, picker = random.Random(2), np.random.default_rng(2)
    unet, text = make_unet().to(DEVICE).train(), make_text_encoder(tokenizer).to(DEVICE).train()
    print("parameters", sum(p.numel() for p in unet.parameters()), sum(p.numel() for p in text.parameters()), flush=True)
    average = Average([unet, text], 0.999)
    parameters = [*unet.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    alphas = make_scheduler().alphas_cumprod.to(DEVICE)
    state_path, step, spent = out / "training.pt", 0, 0.0
    if (out / "warm.pt").exists():  # weights of an earlier trial to begin from
        warm = torch.load(out / "warm.pt", weights_only=True)
        unet.load_state_dict(warm["unet"]), text.load_state_dict(warm["text"])
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        unet.load_state_dict(state["unet"]), text.load_state_dict(state["text"]), optimizer.load_state_dict(state["optimizer"])
        for shadow, name in zip(average.shadow, ("unet_average", "text_average"), strict=True):
            shadow.load_state_dict(state[name])
        step, spent = state["step"], state["spent"]
        rng, picker = random.Random(step), np.random.default_rng(step)
        print("continued at", step, flush=True)
    last_report = last_exam = time.monotonic()
    losses: list[torch.Tensor] = []
    while (done := spent / 60 / minutes) < 1:
        begin = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = (
                1e-3 * min(1, (step + 1) / 200) * (0.01 + 0.99 * (1 + math.cos(math.pi * max(0, done - 0.3) / 0.7)) / 2)
            )
        index = picker.integers(len(scenes), size=64)
        ids = tokenize(tokenizer, [caption_for(scenes[i], rng) for i in index])
        x0 = latents[torch.from_numpy(index).to(DEVICE)]
        # One timestep in each 64th of the schedule: less variance than 64 independent draws.
        t = ((torch.arange(64, device=DEVICE) + torch.rand(64, device=DEVICE)) * 1000 / 64).long()
        noise = torch.randn_like(x0)
        a = alphas[t].view(-1, 1, 1, 1)
        with torch.autocast(DEVICE, torch.bfloat16):
            pred = unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, text(ids).last_hidden_state).sample.float()
        loss = (pred - (a.sqrt() * noise - (1 - a).sqrt() * x0)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
        step += 1
        losses.append(loss.detach())
        spent += time.monotonic() - begin
        if time.monotonic() - last_report > 60:
            print(f"unet step {step} loss {torch.stack(losses).mean().item():.4f} {done:.0%}", flush=True)
            losses, last_report = [], time.monotonic()
        if time.monotonic() - last_exam > 480:
            last_exam = time.monotonic()
            save(state_path, unet, text, optimizer, average, step, spent)
            export(out / "model", vae, average.shadow[0], average.shadow[1], tokenizer)
            print(json.dumps(examine(out / "model", 64, grid=out / f"grid-{step}.png")), flush=True)
    save(state_path, unet, text, optimizer, average, step, spent)
    return average.shadow


def save(path: Path, unet, text, optimizer, average: Average, step: int, spent: float) -> None:
    state = {
        "unet": unet.state_dict(),
        "text": text.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "spent": spent,
    }
    state |= {"unet_average": average.shadow[0].state_dict(), "text_average": average.shadow[1].state_dict()}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def export(folder: Path, vae, unet, text, tokenizer: CLIPTokenizer) -> None:
    parts = [copy.deepcopy(m).cpu().half() for m in (vae, unet, text)]
    parts[0].register_to_config(_name_or_path="")  # a path of this machine is nobody's business
    StableDiffusionPipeline(
        vae=parts[0],
        unet=parts[1],
        text_encoder=parts[2],
        tokenizer=tokenizer,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


# --- examination ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def examine(folder: Path, count: int, steps: int = 20, guidance: float = 4.0, grid: Path | None = None) -> dict[str, float]:
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32).to(DEVICE)
    pipe.set_progress_bar_config(disable=True)
    wanted = held_out_scenes(count)
    images: list[np.ndarray] = []
    for i in range(0, count, 50):
        part = wanted[i : i + 50]
        generators = [torch.Generator().manual_seed(1000 + i + k) for k in range(len(part))]
        captions = [c for _, c in part]
        out = pipe(
            captions,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=64,
            width=64,
            generator=generators,
            output_type="np",
        )
        images += [(im * 255).round().astype(np.uint8) for im in out.images]
    if grid is not None:
        lay_out(images, grid)
    return score_scenes(images, wanted)


def lay_out(images: list[np.ndarray], path: Path) -> None:
    """The first hundred pictures on one sheet."""
    sheet = Image.new("RGB", (64 * 10, 64 * ((min(len(images), 100) + 9) // 10)))
    for i, im in enumerate(images[:100]):
        sheet.paste(Image.fromarray(im), (i % 10 * 64, i // 10 * 64))
    sheet.save(path)


def report(out: Path, score: dict[str, float]) -> None:
    (out / "examination.json").write_text(json.dumps(score, indent=2))
    print(json.dumps(score, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=30_000)
    parser.add_argument("--vae-minutes", type=float, default=10)
    parser.add_argument("--unet-minutes", type=float, default=75)
    parser.add_argument("--decoder-minutes", type=float, default=12)
    parser.add_argument("--only-examine", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.only_examine:
        tokenizer = make_tokenizer(args.out / "tokenizer")
        scenes, pixels, clutter = pictures(args.out, args.pictures)
        vae = train_vae(args.out, pixels, clutter, args.vae_minutes)
        latents = encode_all(args.out, vae, pixels)
        unet, text = train_unet(args.out, scenes, latents, tokenizer, vae, args.unet_minutes)
        export(args.out / "model", sharpen_decoder(args.out, pixels, args.decoder_minutes), unet, text, tokenizer)
    report(args.out, examine(args.out / "model", 200, grid=args.out / "grid.png"))


if __name__ == "__main__":
    main()
