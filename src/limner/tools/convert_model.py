"""What becomes of a model, planned from headers and configuration files: which files of which tensors, and what goes beside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.config.tools.files import Convert
from limner.disk import read_json
from limner.errors import Finding, UserError, wrong
from limner.formats import single
from limner.formats.base import Base, recognise, weight_files
from limner.formats.footprint import tensors_of
from limner.formats.header import Header, TensorInfo
from limner.formats.known import FAMILIES, is_scale
from limner.formats.metadata import ARCHITECTURES
from limner.formats.original import text_names
from limner.models import family as families
from limner.models.saving import ZERO_SNR, pipeline_of
from limner.models.weights import Weights, unscaled
from limner.tools.pieces import Piece, Precision, filled, laid, taken

EMA = "model_ema."
_SMALL = (".json", ".txt", ".model")
_MOST_SMALL_BYTES = 64 << 20
_CHANGED = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""What a file says of its own bytes."""


@dataclass
class Plan:
    """Files of tensors by their names below the target ("" for the target itself), and what is written beside them."""

    tensors: dict[str, dict[str, Piece]]
    metadata: dict[str, str] = field(default_factory=dict)
    beside: Callable[[Path], None] | None = None
    """Writes configurations and tokenizers into a folder; None: the target is a file."""
    lines: list[str] = field(default_factory=list)

    def infos(self, file: str, precision: Precision) -> dict[str, TensorInfo]:
        """What the tensors of one of the files will be."""
        return {name: precision.of(piece.info) for name, piece in self.tensors[file].items()}

    def stored_as(self) -> str:
        """The kinds of numbers that the source has."""
        return ", ".join(dict.fromkeys(piece.info.dtype for pieces in self.tensors.values() for piece in pieces.values()))


def plan(section: Convert) -> Plan:
    """Raises UserError."""
    is_folder = section.file.is_dir()
    layout = section.layout if section.layout != "same" else "diffusers" if is_folder else "original"
    if is_folder and section.ema != "drop":
        raise wrong("convert.ema", "a diffusers folder holds no averaged weights beside the others.", "Remove it.")
    with _under_our_names():
        if is_folder:
            return _folder_as_folder(section) if layout == "diffusers" else _mapped(section, layout)
        header = single.header_of(section.file, "convert.file")
        if section.ema == "use" and not any(name.startswith(EMA) for name in header.tensors):
            raise wrong("convert.ema", f"{section.file.name} holds no averaged weights.", 'Set it to "drop".')
        if layout == "diffusers" and section.ema == "keep":
            raise wrong("convert.ema", "a diffusers folder has no place for averaged weights.", 'Set it to "drop" or "use".')
        return _file_as_file(section, header) if layout == "original" else _mapped(section, layout)


@contextmanager
def _under_our_names() -> Iterator[None]:
    """Findings at options of [model] are told of at the tool's own."""
    try:
        yield
    except UserError as error:
        named = {"model.base": "convert.file"}
        findings = [replace(f, field=named.get(f.field, f.field.replace("model.", "convert.", 1))) for f in error.findings]
        raise UserError([replace(f, remedy=f.remedy.replace("model.", "convert.")) for f in findings]) from None


# --- one layout, another precision ------------------------------------------------------------------------------------


def _file_as_file(section: Convert, header: Header) -> Plan:
    """The same names; without what is not wanted."""
    weights: Mapping[str, Tensor] = Weights([section.file])
    names = {name: name for name in header.tensors}
    if section.part != "all":
        names = _names_of_part(section, header)
    pieces, scales = dict[str, Piece](), 0
    for name, written in names.items():
        if name.startswith(EMA) and section.ema != "keep":
            continue
        if section.dtype != "keep" and is_scale(name):
            scales += 1
            continue
        source = _averaged_name(name, weights) if section.ema == "use" else name
        read = partial(weights.__getitem__, source) if section.dtype == "keep" else partial(unscaled, weights, source)
        pieces[written] = Piece(header.tensors[source], read)
    left_out = len(header.tensors) - len(pieces) - scales
    metadata = {k: v for k, v in header.metadata.items() if k not in _CHANGED}
    lines = [f"{len(pieces)} tensors of {section.file.name}" + (f", {left_out} left out" if left_out else "") + "."]
    return Plan({"": pieces}, metadata, lines=lines)


def _averaged_name(name: str, names: Mapping[str, Any]) -> str:
    """Where a tensor's average is: LDM's LitEma leaves out the dots of names below `model.`."""
    averaged = EMA + name.removeprefix("model.").replace(".", "")
    return averaged if name.startswith("model.") and averaged in names else name


