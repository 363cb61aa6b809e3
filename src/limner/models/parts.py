"""What all families share: parts that are loaded, freed and saved one by one, a VAE, and the layers that adapters change."""

from __future__ import annotations

import gc
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from transformers import T5EncoderModel
from transformers import logging as transformers_logging

from limner.diffusion.process import process_from
from limner.errors import wrong
from limner.formats.base import FIELD, Base, weight_files
from limner.formats.header import read_header
from limner.formats.original import vae_names
from limner.models.family import Part, Target
from limner.models.text import END, EXCLAMATION, load_t5_tokenizer, load_tokenizer
from limner.models.weights import Names, Weights, build, laid_out

CONFIGS = Path(__file__).parent / "configs"
_TEXT_BLOCKS = ("CLIPAttention", "CLIPMLP")
_CLIP_LEVELS = ("embeddings.", "encoder.layers.", "final_layer_norm.")
_OLD_ATTENTION = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

transformers_logging.set_verbosity_error()


@dataclass(frozen=True)
class TextEncoder:
    """One of a family's text encoders."""

    name: str
    """Its folder in a diffusers model, and its name among the family's parts."""
    tokenizer: str
    """Its tokenizer's folder."""
    model: Any
    """transformers' class."""
    load_tokenizer: Callable[[Path], Any]
    in_lora: str = ""
    """How its layers' names begin in a LoRA file. Empty: it is not adapted."""
    names: Names | None = None
    """Its tensors' names in a single file. None: such files are not read."""
    tied: tuple[str, ...] = ()
    """Tensors that are others of its own, and in no file."""


def clip_l(model: Any, in_lora: str, names: Names | None = None) -> TextEncoder:
    """CLIP-L, the first text encoder of most families."""
    return TextEncoder("text_encoder", "tokenizer", model, partial(load_tokenizer, pad=END), in_lora, names)


def open_clip(model: Any, number: str, in_lora: str, names: Names | None = None) -> TextEncoder:
    """An OpenCLIP encoder. `number` ends the folders' names: "" for the first, "_2" for the second."""
    load = partial(load_tokenizer, pad=EXCLAMATION)
    return TextEncoder(f"text_encoder{number}", f"tokenizer{number}", model, load, in_lora, names)


def t5(number: str) -> TextEncoder:
    """T5, which is never adapted."""
    tied = ("encoder.embed_tokens.weight",)  # is `shared.weight`
    return TextEncoder(f"text_encoder{number}", f"tokenizer{number}", T5EncoderModel, load_t5_tokenizer, tied=tied)


