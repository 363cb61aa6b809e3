"""What a base model is, told from its files' headers and configuration alone. No torch, no download."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limner.disk import read_json
from limner.errors import wrong
from limner.formats.header import Header, read_header
from limner.formats.original import TEXT, UNET, VAE
from limner.pocket import MODEL as POCKET

FIELD = "model.base"
_CONFIG = "model.config"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Base:
    """A base model, recognised. `path` is None for a Hugging Face id that is not in the local cache yet."""

    source: str
    path: Path | None
    layout: Literal["folder", "file"]
    family: str
    prediction: Literal["epsilon", "v_prediction"]
    resolution_px: int
    bucket_step_px: int
    latent_factor: int
    config: Path | None = None
    """The diffusers folder whose configuration files describe a single file; None: those of the family do."""

    @property
    def is_pocket(self) -> bool:
        return self.path == POCKET


def recognise(source: str, revision: str | None = None, config: Path | None = None) -> Base:
    """Find and recognise the base model that `source` names. Raises UserError that says what was found instead."""
    if source == "pocket":
        return _folder(source, POCKET)
    path = Path(os.path.expanduser(source))
    if _is(path, "dir"):
        return _folder(source, path)
    if _is(path, "file"):
        return _file(source, path, config)
    if _HUB_ID.fullmatch(source):
        cached = cached_snapshot(source, revision)
        # Facts of a model that is not here yet are SD 1's; the trainer looks again once it is.
        return _folder(source, cached) if cached else Base(source, None, "folder", "sd1", "epsilon", 512, 64, 8)
    raise wrong(FIELD, f"{source!r} is neither a folder, nor a file, nor a Hugging Face id.", 'Give one of these, or "pocket".')


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
    index = _json(path / "model_index.json")
    pipeline = index.get("_class_name")
    if "unet" not in index:
        raise wrong(
            FIELD, f"{source} is a {pipeline} model, which Limner cannot train yet.", "Choose a Stable Diffusion 1 model."
        )
    unet = _json(path / "unet" / "config.json")
    if "text_encoder_2" in index or unet.get("addition_embed_type") or unet.get("use_linear_projection"):
        found = "SDXL" if "text_encoder_2" in index else "Stable Diffusion 2"
        raise wrong(FIELD, f"{source} is a {found} model, which Limner cannot train yet.", "Choose a Stable Diffusion 1 model.")
    if unet.get("in_channels", 4) != 4:
        raise wrong(FIELD, f"{source} is an inpainting model, which Limner cannot train yet.", "Choose the plain model.")
    for part in ("unet", "vae", "text_encoder"):
        weights = weight_files(path, part)
        if not weights:
            raise wrong(FIELD, f"{path / part} holds no .safetensors file.", "Download the model again, with safetensors.")
        for file in weights:
            read_header(file, FIELD)
    return Base(source, path, "folder", "sd1", *_facts(path))


def _facts(folder: Path, field: str = FIELD) -> tuple[Literal["epsilon", "v_prediction"], int, int, int]:
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
    width = 768
    if config is not None:
        unet, _ = (_json(config / part / "config.json", _CONFIG) for part in ("unet", "text_encoder"))
        width = unet.get("cross_attention_dim", 0)
    found = family_of(header, width)
    if found != "sd1":
        remedy = "Choose a whole Stable Diffusion 1 checkpoint."
        raise wrong(FIELD, f"{path.name} is {found}, which Limner cannot use as a base model.", remedy)
    if config is not None:
        return Base(source, path, "file", "sd1", *_facts(config, _CONFIG), config)
    return Base(source, path, "file", "sd1", "epsilon", 512, 64, 8)


def family_of(header: Header, text_width: int = 768) -> str:
    """What a single file holds, in words ("sd1" if it is a whole SD 1 checkpoint): by names and widths of its tensors.

    `text_width` is that of the captions' vectors which the UNet attends to; models of unusual shape have another one.
    """
    names = header.tensors
    if any(n.startswith(("lora_unet_", "lora_te", "lora_transformer_")) or ".lora_" in n for n in names):
        return "a LoRA"
    if any("double_blocks." in n for n in names):
        return "a Flux model"
    if any("joint_blocks." in n for n in names):
        return "an SD 3 model"
    if f"{UNET}label_emb.0.0.weight" in names or any(n.startswith("conditioner.embedders.") for n in names):
        return "an SDXL model"
    key = next((n for n in names if n.startswith(UNET) and n.endswith(".attn2.to_k.weight")), None)
    if key is None or len(names[key].shape) != 2:
        return "no checkpoint that Limner recognises"
    if names[key].shape[1] != text_width:
        return f"a model with text width {names[key].shape[1]} instead of {text_width} (SD 2 has 1024)"
    first = names.get(f"{UNET}input_blocks.0.0.weight")
    if first is None or len(first.shape) != 4 or first.shape[1] != 4:
        return "an inpainting or damaged SD 1 model"
    parts = {VAE: "VAE", TEXT: "text encoder"}
    missing = [part for prefix, part in parts.items() if not any(n.startswith(prefix) for n in names)]
    return f"an SD 1 model without its {' and its '.join(missing)}" if missing else "sd1"
