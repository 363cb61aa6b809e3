"""Stable Diffusion 1: a UNet that predicts noise, CLIP-L for the text, a VAE with factor 8 and four channels."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers import logging as transformers_logging

from limner.diffusion.process import discrete_from
from limner.errors import wrong
from limner.formats.base import FIELD, Base, weight_files
from limner.models.family import Conditioning, Part, Target
from limner.models.text import load_tokenizer

CONFIGS = Path(__file__).parent / "configs" / "sd1"
_SINGLE_FILE_TEXT = "cond_stage_model.transformer."
_ATTENTION_BLOCKS = ("Transformer2DModel",)
_CONVOLUTION_BLOCKS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
_TEXT_BLOCKS = ("CLIPAttention", "CLIPMLP")

transformers_logging.set_verbosity_error()


class StableDiffusion1:
    """The family `sd1`; see `models.family.Family` for what each member promises."""

    # Any: the annotations of diffusers and transformers do not describe what their models return
    denoiser: Any
    vae: Any

    def __init__(self, base: Base) -> None:
        assert base.path is not None, "the model must be on this machine"
        self.base = base
        self.text_encoders: dict[str, nn.Module] = {}
        self._configs = base.path if base.layout == "folder" else base.config or CONFIGS
        scheduler = self._configs / "scheduler" / "scheduler_config.json"
        fallback = CONFIGS / "scheduler" / "scheduler_config.json"
        self.scheduler = json.loads((scheduler if scheduler.exists() else fallback).read_text(encoding="utf-8"))
        self.process = discrete_from(self.scheduler, base.prediction)
        self.tokenizer = load_tokenizer(self._configs / "tokenizer")

    # --- parts ---

    def load(self, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        try:
            if part == "denoiser":
                self.denoiser = self._load_diffusers(UNet2DConditionModel, "unet", dtype).to(device)
            elif part == "vae":
                self.vae = self._load_diffusers(AutoencoderKL, "vae", dtype).to(device)
                self.vae.enable_slicing()
            else:
                self.text_encoders["text_encoder"] = self._load_text_encoder(dtype).to(device)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().split("\n")[0]
            said = f"the {part} of {self.base.source} cannot be loaded: {reason}"
            raise wrong(FIELD, said, "Download the model again.") from error

    def _load_diffusers(self, kind: Any, folder: str, dtype: torch.dtype) -> Any:
        path, options = self.base.path, {"subfolder": folder, "torch_dtype": dtype, "local_files_only": True}
        assert path is not None
        if self.base.layout == "file":
            # without a config diffusers asks the hub, local_files_only or not
            model = kind.from_single_file(str(path), config=str(self._configs), **options)
        else:
            name = weight_files(path, folder)[0].name
            variant = name.split(".")[1] if name.count(".") > 1 and "-of-" not in name else None
            model = kind.from_pretrained(path, use_safetensors=True, variant=variant, **options)
        return model.eval().requires_grad_(False)

    def _load_text_encoder(self, dtype: torch.dtype) -> Any:
        assert self.base.path is not None
        folder = self._configs / "text_encoder"
        config = CLIPTextConfig.from_pretrained(folder, local_files_only=True)
        files = [self.base.path] if self.base.layout == "file" else weight_files(self.base.path, "text_encoder")
        state: dict[str, Tensor] = {}
        for file in files:
            state |= load_file(file)
        if self.base.layout == "file":
            state = {k.removeprefix(_SINGLE_FILE_TEXT): v for k, v in state.items() if k.startswith(_SINGLE_FILE_TEXT)}
        # transformers >= 5.6 has no `text_model.` level; every file written by others has one
        state = {k.removeprefix("text_model."): v for k, v in state.items() if not k.endswith("position_ids")}
        model: Any = CLIPTextModel(config)
        if lacking := sorted(model.state_dict().keys() - state.keys()):
            raise KeyError(f"{len(lacking)} tensors are missing, the first is {lacking[0]}")
        model.load_state_dict({k: state[k] for k in model.state_dict()})
        return model.to(dtype).eval().requires_grad_(False)

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
        """Whether a part is loaded."""
        return bool(self.text_encoders) if part == "text" else hasattr(self, part)

    def part_files(self, part: Part) -> list[Path]:
        path = self.base.path
        assert path is not None
        folders = {"denoiser": ["unet"], "vae": ["vae"], "text": ["text_encoder", "tokenizer"]}[part]
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

    def token_ids(self, captions: Sequence[str]) -> Tensor:
        """(B, 77) token ids, cut at the encoder's length."""
        length = self.tokenizer.model_max_length
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        return self.tokenizer(list(captions), **options).input_ids

    def is_too_long(self, caption: str) -> bool:
        """Whether the end of a caption is cut off."""
        return len(self.tokenizer(caption).input_ids) > self.tokenizer.model_max_length

    def encode_captions(self, captions: Sequence[str]) -> Conditioning:
        encoder = self.text_encoders["text_encoder"]
        device = next(encoder.parameters()).device
        return {"text": encoder(self.token_ids(captions).to(device)).last_hidden_state}

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
        return self.denoiser(noisy, timesteps, encoder_hidden_states=cond["text"], return_dict=False)[0]

    def enable_checkpointing(self, *, text: bool) -> None:
        # both libraries recompute in train mode only; neither model has dropout
        self.denoiser.enable_gradient_checkpointing()
        self.denoiser.train()
        for encoder in self.text_encoders.values() if text else ():
            model: Any = encoder
            model.gradient_checkpointing_enable()
            model.train()

    def blocks(self) -> list[nn.Module]:
        return [*self.denoiser.down_blocks, self.denoiser.mid_block, *self.denoiser.up_blocks]

    def adapter_targets(self, convolutions: bool) -> list[Target]:
        blocks = _ATTENTION_BLOCKS + (_CONVOLUTION_BLOCKS if convolutions else ())
        out = []
        if self.has("denoiser"):
            out += [Target("denoiser", n, m, _is_spatial(m)) for n, m in _layers_within(self.denoiser, blocks)]
        if self.has("text"):
            encoder = self.text_encoders["text_encoder"]
            out += [Target("text_encoder", n, m, is_spatial=False) for n, m in _layers_within(encoder, _TEXT_BLOCKS)]
        return out

    def save(self, path: Path, dtype: torch.dtype) -> None:
        unet = self.denoiser if self.has("denoiser") else self._load_diffusers(UNet2DConditionModel, "unet", dtype)
        vae = self.vae if self.has("vae") else self._load_diffusers(AutoencoderKL, "vae", dtype)
        text = self.text_encoders["text_encoder"] if self.has("text") else self._load_text_encoder(dtype)
        from diffusers import DDIMScheduler, StableDiffusionPipeline  # seconds of import that training does not need

        pipeline: Any = StableDiffusionPipeline  # its annotations demand parts that it does not need
        pipeline(
            vae=_copy(vae, dtype),
            unet=_copy(unet, dtype),
            text_encoder=_copy(text, dtype),
            tokenizer=self.tokenizer,
            scheduler=DDIMScheduler.from_config({**self.scheduler, "prediction_type": self.base.prediction}),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(path, safe_serialization=True)
        _restore_text_model(path / "text_encoder" / "model.safetensors")


def _copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model's copy on the CPU in another dtype, to be written; the model itself may be in training and stays as it is."""
    config = model.config
    with torch.device("meta"):
        twin = CLIPTextModel(config) if isinstance(model, CLIPTextModel) else type(model).from_config(config)  # type: ignore
    twin.load_state_dict({k: v.detach().to("cpu", dtype, copy=True) for k, v in model.state_dict().items()}, assign=True)
    return twin


def _restore_text_model(file: Path) -> None:
    """Put the level `text_model.` back that transformers >= 5.6 leaves out and every other program expects."""
    state = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in load(file.read_bytes()).items()}
    save_file(state, file, {"format": "pt"})


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
