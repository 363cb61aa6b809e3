"""What all families share: parts that are loaded, freed and saved one by one, a VAE, and what adapters change."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import logging as transformers_logging

from limner.diffusion.process import process_from
from limner.errors import wrong
from limner.formats.ahead import Ahead
from limner.formats.base import FIELD, Base, weight_files
from limner.formats.described import check_scheduler, table
from limner.formats.known import FAMILIES
from limner.formats.layout import Names, There
from limner.formats.original import vae_names
from limner.models import saving, targets
from limner.models.again import contexts, sparsely
from limner.models.encoders import TextEncoder
from limner.models.family import Conditioning, Keep, Part, Target
from limner.models.given_back import give_back, give_holes_back
from limner.models.quantized import replace_linears
from limner.models.swapping import BlockSwap
from limner.models.weights import Weights, fill, placed
from limner.models.words import Words

CONFIGS = Path(__file__).parent / "configs"
_TILE_PX = 512

transformers_logging.set_verbosity_error()


class Parts:
    """The members of `models.family.Family` that do not depend on the family; see there for what each promises."""

    text_parts: tuple[TextEncoder, ...]
    denoiser_class: ClassVar[Any]
    denoiser_names: ClassVar[Names]
    """Its tensors' places in a single file."""
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

    def __init__(self, base: Base, keep: Keep, ahead: Ahead | None = None) -> None:
        assert base.path is not None, "the model must be on this machine"
        self.base, self.keep, self._ahead = base, keep, ahead
        self.device = torch.device("cpu")
        self.denoiser_folder = FAMILIES[base.family].denoiser
        self.text_encoders: dict[str, nn.Module] = {}
        self.words: Words = {}
        own = CONFIGS / base.family
        self._configs = base.path if base.layout == "folder" else base.config or own
        found = check_scheduler(self._configs, is_flow=base.prediction == "flow", field=FIELD)
        found = found or table(own / "scheduler" / "scheduler_config.json", FIELD)
        self.scheduler = {**found, **base.described.get("scheduler", {})}
        self.process = process_from(self.scheduler, base.prediction, base.has_zero_snr)
        self.text_parts = tuple(t for t in type(self).text_parts if t.name not in base.absent)
        self.trainable_text = [t.name for t in self.text_parts if not t.is_t5]

    @cached_property
    def tokenizers(self) -> dict[str, Any]:
        """Read when they are first asked for: tools that work on files never do."""
        return {t.name: t.load_tokenizer(self._tokenizer_folder(t)) for t in self.text_parts}

    def _tokenizer_folder(self, text: TextEncoder) -> Path:
        usual = self._configs / text.tokenizer
        return self.base.t5_tokenizer or usual if text.is_t5 else usual

    # --- loading and freeing ---

    def load(self, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        if part != "denoiser" and self._ahead is not None:  # it is not its turn yet
            self._ahead.forget()
            self._ahead = None
            give_holes_back()
        torch.empty(0, device=device)  # a device that cannot be used says so itself; it is no fault of the model
        try:
            if part == "denoiser":
                self.denoiser = self._load_denoiser(dtype, device)
            elif part == "vae":
                self.vae = self._load("vae", dtype, device)
                # on a CPU that takes half as long in bf16, and as long in fp32
                if self.keep.channels_last or (device.type == "cpu" and dtype == torch.bfloat16):
                    _have_channels_last(self.vae)
                self.vae.enable_slicing()
                if self.keep.vae_tiling:
                    self.vae.enable_tiling()
                    # diffusers' own is the size that the VAE was trained for: at that size nothing would be cut
                    side = min(_TILE_PX, self.vae.tile_sample_min_size)
                    self.vae.tile_latent_min_size = side * self.vae.tile_latent_min_size // self.vae.tile_sample_min_size
                    self.vae.tile_sample_min_size = side
            else:
                for folder in self._folders(part):
                    self.text_encoders[folder] = self._load(folder, dtype, device)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().split("\n")[0]
            said = f"the {part} of {self.base.source} cannot be loaded: {reason}"
            raise wrong(FIELD, said, self._remedy(part)) from error

    def _remedy(self, part: Part) -> str:
        """What to do about a part that does not load."""
        own, known = [f for f in self._folders(part) if f in self.base.others], FAMILIES[self.base.family].parts
        given = ", ".join(f"model.{known[f].option} = {str(self.base.others[f])!r}" for f in own)
        return f"Give a file that belongs to this model; it is {given}." if own else "Download the model again."

    def _load_denoiser(self, dtype: torch.dtype, device: torch.device) -> Any:
        denoiser, keep = self._make(self.denoiser_folder), self.keep
        if keep.quantize != "off":
            replace_linears(denoiser, keep.quantize, self.layers)
        blocks = self.blocks_of(denoiser)
        if keep.swap_blocks > len(blocks):
            said = f"{keep.swap_blocks} is more than the {len(blocks)} blocks of this model."
            raise wrong("memory.swap_blocks", said, f"Use at most {len(blocks)}.")
        swapped = blocks[len(blocks) - keep.swap_blocks :]
        self._fill(denoiser, self.denoiser_folder, dtype, device, stay_on_cpu=swapped)
        if keep.channels_last:
            _have_channels_last(denoiser)
        if swapped:
            BlockSwap(swapped, device)
        return denoiser

    def blocks_of(self, denoiser: Any) -> list[nn.Module]:
        raise NotImplementedError

    def _folders(self, part: Part) -> list[str]:
        return {"denoiser": [self.denoiser_folder], "vae": ["vae"], "text": [t.name for t in self.text_parts]}[part]

    def part(self, folder: str, dtype: torch.dtype) -> Any:
        """The model in this folder of a diffusers model: the one in memory, or else one that is read on the CPU in `dtype`."""
        held = self.held(folder)
        return self._load(folder, dtype, torch.device("cpu")) if held is None else held

    def held(self, folder: str) -> Any:
        """The model in this folder of a diffusers model if it is in memory, else None."""
        if folder == self.denoiser_folder:
            return self.denoiser if self.has("denoiser") else None
        if folder == "vae":
            return self.vae if self.has("vae") else None
        return self.text_encoders.get(folder)

    def names(self, folder: str) -> Names:
        """The rule of a part's places in a single file."""
        if folder == self.denoiser_folder:
            return type(self).denoiser_names
        return vae_names if folder == "vae" else self._text(folder).names

    def config(self, folder: str) -> dict[str, Any]:
        """The configuration of a part."""
        return {**table(self._configs / folder / "config.json", FIELD), **self.base.described.get(folder, {})}

    def _text(self, folder: str) -> TextEncoder:
        return next(t for t in self.text_parts if t.name == folder)

    def _make(self, folder: str) -> Any:
        """A part without weights, on the meta device."""
        config = self.config(folder)
        with torch.device("meta"):
            if folder.startswith("text_encoder"):
                return self._text(folder).make(config)
            return (AutoencoderKL if folder == "vae" else self.denoiser_class).from_config(config)

    def _load(self, folder: str, dtype: torch.dtype, device: torch.device) -> Any:
        model = self._make(folder)
        self._fill(model, folder, dtype, device)
        return model

    def _fill(
        self, model: nn.Module, folder: str, dtype: torch.dtype, device: torch.device, stay_on_cpu: Sequence[nn.Module] = ()
    ) -> None:
        """Give a part its weights."""
        weights, places = self.stored(folder)
        on_cpu = {id(module) for block in stay_on_cpu for module in block.modules()}
        cpu = torch.device("cpu")
        # T5's numbers grow too large for float16 there, and transformers keeps these in float32, too
        wide = ".wo.weight" if dtype == torch.float16 and folder.startswith("text_encoder") else None
        fill(
            model, weights, places, lambda name: torch.float32 if wide and name.endswith(wide) else dtype,
            lambda module: cpu if id(module) in on_cpu else device,
        )  # fmt: skip

    def stored(self, folder: str) -> tuple[Mapping[str, Tensor], Names]:
        """The tensors of the files that hold a part, and where among them its own lie."""
        ahead = None
        if folder == self.denoiser_folder:
            ahead, self._ahead = self._ahead, None
        weights: Mapping[str, Tensor] = Weights(self.weight_files(folder), ahead)
        if folder.startswith("text_encoder") and folder in self.base.others:
            weights = _with_projection(weights)

        def places(own: Iterable[str]) -> dict[str, There]:
            return self.places(folder, own, weights)

        return weights, places

    def weight_files(self, folder: str) -> list[Path]:
        """The files that a part's weights lie in."""
        assert self.base.path is not None
        if folder in self.base.others:
            return [self.base.others[folder]]
        return [self.base.path] if self.base.layout == "file" else weight_files(self.base.path, folder)

    def places(self, folder: str, own: Iterable[str], weights: Mapping[str, Any]) -> dict[str, There]:
        """Where a part's tensors, by their names in the model, lie among those of its files."""
        is_in_folder = self.base.layout == "folder" and folder not in self.base.others
        prefixes = () if is_in_folder else FAMILIES[self.base.family].parts[folder].prefixes
        tied = self._text(folder).tied if folder.startswith("text_encoder") else ()
        return placed([n for n in own if n not in tied], weights, self.names(folder), prefixes)

    def empty(self) -> dict[str, Any]:
        """All parts by their folders' names, at the sizes of the configuration, without memory: for plans and names."""
        return {folder: self._make(folder) for part in get_args(Part) for folder in self._folders(part)}

    def free(self, part: Part) -> None:
        if part == "denoiser":
            del self.denoiser
        elif part == "vae":
            del self.vae
        else:
            self.text_encoders.clear()
        give_back()

    def has(self, part: Part) -> bool:
        return bool(self.text_encoders) if part == "text" else hasattr(self, part)

    def part_files(self, part: Part) -> list[Path]:
        out = dict.fromkeys(file for folder in self._folders(part) for file in self._files(folder))
        if part == "text":
            for text in self.text_parts:
                out |= dict.fromkeys(f for f in sorted(self._tokenizer_folder(text).glob("*")) if f.suffix in (".json", ".txt"))
        return list(out)

    def _files(self, folder: str) -> list[Path]:
        """The files that decide what a part computes, its tokenizer aside."""
        base = self.base
        described = [f for f in [self._configs / folder / "config.json"] if base.layout == "folder" or base.config]
        return [*described, *self.weight_files(folder)]

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

    def encode_captions(self, captions: Sequence[str]) -> Conditioning:
        raise NotImplementedError

    def encode_prompt(self, prompt: str, negative: str) -> tuple[Conditioning, Conditioning]:
        return self.encode_captions([prompt]), self.encode_captions([negative])

    def token_ids(self, captions: Sequence[str], encoder: str = "text_encoder", length: int | None = None) -> Tensor:
        """(B, length) token ids for one of the text encoders, cut there; its own length (77 for CLIP) when not given."""
        tokenizer = self.tokenizers[encoder]
        options: dict[str, Any] = {"padding": "max_length", "truncation": True}
        return tokenizer(
            list(captions), return_tensors="pt", max_length=length or tokenizer.model_max_length, **options
        ).input_ids

    def _encode(self, encoder: str, captions: Sequence[str], length: int | None = None, **options: Any) -> Any:
        model: Any = self.text_encoders[encoder]
        if self._text(encoder).is_t5:
            # in its own precision, which knows where float16 is too narrow
            with torch.autocast(model.device.type, enabled=False):
                return model(self.token_ids(captions, encoder, length).to(model.device), **options)
        return model(self.token_ids(captions, encoder, length).to(next(model.parameters()).device), **options)

    def enable_checkpointing(self, *, text: bool) -> None:
        # both libraries recompute in train mode only; of all models only T5 has dropout, and it is not trained
        self.denoiser.enable_gradient_checkpointing(sparsely(self.keep.checkpoint_every))
        self.denoiser.train()
        for name, encoder in self.text_encoders.items() if text else ():
            model: Any = encoder
            if name in self.trainable_text:
                model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
                model.train()

    # --- what adapters change ---

    def adapter_targets(self, convolutions: bool) -> list[Target]:
        out = []
        if self.has("denoiser"):
            blocks = self.layers + (self.convolutions if convolutions else ())
            places = self.places_in_lora([name for name, _ in self.denoiser.named_parameters()])
            out += targets.denoiser_targets(self.denoiser, self.denoiser_folder, blocks, places)
        for part in self.text_parts if self.has("text") else ():
            out += targets.text_targets(part, self.text_encoders[part.name])
        return out

    def places_in_lora(self, names: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Module of the denoiser -> (its name in a LoRA file, its piece). `names` are those of all the denoiser's tensors."""
        if self.lora_layout == "diffusers":
            return targets.by_own_names(names)
        return targets.by_original_names(type(self).denoiser_names(names))

    # --- saving ---

    def save_file(self, path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
        saving.save_file_of(self, path, dtype, metadata)

    def complete(self, state: dict[str, Tensor]) -> None:
        """Add what other programs expect in a single file and no part of ours holds."""

    def save(self, path: Path, dtype: torch.dtype) -> None:
        saving.save_folder(self, path, dtype)


def _have_channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _with_projection(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A CLIP's file; where it lacks the projection of the pooled vector, that is the identity (as ComfyUI and diffusers take
    it)."""
    norm = "final_layer_norm.weight"
    name, width = "text_projection.weight", weights.get(f"text_model.{norm}", weights.get(norm))
    if width is None or name in weights:
        return weights
    return ChainMap({name: torch.eye(len(width))}, weights)  # type: ignore[arg-type]
