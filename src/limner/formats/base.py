"""What a base model is, told from its files' headers and configuration alone. No torch, no download."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from limner.config.model import Model
from limner.errors import UserError, wrong
from limner.formats import single
from limner.formats.described import check_depth, check_scheduler, table
from limner.formats.known import FAMILIES, Prediction
from limner.pocket import MODELS as POCKETS

FIELD = "model.base"
_CONFIG = "model.config"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TRANSFORMERS = {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux"}
_CHOOSE = "Choose a model of Stable Diffusion 1, 2, XL or 3, or of Flux.1."
T5_SOURCE = "google-t5/t5-small"
"""Where T5's tokenizer is fetched from: the same for all sizes of T5, and free for all."""
T5_TOKENIZER = f"tokenizer.json of {T5_SOURCE}, which is the same for all sizes of T5, or of Flux.1's folder tokenizer_2"


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
    max_side_px: int | None = None
    """The longest side that the denoiser has places for; None if there is no limit."""
    takes_guidance: bool = False
    """Whether the denoiser is told the guidance, instead of being asked twice."""
    guidance: float = 7.0
    """The usual guidance to paint with."""
    has_zero_snr: bool = False
    """Whether the model was trained down to a signal of zero (arXiv:2305.08891)."""
    is_prediction_known: bool = True
    """False where the files do not say what the denoiser predicts, and the family has both."""
    others: Mapping[str, Path] = field(default_factory=dict)
    """Parts that lie in files of their own, by the names of their folders in a diffusers model."""
    absent: tuple[str, ...] = ()
    """Parts that it does without."""
    described: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What a single file's shapes say that differs from the family's configuration: part -> its configuration's entries."""
    clip_skip: int = 1
    """Which of CLIP's layers the denoiser attends to, counted from the end; of no meaning where `Known.skips_layers` is not
    set."""
    text_chunks: int = 1
    """How many chunks of 75 tokens a caption is read in."""
    weighted_captions: bool = False
    """Whether captions are read as prompts are, (word:1.2) as a weight."""
    t5_tokenizer: Path | None = None
    """The folder of T5's tokenizer; None if there is no T5, or no tokenizer on this machine yet."""

    @property
    def is_pocket(self) -> bool:
        return self.path in POCKETS.values()

    @property
    def t5(self) -> str | None:
        """The name of the part that is a T5, if there is one."""
        found = (name for name, part in FAMILIES[self.family].parts.items() if part.option == "t5")
        return next((name for name in found if name not in self.absent), None)


def base_of(section: Model) -> Base:
    """The base model that a configuration names. Raises UserError."""
    files = {option: path for option in ("vae", "clip_l", "clip_g", "t5") if (path := getattr(section, option)) is not None}
    return recognise(section.base, section.revision, section.config, section.family, files, section.t5_tokenizer)


def recognise(
    source: str,
    revision: str | None = None,
    config: Path | None = None,
    family: str | None = None,
    files: Mapping[str, Path] | None = None,
    t5_tokenizer: Path | None = None,
) -> Base:
    """Find and recognise the base model that `source` names. Raises UserError that says what was found instead.

    `family` is what a Hugging Face id is taken for that is not here yet; the trainer looks again once it is. `files` are
    parts in files of their own, by the options of [model].
    """
    base = _recognised(source, revision, config, family)
    if base.path is None:
        return base
    base = _with_files(base, files or {})
    return replace(base, t5_tokenizer=_t5_tokenizer(base, t5_tokenizer)) if base.t5 else base


def recognise_alone(source: str, config: Path | None = None) -> Base:
    """The same of what is in this one file or folder, whole or not: for work on files. `absent` are parts elsewhere."""
    base = _recognised(source, None, config, None)
    if base.layout == "folder" or base.path is None:
        return base
    known = FAMILIES[base.family]
    inside = single.parts_inside(base.path, known, FIELD, is_usual=config is None)
    return replace(base, absent=tuple(name for name in known.parts if name not in inside))


def _recognised(source: str, revision: str | None, config: Path | None, family: str | None) -> Base:
    if source in POCKETS:
        return _folder(source, POCKETS[source])
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):  # False too where the path is none
        return _folder(source, path)
    if os.path.isfile(path):
        return _file(source, path, config)
    if _HUB_ID.fullmatch(source):
        cached = cached_snapshot(source, revision)
        return _folder(source, cached) if cached else _usual(source, None, "folder", family or "sd1")
    raise _none_such(source)


def _none_such(source: str) -> UserError:
    said = f"{source!r} is neither a folder, nor a file, nor a Hugging Face id."
    return wrong(FIELD, said, 'Give one of these, or "pocket".')


def _usual(source: str, path: Path | None, layout: Literal["folder", "file"], family: str) -> Base:
    known = FAMILIES[family]
    return Base(source, path, layout, family, known.prediction, known.resolution_px, known.bucket_step_px)