class Parts:
    """The members of `models.family.Family` that do not depend on the family; see there for what each promises."""

    text_parts: tuple[TextEncoder, ...]
    denoiser_folder: ClassVar[str]
    denoiser_class: ClassVar[Any]
    denoiser_names: ClassVar[Names]
    """Its tensors' names in a single file."""
    pipeline: ClassVar[str]
    """diffusers' class that reads the whole model."""
    without: ClassVar[dict[str, Any]] = {}
    """What diffusers' pipeline asks for and Limner has not."""
    scheduler_class: ClassVar[str]
    layers: ClassVar[tuple[str, ...]]
    """Classes of the denoiser's blocks whose Linear and 1x1 layers adapters change."""
    convolutions: ClassVar[tuple[str, ...]] = ()
    """Classes of blocks with 3x3 convolutions that they change if asked."""
    lora_layout: ClassVar[Literal["original", "diffusers"]] = "original"
    """By which names LoRA files tell the denoiser's layers."""

    # Any: the annotations of diffusers and transformers do not describe what their models return
    denoiser: Any
    vae: Any

    def __init__(self, base: Base) -> None:
        assert base.path is not None, "the model must be on this machine"
        self.base = base
        self.text_encoders: dict[str, nn.Module] = {}
        own = CONFIGS / base.family
        self._configs = base.path if base.layout == "folder" else base.config or own
        scheduler = self._configs / "scheduler" / "scheduler_config.json"
        fallback = own / "scheduler" / "scheduler_config.json"
        self.scheduler = json.loads((scheduler if scheduler.exists() else fallback).read_text(encoding="utf-8"))
        self.process = process_from(self.scheduler, base.prediction)
        self.tokenizers = {part.name: part.load_tokenizer(self._configs / part.tokenizer) for part in self.text_parts}

    # --- loading and freeing ---

    def load(self, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        try:
            if part == "denoiser":
                self.denoiser = self._load_denoiser(dtype, device)
            elif part == "vae":
                self.vae = self._load_vae(dtype, device)
            else:
                for text in self.text_parts:
                    self.text_encoders[text.name] = self._load_text(text, dtype, device)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().split("\n")[0]
            said = f"the {part} of {self.base.source} cannot be loaded: {reason}"
            raise wrong(FIELD, said, "Download the model again.") from error

    def _load_denoiser(self, dtype: torch.dtype, device: torch.device) -> Any:
        return self._build(self.denoiser_class.from_config, self.denoiser_folder, type(self).denoiser_names, dtype, device)

    def _load_vae(self, dtype: torch.dtype, device: torch.device) -> Any:
        vae = self._build(AutoencoderKL.from_config, "vae", vae_names, dtype, device)
        vae.enable_slicing()
        return vae

    def _load_text(self, text: TextEncoder, dtype: torch.dtype, device: torch.device) -> Any:
        return self._build(partial(_text_model, text.model), text.name, text.names, dtype, device, text.tied)

    def config(self, folder: str) -> dict[str, Any]:
        """The configuration of a part."""
        return json.loads((self._configs / folder / "config.json").read_text(encoding="utf-8"))

    def _build(
        self, make: Any, folder: str, names: Names | None, dtype: torch.dtype, device: torch.device, tied: tuple[str, ...] = ()
    ) -> Any:
        path, config = self.base.path, self.config(folder)
        assert path is not None
        if self.base.layout == "file":
            assert names is not None, "recognition refuses single files of this family"
            weights = Weights([path])
        else:
            weights = Weights(weight_files(path, folder))
            names = partial(_names_in_folder, weights)
        return build(lambda: make(config), weights, lambda own: names([n for n in own if n not in tied]), dtype, device)

    def empty(self) -> dict[str, Any]:
        """All parts by their folders' names, at the sizes of the configuration, without memory: for plans and names."""
        classes = {self.denoiser_folder: self.denoiser_class.from_config, "vae": AutoencoderKL.from_config}
        classes |= {t.name: partial(_text_model, t.model) for t in self.text_parts}
        with torch.device("meta"):
            return {folder: make(self.config(folder)) for folder, make in classes.items()}

    def free(self, part: Part) -> None:
        if part == "denoiser":
            del self.denoiser
        elif part == "vae":
            del self.vae
        else:
            self.text_encoders.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def has(self, part: Part) -> bool:
        return bool(self.text_encoders) if part == "text" else hasattr(self, part)

    def part_files(self, part: Part) -> list[Path]:
        path = self.base.path
        assert path is not None
        text = [folder for t in self.text_parts for folder in (t.name, t.tokenizer)]
        folders = {"denoiser": [self.denoiser_folder], "vae": ["vae"], "text": text}[part]
        if self.base.layout == "file":
            described = [self.base.config / name for name in folders] if self.base.config else []
            return [path, *(f for folder in described for f in sorted(folder.glob("*")) if f.suffix in (".json", ".txt"))]
        return [f for name in folders for f in sorted((path / name).glob("*")) if f.suffix in (".json", ".safetensors", ".txt")]

    # --- what they compute ---

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        scale, shift = self._scale_and_shift()
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        scale, shift = self._scale_and_shift()
        return self.vae.decode((latents / scale + shift).to(self.vae.dtype)).sample.float()

    def _scale_and_shift(self) -> tuple[float, float]:
        config = self.vae.config
        return config["scaling_factor"], config.get("shift_factor") or 0.0

    def token_ids(self, captions: Sequence[str], encoder: str = "text_encoder", length: int | None = None) -> Tensor:
        """(B, length) token ids for one of the text encoders, cut there; its own length (77 for CLIP) when not given."""
        tokenizer = self.tokenizers[encoder]
        options: dict[str, Any] = {"padding": "max_length", "truncation": True}
        return tokenizer(
            list(captions), return_tensors="pt", max_length=length or tokenizer.model_max_length, **options
        ).input_ids

    def is_too_long(self, caption: str) -> bool:
        tokenizer = self.tokenizers["text_encoder"]
        return len(tokenizer(caption).input_ids) > tokenizer.model_max_length

    def _encode(self, encoder: str, captions: Sequence[str], length: int | None = None, **options: Any) -> Any:
        model = self.text_encoders[encoder]
        return model(self.token_ids(captions, encoder, length).to(next(model.parameters()).device), **options)

    def enable_checkpointing(self, *, text: bool) -> None:
        # both libraries recompute in train mode only; of all models only T5 has dropout, and it is not trained
        self.denoiser.enable_gradient_checkpointing()
        self.denoiser.train()
        for encoder in self.text_encoders.values() if text else ():
            model: Any = encoder
            if not hasattr(model.config, "dropout_rate"):
                model.gradient_checkpointing_enable()
                model.train()

    # --- what adapters change ---

    def adapter_targets(self, convolutions: bool) -> list[Target]:
        blocks = self.layers + (self.convolutions if convolutions else ())
        out = []
        if self.has("denoiser"):
            places = self.places_in_lora(self.denoiser.state_dict())
            for name, layer in _layers_within(self.denoiser, blocks):
                if name in places:
                    out.append(Target("denoiser", name, *places[name], layer, _is_spatial(layer)))
        for part in self.text_parts if self.has("text") else ():
            for name, layer in _layers_within(self.text_encoders[part.name], _TEXT_BLOCKS):
                dotted = f"text_model.{name.removeprefix('text_model.')}"  # every other program expects the level in the name
                in_file = f"{part.in_lora}_{dotted.replace('.', '_')}"
                out.append(Target(part.name, name, in_file, None, layer, is_spatial=False))
        return out

    def places_in_lora(self, names: Iterable[str]) -> dict[str, tuple[str, int | None]]:
        """Module of the denoiser -> its name in a LoRA file, and which of those it is that the file stacks under this name.

        `names` are those of all the denoiser's tensors.
        """
        if self.lora_layout == "diffusers":
            return {m: (f"lora_unet_{m.replace('.', '_')}", None) for m in {name.rpartition(".")[0] for name in names}}
        members = dict[str, list[str]]()
        for own, there in type(self).denoiser_names(names).items():
            if own.endswith(".weight"):
                members.setdefault(there.rpartition(".")[0], []).append(own.removesuffix(".weight"))
        return {
            module: (
                f"lora_unet_{there.removeprefix('model.diffusion_model.').replace('.', '_')}",
                i if len(stack) > 1 else None,
            )
            for there, stack in members.items()
            for i, module in enumerate(stack)
        }

    # --- saving ---

    def _whole(self, dtype: torch.dtype) -> tuple[Any, Any, dict[str, Any]]:
        """(denoiser, VAE, text encoders), those that are not in memory loaded for saving alone."""
        cpu = torch.device("cpu")
        denoiser = self.denoiser if self.has("denoiser") else self._load_denoiser(dtype, cpu)
        vae = self.vae if self.has("vae") else self._load_vae(dtype, cpu)
        return denoiser, vae, self.text_encoders or {t.name: self._load_text(t, dtype, cpu) for t in self.text_parts}

    def save_file(self, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        assert self.base.prediction != "flow", "refused before the start: some of their tensors lie otherwise in files"
        denoiser, vae, texts = self._whole(dtype)
        state = laid_out(denoiser.state_dict(), type(self).denoiser_names, dtype) | laid_out(vae.state_dict(), vae_names, dtype)
        for text in self.text_parts:
            assert text.names is not None
            state |= laid_out(texts[text.name].state_dict(), text.names, dtype)
        if self.base.layout == "file":  # what such files hold beside the model: the schedule, marks, unused layers
            assert self.base.path is not None
            source = Weights([self.base.path])
            state |= {name: source[name] for name in source if name not in state and not name.startswith("model_ema.")}
        self.complete(state)
        save_file(state, path, metadata)

    def complete(self, state: dict[str, Tensor]) -> None:
        """Add what other programs expect in a single file and no part of ours holds."""

    def save(self, path: Path, dtype: torch.dtype) -> None:
        denoiser, vae, texts = self._whole(dtype)
        diffusers = importlib.import_module("diffusers")  # its pipelines: seconds of import that training does not need
        parts = {t.name: _copy(texts[t.name], dtype) for t in self.text_parts}
        parts |= {t.tokenizer: self.tokenizers[t.name] for t in self.text_parts}
        described = (
            self.scheduler if self.base.prediction == "flow" else {**self.scheduler, "prediction_type": self.base.prediction}
        )
        scheduler = getattr(diffusers, self.scheduler_class).from_config(described)
        parts |= {"vae": _copy(vae, dtype), self.denoiser_folder: _copy(denoiser, dtype), "scheduler": scheduler}
        getattr(diffusers, self.pipeline)(**parts, **self.without).save_pretrained(path, safe_serialization=True)
        for text in self.text_parts:
            for file in (path / text.name).glob("*.safetensors"):
                _restore_text_model(file)


def _text_model(kind: Any, config: dict[str, Any]) -> Any:
    return kind(kind.config_class.from_dict(config))


def _names_in_folder(weights: Mapping[str, Any], own: Iterable[str]) -> dict[str, str]:
    """The names in a diffusers folder. Others than ours are written by other versions of the libraries."""
    return {name: _in_folder(name, weights) for name in own}


def _in_folder(name: str, weights: Mapping[str, Any]) -> str:
    if name in weights:
        return name
    # transformers >= 5.6 has no `text_model.` level in CLIPTextModel; every file written by others has one
    if f"text_model.{name}" in weights:
        return f"text_model.{name}"
    for new, old in _OLD_ATTENTION.items():  # VAEs written by diffusers < 0.17
        if new in name and name.replace(new, old) in weights:
            return name.replace(new, old)
    return name


def _copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model's copy on the CPU in another dtype, to be written; the model itself may be in training and stays as it is."""
    config: Any = model.config
    with torch.device("meta"):
        twin = type(model).from_config(config) if hasattr(model, "from_config") else type(model)(config)  # type: ignore
    twin.load_state_dict({k: v.detach().to("cpu", dtype, copy=True) for k, v in model.state_dict().items()}, assign=True)
    return twin


def _restore_text_model(file: Path) -> None:
    """Put the level `text_model.` back that transformers >= 5.6 leaves out of CLIP and every other program expects."""
    if any(k.startswith(_CLIP_LEVELS) for k in read_header(file).tensors):
        state = load(file.read_bytes())
        save_file({f"text_model.{k}" if k.startswith(_CLIP_LEVELS) else k: v for k, v in state.items()}, file, {"format": "pt"})


def _is_spatial(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def _layers_within(model: nn.Module, blocks: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The Linear and Conv2d layers inside blocks of these classes, by name, each once, in order of definition."""
    found: dict[str, nn.Module] = {}
    for block_name, block in model.named_modules():
        if type(block).__name__ in blocks:
            for name, layer in block.named_modules(prefix=block_name):
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    found[name] = layer
    return list(found.items())
