"""Caption models of transformers: opening them, and asking them for a batch of pictures.

What a prompt is differs: BLIP (Li et al. 2022, arXiv:2201.12086) and GIT (Wang et al. 2022, arXiv:2205.14100) go on writing
behind it; BLIP-2 (Li et al. 2023, arXiv:2301.12597) and LLaVA (Liu et al. 2023, arXiv:2304.08485) answer it; Florence-2 (Xiao
et al. 2023, arXiv:2311.06242) knows a few tasks by name. No code that comes with a model is run, and no pickled weights are
read.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoProcessor, StoppingCriteria, StoppingCriteriaList

from limner.config.tools.captioning import Caption
from limner.errors import UserError, printable, wrong
from limner.randomness import mix
from limner.tools.caption_loop import Opened, Said, Tick, batches

CLASSES = {
    "blip": "BlipForConditionalGeneration", "blip-2": "Blip2ForConditionalGeneration", "git": "GitForCausalLM",
    "florence2": "Florence2ForConditionalGeneration", "llava": "LlavaForConditionalGeneration",
}  # fmt: skip
"""The class in transformers, by `model_type` in a model's config.json."""
_INSTRUCTIONS = {"florence2": "<DETAILED_CAPTION>", "llava": "Write a descriptive caption for this picture."}
"""What is asked without a prompt."""
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_REMEDY = "It must hold config.json, safetensors weights, a tokenizer and preprocessor_config.json."
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DAMAGE = (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError, SafetensorError)
"""What transformers raises for a folder that is not what its config.json says, by how it is damaged."""


class Captioner:
    """An opened model. Called with pictures it says one text for each."""

    def __init__(self, folder: Path, kind: str, section: Caption, number: int = 0) -> None:
        """In the process of that `number`. Raises UserError for a folder that cannot be opened, and for a device that is not
        there."""
        self.kind, self.section = kind, section
        self.device = _device(section, number)
        if self.device.type == "cpu" and section.processes > 1:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // section.processes))
        self.dtype = _DTYPES.get(section.dtype) or _usual_dtype(self.device)
        if not any((folder / name).is_file() for name in _TOKENIZERS):  # transformers would make an empty one
            raise wrong("caption.model", f"{folder.name} cannot be opened: it holds no tokenizer.", _REMEDY)
        given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.processor: Any = AutoProcessor.from_pretrained(folder, **given)
            model: Any = getattr(transformers, CLASSES[kind])
            model = model.from_pretrained(folder, dtype=self.dtype, use_safetensors=True, **given)
            self.model: Any = model.to(self.device).eval()
        except torch.OutOfMemoryError:
            raise _no_memory() from None
        except _DAMAGE as error:
            said = f"{folder.name} cannot be opened as {CLASSES[kind]}: {printable(error, 200)}."
            raise wrong("caption.model", said, _REMEDY) from None

    def __call__(self, pictures: Iterator[Opened], tick: Tick) -> Generator[Said]:
        for batch in batches(pictures, self.section.batch_size):
            if self.section.sample:
                # by name, so that a run that goes on after a stop draws the same
                name = os.path.basename(batch[0].path).encode("utf-8", "backslashreplace").decode()
                torch.manual_seed(mix(self.section.seed, f"caption {name}"))
            texts = self.texts([p.image for p in batch], tick)
            yield from (Said(picture.path, text) for picture, text in zip(batch, texts, strict=True))

    def texts(self, images: list[Image.Image], tick: Tick) -> list[str]:
        """One text for each picture."""
        try:
            with torch.inference_mode():
                inputs = self._inputs(images).to(self.device, self.dtype)
                asked = inputs["input_ids"].shape[1] if self.kind == "llava" else 0
                out: Tensor = self.model.generate(**inputs, **self._how(tick))
            texts = self.processor.batch_decode(out[:, asked:], skip_special_tokens=True)
        except torch.OutOfMemoryError:
            raise _no_memory() from None
        except _DAMAGE as error:
            said = f"the model failed at a picture: {printable(error, 200)}."
            raise wrong("caption.model", said, "Try another prompt, another dtype, or another model.") from None
        prompt = self.section.prompt.strip()
        return [t.strip().removeprefix(prompt) if self.kind == "blip-2" and prompt else t for t in texts]

    def _inputs(self, images: list[Image.Image]) -> Any:
        prompt = self.section.prompt.strip() or _INSTRUCTIONS.get(self.kind, "")
        if self.kind == "llava":
            prompt = self._as_told(prompt)
        if not prompt:
            return self.processor(images=images, return_tensors="pt")
        if self.kind == "git":  # it goes on writing behind what ends without the mark of an end
            inputs = self.processor(images=images, return_tensors="pt")
            tokenizer = self.processor.tokenizer
            words = [tokenizer.cls_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
            inputs["input_ids"] = torch.tensor([words] * len(images))
            return inputs
        return self.processor(images=images, text=[prompt] * len(images), return_tensors="pt")

    def _as_told(self, prompt: str) -> str:
        """An instruction about a picture, as the model was taught to be told."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        if getattr(self.processor, "chat_template", None):
            return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return f"USER: <image>\n{prompt} ASSISTANT:"

    def _how(self, tick: Tick) -> dict[str, Any]:
        section = self.section
        out: dict[str, Any] = {"max_new_tokens": section.max_tokens, "num_beams": section.beams, "do_sample": section.sample}
        out["repetition_penalty"] = section.repetition_penalty
        out["stopping_criteria"] = StoppingCriteriaList([_Ticking(tick)])
        if section.min_tokens:
            out["min_new_tokens"] = min(section.min_tokens, section.max_tokens)
        if section.beams > 1:
            out["length_penalty"] = section.length_penalty
        if section.sample:
            out |= {"temperature": section.temperature, "top_p": section.top_p}
        return out


class _Ticking(StoppingCriteria):
    """Never says that a text is finished, but asks at each token whether somebody wants to stop."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        del scores, kwargs
        self._tick()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _device(section: Caption, number: int) -> torch.device:
    name = section.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    there = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}[device.type]
    if (device.index or 0) >= there:
        raise wrong("caption.device", f"there is no {name} on this machine.", "Choose auto.")
    if section.processes > 1 and device.type != "cpu":
        if section.processes > there:
            said = f"{section.processes} are asked for, and there {'is 1 GPU' if there == 1 else f'are {there} GPUs'}."
            raise wrong("caption.processes", said, "Ask for one on each GPU at most.")
        device = torch.device(device.type, number)
    return device


def _usual_dtype(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _no_memory() -> UserError:
    said = "the device's memory does not suffice."
    return wrong("caption.batch_size", said, "Lower it, set caption.dtype = float16, or choose a smaller model.")