def _names_of_part(section: Convert, header: Header) -> dict[str, str]:
    family = _family_of(section, header)
    known, part = FAMILIES[family], FAMILIES[family].parts[_folder_of(family, section.part)]
    prefix = part.prefix_in(header.tensors)
    if prefix is None:
        raise wrong("convert.part", f"{section.file.name} holds no {part.title}.", "Convert all of it.")
    new = _alone(part.prefixes)
    words = tuple(p for other in known.parts.values() for p in other.prefixes if p and p != prefix)
    mine = [n for n in header.tensors if n.startswith(prefix) and not (prefix == "" and n.startswith(words))]
    if section.ema == "use":
        mine = [n for n in mine if not n.startswith(EMA)]
    return {name: new + name.removeprefix(prefix) for name in mine}


def _alone(prefixes: tuple[str, ...]) -> str:
    """How names begin in a file of a single part."""
    return "" if "" in prefixes else prefixes[0]


def _family_of(section: Convert, header: Header) -> str:
    described = None
    if section.config is not None and (section.config / "unet" / "config.json").is_file():
        unet = read_json(section.config / "unet" / "config.json")
        unet = unet if isinstance(unet, dict) else {}
        sdxl, sd2 = unet.get("addition_embed_type"), unet.get("use_linear_projection")
        described = ("sdxl" if sdxl else "sd2" if sd2 else "sd1"), unet.get("cross_attention_dim", 0)
    found = single.family_of(header, described)
    if found not in FAMILIES:
        raise wrong("convert.file", f"{section.file.name} is {found}.", "Choose a model of a family that Limner knows.")
    return found


def _folder_as_folder(section: Convert) -> Plan:
    """Every part's weights under their own names; all small files as they are."""
    source, one = section.file, section.part != "all"
    if one:
        folders = [_folder_of(recognise(str(source)).family, section.part)]
    else:
        recognise(str(source))
        folders = sorted(p.name for p in source.iterdir() if p.is_dir() and not p.is_symlink() and weight_files(source, p.name))
    tensors = dict[str, dict[str, Piece]]()
    for folder in folders:
        for file in weight_files(source, folder):
            header, weights = single.header_of(file, "convert.file"), Weights([file])
            place = file.name if one else f"{folder}/{file.name}"
            tensors[place] = {n: Piece(info, partial(weights.__getitem__, n)) for n, info in header.tensors.items()}
    count = sum(len(t) for t in tensors.values())
    top = source / folders[0] if one else source
    beside = partial(_copy_small, top, section.dtype)
    return Plan(tensors, {"format": "pt"}, beside, [f"{count} tensors in {len(tensors)} files, configurations as they are."])


def _copy_small(source: Path, dtype: str, target: Path) -> None:
    for file in sorted(source.rglob("*")):
        is_small = file.suffix in _SMALL and file.is_file() and file.stat().st_size <= _MOST_SMALL_BYTES
        if not is_small or len(file.relative_to(source).parts) > 2:
            continue
        copy = target / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        config = read_json(file) if file.name == "config.json" and dtype != "keep" else None
        said = [k for k in ("dtype", "torch_dtype") if isinstance(config, dict) and k in config]
        if said and isinstance(config, dict):  # transformers would load it in this precision
            config |= dict.fromkeys(said, {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[dtype])
            copy.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(file, copy)


# --- from one layout to the other -------------------------------------------------------------------------------------


def _mapped(section: Convert, layout: str) -> Plan:
    base = _base(section)
    family: Any = families.make(base, families.Keep())
    known, models = FAMILIES[base.family], family.empty()
    folders = [name for name in known.parts if name not in base.absent]
    own = {folder: _own(section, family, folder, models[folder]) for folder in folders}
    if layout == "diffusers":
        return _as_folder(section, family, models, own)
    parts = folders if section.part != "all" else [f for f in folders if not known.parts[f].is_apart]
    pieces = dict[str, Piece]()
    for folder in parts:
        prefixes = known.parts[folder].prefixes
        pieces |= laid(own[folder], family.names(folder), prefixes[0] if section.part == "all" else _alone(prefixes))
    if section.part == "all":
        pieces |= _expected(family, base, pieces)
    elsewhere = ", ".join(known.parts[f].title for f in folders if f not in parts)
    lines = [f"{known.title}: {', '.join(known.parts[f].title for f in parts)} in one file, {len(pieces)} tensors."]
    lines += [f"Such files leave {elsewhere} to files of their own."] if elsewhere else []
    spec = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURES[base.family, base.prediction],
        "modelspec.title": section.output.stem,
    }
    if base.prediction != "flow":
        spec["modelspec.prediction_type"] = {"epsilon": "epsilon", "v_prediction": "v"}[base.prediction]
    return Plan({"": pieces}, spec if section.part == "all" else {}, lines=lines)