def cached_snapshot(source: str, revision: str | None) -> Path | None:
    """The local copy of a Hugging Face model, if a complete enough one is cached. Raises UserError for no id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        index = try_to_load_from_cache(source, "model_index.json", revision=revision)
    except HFValidationError:
        raise _none_such(source) from None
    return Path(index).parent if isinstance(index, str) else None


def weight_files(path: Path, part: str) -> list[Path]:
    """The safetensors files of one part of a diffusers folder; plain names win over variants such as fp16."""
    files = sorted((path / part).glob("*.safetensors"))
    plain = [f for f in files if f.name.count(".") == 1]
    return plain or files


def denoiser_files(base: Base) -> list[Path]:
    """The files that hold the denoiser, in a single file with all the rest."""
    assert base.path is not None
    return [base.path] if base.layout == "file" else weight_files(base.path, FAMILIES[base.family].denoiser)


# --- diffusers folders ------------------------------------------------------------------------------------------------


def _folder(source: str, path: Path) -> Base:
    family = _family_of_folder(source, path)
    known, absent = FAMILIES[family], list[str]()
    for name, part in known.parts.items():
        weights = weight_files(path, name)
        if not weights and not part.is_optional:
            raise wrong(FIELD, f"{path / name} holds no .safetensors file.", "Download the model again, with safetensors.")
        absent += [] if weights else [name]
        if weights:
            check_depth(path / name, sum(len(single.header_of(file, FIELD).tensors) for file in weights), FIELD)
    if known.prediction == "flow":
        return replace(_flow(source, path, family, "folder", path, FIELD), absent=tuple(absent))
    return Base(source, path, "folder", family, *_facts(path), has_zero_snr=_says_zero_snr(path))


def _says_zero_snr(folder: Path, field: str = FIELD) -> bool:
    return bool(check_scheduler(folder, is_flow=False, field=field).get("rescale_betas_zero_snr"))


def _family_of_folder(source: str, path: Path) -> str:
    index = table(path / "model_index.json", FIELD)
    named = index.get("transformer")
    if isinstance(named, list) and named and (family := _TRANSFORMERS.get(str(named[-1]))):
        return family
    if "unet" not in index:
        raise wrong(FIELD, f"{source} is a {index.get('_class_name')} model, which Limner cannot train yet.", _CHOOSE)
    unet = table(path / "unet" / "config.json", FIELD)
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
    unet, vae = (table(folder / part / "config.json", field) for part in ("unet", "vae"))
    prediction = check_scheduler(folder, is_flow=False, field=field).get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise wrong(field, f"{folder} predicts {prediction!r}, which Limner does not know.", "Choose another base model.")
    levels = [len(v) if isinstance(v := c.get("block_out_channels", [0] * 4), list) else 0 for c in (vae, unet)]
    sample = unet.get("sample_size") or 64
    sides = sample if isinstance(sample, list) else [sample]
    if not all(1 <= n <= 10 for n in levels) or not all(type(s) is int and 0 < s <= 4096 for s in sides):
        raise wrong(field, f"the configuration files in {folder} are damaged.", "Copy the model again.")
    factor = 2 ** (levels[0] - 1)
    return prediction, max(sides) * factor, factor * 2 ** (levels[1] - 1), factor


def _flow(source: str, path: Path, family: str, layout: Literal["folder", "file"], folder: Path, field: str) -> Base:
    """The facts of a model whose denoiser is a transformer over 2x2 patches of latents, from configuration files."""
    denoiser, vae = (table(folder / part / "config.json", field) for part in ("transformer", "vae"))
    levels, channels, side = vae.get("block_out_channels"), vae.get("latent_channels", 16), denoiser.get("sample_size")
    is_whole = isinstance(levels, list) and 1 <= len(levels) <= 10 and type(channels) is int and 0 < channels <= 256
    if not is_whole or not (side is None or (type(side) is int and 0 < side <= 4096)):
        raise wrong(field, f"the configuration files in {folder} are damaged.", "Copy the model again.")
    assert isinstance(levels, list)
    patches = {"sd3": channels, "flux": 4 * channels}[family]
    if denoiser.get("in_channels", patches) != patches:
        raise wrong(field, f"{source} takes more than noisy pictures, and cannot be trained yet.", "Choose the plain model.")
    if check_scheduler(folder, is_flow=True, field=field).get("shift") is None:
        said = f"{folder / 'scheduler' / 'scheduler_config.json'} is missing, or is not that of a flow."
        raise wrong(field, said, "Copy the model again.")
    factor = 2 ** (len(levels) - 1)
    resolution = side * factor if side else FAMILIES[family].resolution_px
    told = bool(denoiser.get("guidance_embeds"))
    facts = (resolution, 2 * factor, factor, channels)
    side = _max_side(denoiser, factor)
    return Base(
        source, path, layout, family, "flow", *facts, max_side_px=side, takes_guidance=told, guidance=_guidance(family, told)
    )


def _max_side(denoiser: Mapping[str, Any], factor: int) -> int | None:
    """SD 3 has a table of places, so many to a side, of 2x2 latents each."""
    places = denoiser.get("pos_embed_max_size")
    return 2 * factor * places if isinstance(places, int) else None


def _guidance(family: str, told: bool) -> float:
    return {"sd3": 7.0, "flux": 3.5 if told else 1.0}[family]


def _t5_tokenizer(base: Base, given: Path | None) -> Path | None:
    """The folder of T5's tokenizer: what is given, or what lies in the model, beside its files, or in the hub's cache."""
    assert base.path is not None and base.t5 is not None
    if given is not None:
        folder = given.parent if given.name == "tokenizer.json" else given
        if not (folder / "tokenizer.json").is_file():
            said = f"{given} is not T5's tokenizer."
            raise wrong("model.t5_tokenizer", said, f"Give {T5_TOKENIZER}, or the folder that it lies in.")
        return folder
    own = base.t5.replace("text_encoder", "tokenizer")
    folders = [folder / own for folder in (base.config, base.path) if folder is not None]
    folders += [base.path.parent] if base.layout == "file" else []
    folders += [base.others[base.t5].parent] if base.t5 in base.others else []
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return folder
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(T5_SOURCE, "tokenizer.json")
    return Path(cached).parent if isinstance(cached, str) else None


# --- single files -----------------------------------------------------------------------------------------------------


def _file(source: str, path: Path, config: Path | None) -> Base:
    header = single.header_of(path, FIELD)
    described = None
    if config is not None and not (config / "transformer").is_dir():
        unet = table(config / "unet" / "config.json", _CONFIG)
        described = _family_of_unet(unet), unet.get("cross_attention_dim", 0)
    found = single.family_of(header, described)
    if found not in FAMILIES:
        raise wrong(FIELD, f"{path.name} is {found}, which Limner cannot use as a base model.", _CHOOSE)
    known = FAMILIES[found]
    if config is not None and known.prediction == "flow":
        return replace(_flow(source, path, found, "file", config, _CONFIG), config=config)
    if config is not None:
        zero = "ztsnr" in header.tensors or _says_zero_snr(config, _CONFIG)
        return Base(source, path, "file", found, *_facts(config, _CONFIG), config=config, has_zero_snr=zero)
    if known.prediction == "flow":
        variant = single.variant(found, header, path.name)
        told = variant["transformer"].get("guidance_embeds", False)
        base = replace(_usual(source, path, "file", found), latent_channels=16, described=variant)
        base = replace(base, max_side_px=_max_side(variant["transformer"], base.latent_factor))
        return replace(base, takes_guidance=told, guidance=_guidance(found, told))
    said = single.prediction_of(header)
    usual = said or known.prediction
    # SD 2's two sizes differ in nothing but what they predict
    resolution = 512 if found == "sd2" and usual == "epsilon" else known.resolution_px
    sure = said is not None or found != "sd2"
    return Base(
        source, path, "file", found, usual, resolution, known.bucket_step_px, is_prediction_known=sure,
        has_zero_snr="ztsnr" in header.tensors,
    )  # fmt: skip


def _with_files(base: Base, files: Mapping[str, Path]) -> Base:
    """The model with the parts that lie in files of their own: those given, and those that lie beside a single file."""
    assert base.path is not None
    known = FAMILIES[base.family]
    options = {part.option: name for name, part in known.parts.items() if part.option}
    others = {}
    for option, path in files.items():
        if option not in options:
            said = f"{known.title} models have no such file of their own."
            raise wrong(f"model.{option}", said, "Remove the line.")
        single.check_part(path, known.parts[options[option]], f"model.{option}")
        others[options[option]] = path
    absent = [name for name in base.absent if name not in others]
    if base.layout == "file":
        is_usual = base.config is None
        inside = single.parts_inside(base.path, known, FIELD, is_usual=is_usual)
        lacking = {n: part for n, part in known.parts.items() if n not in inside and n not in others}
        found = single.beside(base.path, lacking) if is_usual else {}
        others |= found
        absent = [n for n in lacking if n not in found]
    needed = [n for n in absent if not known.parts[n].is_optional]
    texts = [n for n, part in known.parts.items() if part.is_optional]
    if needed or (texts and all(n in absent for n in texts)):
        missing = [known.parts[n] for n in needed or absent]
        names = " and no ".join(part.title for part in missing)
        given = ", ".join(f"model.{part.option}" for part in missing)
        can_be_given = all(part.option for part in missing)
        remedy = f"Set {given}, or put the .safetensors files beside it." if can_be_given else "Choose a whole model."
        raise wrong(FIELD, f"{base.path.name}: the {known.title} model holds no {names}.", remedy)
    if base.config is not None:
        for name in known.parts.keys() - set(absent):
            check_depth(base.config / name, len(single.header_of(base.others.get(name, base.path), FIELD).tensors), _CONFIG)
    return replace(base, others=others, absent=tuple(absent))
