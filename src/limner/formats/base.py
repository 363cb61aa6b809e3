"""What a base model is, told from its files' headers and configuration alone. No torch, no download."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limner.disk import read_json
from limner.errors import wrong
from limner.formats.header import Header, TensorInfo, read_header
from limner.formats.original import OPEN_TEXT, SDXL_OPEN_TEXT, SDXL_TEXT, TEXT, UNET, VAE
from limner.pocket import MODELS as POCKETS

FIELD = "model.base"
_CONFIG = "model.config"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

Prediction = Literal["epsilon", "v_prediction", "flow"]


@dataclass(frozen=True)
class Known:
    """What is usual in a family, where files do not say it; and by what its single files are told."""

    title: str
    prediction: Prediction
    resolution_px: int
    bucket_step_px: int
    parts: tuple[str, ...]
    """Folders of a diffusers model that hold weights."""
    text: tuple[str, ...] = ()
    """How the names of the text encoders' tensors begin in a single file. Empty: its single files are not read yet."""
    text_width: int = 0
    """Numbers for each token that the UNet attends to, by which single files are told."""


FAMILIES: Mapping[str, Known] = {
    "sd1": Known("Stable Diffusion 1", "epsilon", 512, 64, ("unet", "vae", "text_encoder"), (TEXT,), 768),
    "sd2": Known("Stable Diffusion 2", "v_prediction", 768, 64, ("unet", "vae", "text_encoder"), (OPEN_TEXT,), 1024),
    "sdxl": Known(
        "Stable Diffusion XL", "epsilon", 1024, 32, ("unet", "vae", "text_encoder", "text_encoder_2"),
        (SDXL_TEXT, SDXL_OPEN_TEXT), 2048,
    ),
    "sd3": Known("Stable Diffusion 3", "flow", 1024, 16, ("transformer", "vae", "text_encoder", "text_encoder_2")),
    "flux": Known("Flux.1", "flow", 1024, 16, ("transformer", "vae", "text_encoder", "text_encoder_2")),
}  # fmt: skip
_TRANSFORMERS = {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux"}
_CHOOSE = "Choose a Stable Diffusion 1, 2 or XL model, or a diffusers folder of Stable Diffusion 3 or Flux.1."


@dataclass(frozen=True)
class Base:
    """A base model, recognised. `path` is None for a Hugging Face id that is not in the local cache yet."""

    source: str
    path: Path | None
    layout: Literal["folder", "file"]
    family: str
    prediction: Prediction
    resolution_px: int
    bucket_step_px: int
    latent_factor: int = 8
    latent_channels: int = 4
    config: Path | None = None
    """The diffusers folder whose configuration files describe a single file; None: those of the family do."""
    takes_guidance: bool = False
    """Whether the denoiser is told the guidance, instead of being asked twice."""
    guidance: float = 7.0
    """The usual guidance to paint with."""
    has_zero_snr: bool = False
    """Whether the model was trained down to a signal of zero (arXiv:2305.08891)."""
    is_prediction_known: bool = True
    """False where the files do not say what the denoiser predicts, and the family has both."""

    @property
    def is_pocket(self) -> bool:
        return self.path in POCKETS.values()


def recognise(source: str, revision: str | None = None, config: Path | None = None, family: str | None = None) -> Base:
    """Find and recognise the base model that `source` names. Raises UserError that says what was found instead.

    `family` is what a Hugging Face id is taken for that is not here yet; the trainer looks again once it is.
    """
    if source in POCKETS:
        return _folder(source, POCKETS[source])
    path = Path(os.path.expanduser(source))
    if _is(path, "dir"):
        return _folder(source, path)
    if _is(path, "file"):
        return _file(source, path, config)
    if _HUB_ID.fullmatch(source):
        cached = cached_snapshot(source, revision)
        return _folder(source, cached) if cached else _usual(source, None, "folder", family or "sd1")
    raise wrong(FIELD, f"{source!r} is neither a folder, nor a file, nor a Hugging Face id.", 'Give one of these, or "pocket".')


def _usual(source: str, path: Path | None, layout: Literal["folder", "file"], family: str) -> Base:
    known = FAMILIES[family]
    return Base(source, path, layout, family, known.prediction, known.resolution_px, known.bucket_step_px)


def _is(path: Path, what: str) -> bool:
    return os.path.isdir(path) if what == "dir" else os.path.isfile(path)  # False too where the path is none


def cached_snapshot(source: str, revision: str | None) -> Path | None:
    """The local copy of a Hugging Face model, if a complete enough one is cached."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(source, "model_index.json", revision=revision)
    return Path(index).parent if isinstance(index, str) else None


def _json(path: Path, field: str = FIELD) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise wrong(field, f"{path} is missing or is not JSON.", "A diffusers folder needs it; copy the model again.")
    return content


def _folder(source: str, path: Path) -> Base:
    family = _family_of_folder(source, path)
    for part in FAMILIES[family].parts:
        weights = weight_files(path, part)
        if not weights:
            raise wrong(FIELD, f"{path / part} holds no .safetensors file.", "Download the model again, with safetensors.")
        for file in weights:
            read_header(file, FIELD)
    if FAMILIES[family].prediction == "flow":
        return _flow(source, path, family)
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    zero = isinstance(scheduler, dict) and bool(scheduler.get("rescale_betas_zero_snr"))
    return Base(source, path, "folder", family, *_facts(path), has_zero_snr=zero)


def _family_of_folder(source: str, path: Path) -> str:
    index = _json(path / "model_index.json")
    if "transformer" in index and (family := _TRANSFORMERS.get(str((index["transformer"] or [""])[-1]))):
        return family
    if "unet" not in index:
        raise wrong(FIELD, f"{source} is a {index.get('_class_name')} model, which Limner cannot train yet.", _CHOOSE)
    unet = _json(path / "unet" / "config.json")
    if unet.get("in_channels", 4) != 4:
        raise wrong(FIELD, f"{source} is an inpainting model, which Limner cannot train yet.", "Choose the plain model.")
    if "text_encoder" not in index:
        raise wrong(FIELD, f"{source} is SDXL's refiner, which Limner cannot train.", "Choose the SDXL base model.")
    return _family_of_unet(unet)


def _family_of_unet(config: Mapping[str, Any]) -> str:
    if config.get("addition_embed_type"):
        return "sdxl"
    return "sd2" if config.get("use_linear_projection") else "sd1"


def _facts(folder: Path, field: str = FIELD) -> tuple[Prediction, int, int, int]:
    """(prediction, resolution, bucket step, latent factor) from a diffusers folder's configuration files."""
    unet, vae = (_json(folder / part / "config.json", field) for part in ("unet", "vae"))
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    prediction = scheduler.get("prediction_type", "epsilon") if isinstance(scheduler, dict) else "epsilon"
    if prediction not in ("epsilon", "v_prediction"):
        raise wrong(field, f"{folder} predicts {prediction!r}, which Limner does not know.", "Choose another base model.")
    levels = [len(v) if isinstance(v := c.get("block_out_channels", [0] * 4), list) else 0 for c in (vae, unet)]
    sample = unet.get("sample_size") or 64
    sides = sample if isinstance(sample, list) else [sample]
    if not all(1 <= n <= 10 for n in levels) or not all(type(s) is int and 0 < s <= 4096 for s in sides):
        raise wrong(field, f"the configuration files in {folder} are damaged.", "Copy the model again.")
    factor = 2 ** (levels[0] - 1)
    return prediction, max(sides) * factor, factor * 2 ** (levels[1] - 1), factor


def _flow(source: str, path: Path, family: str) -> Base:
    """The facts of a model whose denoiser is a transformer over 2x2 patches of latents."""
    denoiser, vae = (_json(path / part / "config.json") for part in ("transformer", "vae"))
    levels, channels, side = vae.get("block_out_channels"), vae.get("latent_channels", 16), denoiser.get("sample_size")
    is_whole = isinstance(levels, list) and 1 <= len(levels) <= 10 and type(channels) is int and 0 < channels <= 256
    if not is_whole or not (side is None or (type(side) is int and 0 < side <= 4096)):
        raise wrong(FIELD, f"the configuration files in {path} are damaged.", "Copy the model again.")
    assert isinstance(levels, list)
    patches = {"sd3": channels, "flux": 4 * channels}[family]
    if denoiser.get("in_channels", patches) != patches:
        raise wrong(FIELD, f"{source} takes more than noisy pictures, and cannot be trained yet.", "Choose the plain model.")
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    if not isinstance(scheduler, dict) or not isinstance(scheduler.get("shift"), int | float):
        said = f"{path / 'scheduler' / 'scheduler_config.json'} is missing, or is not that of a flow."
        raise wrong(FIELD, said, "Copy the model again.")
    for number in (2, 3):
        t5 = read_json(path / f"text_encoder_{number}" / "config.json")
        tokenizer = path / f"tokenizer_{number}" / "tokenizer.json"
        if isinstance(t5, dict) and t5.get("model_type") == "t5" and not tokenizer.is_file():
            raise wrong(FIELD, f"T5's tokenizer is missing: {tokenizer}.", "Put tokenizer.json of google/t5-v1_1-xxl there.")
    factor = 2 ** (len(levels) - 1)
    resolution = side * factor if side else FAMILIES[family].resolution_px
    told = bool(denoiser.get("guidance_embeds"))
    guidance = {"sd3": 7.0, "flux": 3.5 if told else 1.0}[family]
    facts = (resolution, 2 * factor, factor, channels)
    return Base(source, path, "folder", family, "flow", *facts, takes_guidance=told, guidance=guidance)


def weight_files(path: Path, part: str) -> list[Path]:
    """The safetensors files of one part of a diffusers folder; plain names win over variants such as fp16."""
    files = sorted((path / part).glob("*.safetensors"))
    plain = [f for f in files if f.name.count(".") == 1]
    return plain or files


def _file(source: str, path: Path, config: Path | None) -> Base:
    if path.suffix.lower() != ".safetensors":
        raise wrong(
            FIELD, f"{path.name} is not a .safetensors file.", "Convert it first; pickled files can run code when opened."
        )
    header = read_header(path, FIELD)
    described = None
    if config is not None:
        unet, _ = (_json(config / part / "config.json", _CONFIG) for part in ("unet", "text_encoder"))
        described = _family_of_unet(unet), unet.get("cross_attention_dim", 0)
    found = family_of(header, described)
    if found not in FAMILIES:
        raise wrong(FIELD, f"{path.name} is {found}, which Limner cannot use as a base model.", _CHOOSE)
    if config is not None:
        return Base(source, path, "file", found, *_facts(config, _CONFIG), config=config)
    said = _prediction_of(header)
    known, usual = FAMILIES[found], said or FAMILIES[found].prediction
    # SD 2's two sizes differ in nothing but what they predict
    resolution = 512 if found == "sd2" and usual == "epsilon" else known.resolution_px
    sure = said is not None or found != "sd2"
    return Base(
        source, path, "file", found, usual, resolution, known.bucket_step_px, is_prediction_known=sure,
        has_zero_snr="ztsnr" in header.tensors,
    )  # fmt: skip


def _prediction_of(header: Header) -> Prediction | None:
    """What the denoiser predicts, if the file says it: in Stability's metadata, or by SDXL's marks `v_pred`."""
    said = header.metadata.get("modelspec.prediction_type")
    if said in ("v", "v_prediction") or "v_pred" in header.tensors:
        return "v_prediction"
    return "epsilon" if said == "epsilon" else None


def family_of(header: Header, described: tuple[str, int] | None = None) -> str:
    """What a single file holds, in words, or a key of `FAMILIES` if it is a whole model: by its tensors' names and widths.

    `described` is, for models of unusual shape, the family and the width of the captions' vectors that the UNet attends to.
    """
    names = header.tensors
    if any(n.startswith(("lora_unet_", "lora_te", "lora_transformer_")) or ".lora_" in n for n in names):
        return "a LoRA"
    if any("double_blocks." in n for n in names):
        return "a Flux model"
    if any("joint_blocks." in n for n in names):
        return "an SD 3 model"
    widths = {info.shape[1] for n, info in names.items() if _takes_text(n, info)}
    if not widths:
        return "no checkpoint that Limner recognises"
    width = max(widths)
    widths_of = dict([described]) if described else {f: known.text_width for f, known in FAMILIES.items() if known.text}
    family = next((f for f, usual in widths_of.items() if usual == width), None)
    if family is None:
        if width == 1280 and not described:
            return "SDXL's refiner"
        usual = ", ".join(f"{width} ({f})" for f, width in widths_of.items())
        return f"a model with text width {width} instead of {usual}"
    known = FAMILIES[family]
    first = names.get(f"{UNET}input_blocks.0.0.weight")
    if first is None or len(first.shape) != 4 or first.shape[1] != 4:
        return f"an inpainting or damaged {known.title} model"
    wanted = {"VAE": VAE, **{f"text encoder {i + 1}" if i else "text encoder": t for i, t in enumerate(known.text)}}
    missing = [part for part, prefix in wanted.items() if not any(n.startswith(prefix) for n in names)]
    return f"a {known.title} model without its {' and its '.join(missing)}" if missing else family


def _takes_text(name: str, info: TensorInfo) -> bool:
    return name.startswith(UNET) and name.endswith(".attn2.to_k.weight") and len(info.shape) == 2