def _expected(family: Any, base: Base, pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """What other programs expect besides."""
    state = {n: torch.empty(p.info.shape, dtype=torch.float16, device="meta") for n, p in pieces.items()}
    family.complete(state)
    marks = dict.fromkeys(ZERO_SNR, torch.zeros(0)) if base.has_zero_snr else {}
    return {name: filled(tensor) for name, tensor in (state | marks).items() if name not in pieces}


def _base(section: Convert) -> Base:
    """The model; of a single file of which one part is wanted, as if it held nothing else."""
    source, config = str(section.file), section.config
    files = {name: path for name in ("vae", "clip_l", "clip_g", "t5") if (path := getattr(section, name)) is not None}
    if section.part == "all" or section.file.is_dir():
        base = recognise(source, config=config, files=files, t5_tokenizer=section.t5_tokenizer)
        return base if section.part == "all" else _one_part(base, section.part)
    header = single.header_of(section.file, "convert.file")
    name = _family_of(section, header)
    known = FAMILIES[name]
    wanted = _folder_of(name, section.part)
    if known.parts[wanted].prefix_in(header.tensors) is None:
        raise wrong("convert.part", f"{section.file.name} holds no {known.parts[wanted].title}.", "Convert all of it.")
    facts = (known.prediction, known.resolution_px, known.bucket_step_px)
    is_flow = known.prediction == "flow" and wanted == known.denoiser and config is None
    described = single.variant(name, header, section.file.name) if is_flow else {}
    return _one_part(Base(source, section.file, "file", name, *facts, config=config, described=described), section.part)


def _one_part(base: Base, part: str) -> Base:
    """As if it held nothing else: then nothing else is read, and no tokenizer asked for."""
    wanted = _folder_of(base.family, part)
    return replace(base, absent=tuple(name for name in FAMILIES[base.family].parts if name != wanted))


def _folder_of(family: str, part: str) -> str:
    return FAMILIES[family].denoiser if part == "denoiser" else "vae"


def _own(section: Convert, family: Any, folder: str, model: Any) -> dict[str, Piece]:
    """A part's own tensors."""
    weights, places = family.stored(folder)
    infos = tensors_of(family.base, folder)
    if section.dtype == "keep" and any(is_scale(name) for name in infos):
        said = "its numbers are in 8 bits with scales, for which the other layout has no names."
        raise wrong("convert.dtype", said, 'Set it to "bf16" or "fp16".')
    if section.ema == "use":
        weights, infos = _Averaged(weights), dict(single.header_of(section.file).tensors)
        infos |= {n: infos[a] for n in infos if (a := _averaged_name(n, infos)) != n}
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    return taken(shapes, places(shapes), weights, infos)


class _Averaged(Mapping[str, Tensor]):
    """Weights, the averaged ones in their place where there are any."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[_averaged_name(name, self._weights)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _as_folder(section: Convert, family: Any, models: Mapping[str, Any], own: Mapping[str, dict[str, Piece]]) -> Plan:
    tensors, clips = dict[str, dict[str, Piece]](), {t.name for t in family.text_parts if not t.is_t5}
    for folder, pieces in own.items():
        file = "model.safetensors" if folder.startswith("text_encoder") else "diffusion_pytorch_model.safetensors"
        if folder in clips:
            # the level that transformers >= 5.6 leaves out of CLIP, and every other program expects
            pieces = {place.name: pieces[name] for name, place in text_names(pieces).items()}
        tensors[file if section.part != "all" else f"{folder}/{file}"] = pieces
    title = FAMILIES[family.base.family].title
    lines = [f"{title}: {', '.join(own)}, {sum(len(p) for p in own.values())} tensors."]
    if section.part != "all":
        (folder,) = own
        return Plan(tensors, {"format": "pt"}, partial(_save_config, models[folder]), lines)
    pipeline = pipeline_of(family, {folder: models[folder] for folder in own})
    return Plan(tensors, {"format": "pt"}, partial(_save_configs, family, pipeline, {f: models[f] for f in own}), lines)


def _save_config(model: Any, target: Path) -> None:
    if hasattr(model, "save_config"):
        model.save_config(target)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(target)


def _save_configs(family: Any, pipeline: Any, models: Mapping[str, Any], target: Path) -> None:
    for folder, model in models.items():
        _save_config(model, target / folder)
    for text in family.text_parts:
        family.tokenizers[text.name].save_pretrained(target / text.tokenizer)
    pipeline.scheduler.save_pretrained(target / "scheduler")
    pipeline.save_config(target)


def overflow(names: list[str]) -> list[Finding]:
    """The warning for numbers that fp16 has no room for."""
    if not names:
        return []
    said = f"numbers of {len(names)} tensors are too large for fp16 and became infinite, the first in {names[0]}."
    return [Finding("convert.dtype", said, 'Use "bf16" instead.', "warning")]
