"""What Stable Diffusion 1, 2 and XL have in common: a UNet, a VAE with four channels, one or two CLIP text encoders."""

from __future__ import annotations

import gc
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from transformers import logging as transformers_logging

from limner.diffusion.process import discrete_from
from limner.errors import wrong
from limner.formats.base import FIELD, Base, weight_files
from limner.formats.original import unet_names, vae_names
from limner.models.family import Conditioning, Part, Target
from limner.models.text import load_tokenizer
from limner.models.weights import Names, Weights, build, laid_out

CONFIGS = Path(__file__).parent / "configs"
_ATTENTION_BLOCKS = ("Transformer2DModel",)
_CONVOLUTION_BLOCKS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
_TEXT_BLOCKS = ("CLIPAttention", "CLIPMLP")
_OLD_ATTENTION = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

transformers_logging.set_verbosity_error()


@dataclass(frozen=True)
class TextEncoder:
    """One of a family's text encoders."""

    name: str
    """Its folder in a diffusers model, and its name among the family's parts."""
    tokenizer: str
    model: Any
    """transformers' class."""
    names: Names
    """Its tensors' names in a single file."""
    pad: int
    """The token that fills up after the end."""
    in_lora: str
    """How its layers' names begin in a LoRA file."""


class StableDiffusion:
    """The members of `models.family.Family` that the three share; see there for what each promises."""

    text_parts: ClassVar[tuple[TextEncoder, ...]]
    pipeline: ClassVar[str]
    """diffusers' class that reads the whole model."""

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
        self.process = discrete_from(self.scheduler, base.prediction)
        self.tokenizers = {part.name: load_tokenizer(self._configs / part.tokenizer, part.pad) for part in self.text_parts}

    # --- parts ---

    def load(self, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        try:
            if part == "denoiser":
                self.denoiser = self._load_unet(dtype, device)
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

    def _load_unet(self, dtype: torch.dtype, device: torch.device) -> Any:
        return self._build(UNet2DConditionModel.from_config, "unet", unet_names, dtype, device)

    def _load_vae(self, dtype: torch.dtype, device: torch.device) -> Any:
        vae = self._build(AutoencoderKL.from_config, "vae", vae_names, dtype, device)
        vae.enable_slicing()
        return vae

    def _load_text(self, text: TextEncoder, dtype: torch.dtype, device: torch.device) -> Any:
        return self._build(partial(_text_model, text.model), text.name, text.names, dtype, device)

    def _config(self, folder: str) -> dict[str, Any]:
        return json.loads((self._configs / folder / "config.json").read_text(encoding="utf-8"))

    def _build(self, make: Any, folder: str, names: Names, dtype: torch.dtype, device: torch.device) -> Any:
        path = self.base.path
        assert path is not None
        config = self._config(folder)
        if self.base.layout == "file":
            return build(lambda: make(config), Weights([path]), names, dtype, device)
        weights = Weights(weight_files(path, folder))
        return build(lambda: make(config), weights, lambda own: {n: _in_folder(n, weights) for n in own}, dtype, device)

    def empty(self) -> dict[str, Any]:
        """All parts by their folders' names, at the sizes of the configuration, without memory: for plans and names."""
        classes = {"unet": UNet2DConditionModel.from_config, "vae": AutoencoderKL.from_config}
        classes |= {t.name: partial(_text_model, t.model) for t in self.text_parts}
        with torch.device("meta"):
            return {folder: make(self._config(folder)) for folder, make in classes.items()}

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
        folders = {"denoiser": ["unet"], "vae": ["vae"], "text": text}[part]
        if self.base.layout == "file":
            described = [self.base.config / name for name in folders] if self.base.config else []
            return [path, *(f for folder in described for f in sorted(folder.glob("*")) if f.suffix in (".json", ".txt"))]
        return [f for name in folders for f in sorted((path / name).glob("*")) if f.suffix in (".json", ".safetensors", ".txt")]

    # --- what they compute ---

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        scale = self.vae.config["scaling_factor"]
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self.vae.decode((latents / self.vae.config["scaling_factor"]).to(self.vae.dtype)).sample.float()

    def token_ids(self, captions: Sequence[str], encoder: str = "text_encoder") -> Tensor:
        """(B, 77) token ids for one of the text encoders, cut at its length."""
        tokenizer = self.tokenizers[encoder]
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
        return tokenizer(list(captions), return_tensors="pt", **options).input_ids

    def is_too_long(self, caption: str) -> bool:
        tokenizer = self.tokenizers["text_encoder"]
        return len(tokenizer(caption).input_ids) > tokenizer.model_max_length

    def encode_captions(self, captions: Sequence[str]) -> Conditioning:
        return {"text": self._encode("text_encoder", captions).last_hidden_state}

    def _encode(self, encoder: str, captions: Sequence[str], **options: Any) -> Any:
        model = self.text_encoders[encoder]
        return model(self.token_ids(captions, encoder).to(next(model.parameters()).device), **options)

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        return self.denoiser(noisy, timesteps, encoder_hidden_states=cond["text"], return_dict=False)[0]

    def enable_checkpointing(self, *, text: bool) -> None:
        # both libraries recompute in train mode only; none of the models has dropout
        self.denoiser.enable_gradient_checkpointing()
        self.denoiser.train()
        for encoder in self.text_encoders.values() if text else ():
            model: Any = encoder
            model.gradient_checkpointing_enable()
            model.train()

    def blocks(self) -> list[nn.Module]:
        return [*self.denoiser.down_blocks, self.denoiser.mid_block, *self.denoiser.up_blocks]

    # --- what adapters change, what is saved ---

    def adapter_targets(self, convolutions: bool) -> list[Target]:
        blocks = _ATTENTION_BLOCKS + (_CONVOLUTION_BLOCKS if convolutions else ())
        out = []
        if self.has("denoiser"):
            names = self.names_in_lora(self.denoiser.state_dict())
            out += [Target("denoiser", n, names[n], m, _is_spatial(m)) for n, m in _layers_within(self.denoiser, blocks)]
        for part in self.text_parts if self.has("text") else ():
            for name, layer in _layers_within(self.text_encoders[part.name], _TEXT_BLOCKS):
                dotted = f"text_model.{name.removeprefix('text_model.')}"  # every other program expects the level in the name
                out.append(Target(part.name, name, f"{part.in_lora}_{dotted.replace('.', '_')}", layer, is_spatial=False))
        return out

    def names_in_lora(self, names: Iterable[str]) -> dict[str, str]:
        """Module of the UNet -> its name in a LoRA file; `names` are those of all its tensors. Here: diffusers' own."""
        modules = {name.rpartition(".")[0] for name in names}
        return {module: f"lora_unet_{module.replace('.', '_')}" for module in modules}

    def _whole(self, dtype: torch.dtype) -> tuple[Any, Any, dict[str, Any]]:
        """(UNet, VAE, text encoders), those that are not in memory loaded for saving alone."""
        cpu = torch.device("cpu")
        unet = self.denoiser if self.has("denoiser") else self._load_unet(dtype, cpu)
        vae = self.vae if self.has("vae") else self._load_vae(dtype, cpu)
        return unet, vae, self.text_encoders or {t.name: self._load_text(t, dtype, cpu) for t in self.text_parts}

    def save_file(self, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        unet, vae, texts = self._whole(dtype)
        state = laid_out(unet.state_dict(), unet_names, dtype) | laid_out(vae.state_dict(), vae_names, dtype)
        for text in self.text_parts:
            state |= laid_out(texts[text.name].state_dict(), text.names, dtype)
        self.complete(state)
        if self.base.layout == "file":  # what such files hold beside the model: the schedule, marks, unused layers
            assert self.base.path is not None
            source = Weights([self.base.path])
            state |= {name: source[name] for name in source if name not in state and not name.startswith("model_ema.")}
        save_file(state, path, metadata)

    def complete(self, state: dict[str, Tensor]) -> None:
        """Add what other programs expect in a single file and no part of ours holds."""

    def save(self, path: Path, dtype: torch.dtype) -> None:
        unet, vae, texts = self._whole(dtype)
        diffusers = importlib.import_module("diffusers")  # its pipelines: seconds of import that training does not need
        parts = {t.name: _copy(texts[t.name], dtype) for t in self.text_parts}
        parts |= {t.tokenizer: self.tokenizers[t.name] for t in self.text_parts}
        scheduler = diffusers.DDIMScheduler.from_config({**self.scheduler, "prediction_type": self.base.prediction})
        parts |= {"vae": _copy(vae, dtype), "unet": _copy(unet, dtype), "scheduler": scheduler}
        getattr(diffusers, self.pipeline)(**parts, **self.without()).save_pretrained(path, safe_serialization=True)
        for text in self.text_parts:
            _restore_text_model(path / text.name / "model.safetensors")

    def without(self) -> dict[str, Any]:
        """What diffusers' pipeline asks for and Limner has not."""
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _text_model(kind: Any, config: dict[str, Any]) -> Any:
    return kind(kind.config_class.from_dict(config))


def _in_folder(name: str, weights: Mapping[str, Any]) -> str:
    """The name in a diffusers folder of a tensor. Others than ours are written by other versions of the libraries."""
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
    """Put the level `text_model.` back that transformers >= 5.6 leaves out and every other program expects."""
    state = load(file.read_bytes())
    whole = ("text_model.", "text_projection.")
    save_file({k if k.startswith(whole) else f"text_model.{k}": v for k, v in state.items()}, file, {"format": "pt"})


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
