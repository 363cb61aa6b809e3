"""Values of options that were not given: they follow the family, what is trained, and how many pictures there are.

Sources: the consensus of other trainers (about 100 showings a picture, 1e-4 for a LoRA, 5e-6 for a whole SD 1 model); the
pocket model's own were measured (docs/pocket-model.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from limner.config import Config, Data, Embedding, Optimizer
from limner.config.optimizers import facts

# of the other kinds: what moves a layer's weight about as far in a step as a LoRA's rate does (docs/adr/0005-adapters.md)
_LEARNING_RATES = {
    "lora": 1e-4, "loha": 5e-5, "lokr": 1e-4, "oft": 1e-4, "ia3": 5e-3, "glora": 1e-4, "dylora": 1e-4, "full": 1e-5,
    "none": 5e-6,
}  # fmt: skip
_POCKET_LEARNING_RATES = {
    "lora": 1e-3, "loha": 5e-4, "lokr": 1e-3, "oft": 1e-3, "ia3": 2e-2, "glora": 1e-3, "dylora": 1e-3, "full": 2e-4,
    "none": 2e-4,
}  # fmt: skip
_LION_SHARE = 1 / 3  # arXiv:2302.06675, section 5: 3 to 10 times smaller than AdamW's
_CAME_SHARE = 0.1  # its updates were 8 to 20 times as large as AdamW's over the first 200 steps of a LoRA (measured)
_EMBEDDING_RATE = 5e-3  # textual inversion's own (arXiv:2208.01618)
_SHOWINGS = 100
_MIN_STEPS, _MAX_STEPS = 500, 3000


def learning_rate(config: Config, is_pocket: bool) -> float:
    """The denoiser's learning rate; the word's where nothing else is trained."""
    if config.adapter.kind == "embedding":
        return embedding_rate(config.embedding, config.optimizer)
    if config.optimizer.lr is not None:
        return config.optimizer.lr
    if facts(config.optimizer).finds_rate:
        return 1.0
    kind = config.adapter.kind
    rate = _POCKET_LEARNING_RATES[kind] if is_pocket else _LEARNING_RATES[kind]
    return rate * {"lion": _LION_SHARE, "lion_8bit": _LION_SHARE, "came": _CAME_SHARE}.get(config.optimizer.kind, 1)


def text_encoder_rate(optimizer: Optimizer, lr: float) -> float:
    """The text encoder's learning rate; `lr` is the denoiser's."""
    return optimizer.text_encoder_lr or (lr if facts(optimizer).finds_rate else lr / 2)


def embedding_rate(section: Embedding, optimizer: Optimizer) -> float:
    """The learning rate of an embedding's vectors."""
    if section.lr is not None:
        return section.lr
    return optimizer.lr or 1.0 if facts(optimizer).finds_rate else _EMBEDDING_RATE


def total_steps(config: Config, num_pictures: int) -> int | None:
    """Optimiser updates if neither steps nor epochs were given, else what was; None where epochs decide."""
    if config.train.steps is not None:
        return config.train.steps
    if config.train.epochs is not None:
        return None
    pictures_a_step = config.train.batch_size * config.train.accumulation * config.launch.num_processes
    return max(_MIN_STEPS, min(_MAX_STEPS, _SHOWINGS * num_pictures // pictures_a_step))


def captions_vary(data: Data) -> bool:
    """Whether a caption may read otherwise each time, so that it cannot be encoded beforehand."""
    return data.shuffle_tags or data.tag_dropout > 0 or data.wildcards or data.tag_warmup_steps > 0


def caches_text(config: Config, settings: Iterable[Data] = ()) -> bool:
    """Whether captions are encoded once, and the text encoders forgotten. `settings`: the [data] of the pictures' subsets."""
    return config.memory.cache_text and not config.trains_text and not any(map(captions_vary, (config.data, *settings)))


def precision(config: Config, device: str, has_bf16: bool) -> str:
    """The arithmetic's precision on a device."""
    if config.train.precision is not None:
        return config.train.precision
    return "bf16" if device == "cuda" and has_bf16 else "fp32"


def denoiser_precision(config: Config, precision: str) -> str:
    """What the denoiser is loaded in, where the arithmetic has this precision."""
    return "fp32" if config.adapter.trains_in_fp32 else precision


def proposals(trigger: str | None, captions: Sequence[str], steps: int) -> dict[str, str]:
    """Typed texts that the page fills in for a newcomer: pictures to watch, painted five times on the way."""
    said = dict.fromkeys(c for c in captions if c and " --" not in c)
    prompts = [c for c in said if not trigger or trigger.lower() in c.lower()][:2] or ([trigger] if trigger else [])
    if not prompts:
        return {}
    return {
        "sample.prompts": json.dumps(prompts, ensure_ascii=False, separators=(",", ":")),
        "sample.every_steps": str(max(1, steps // 5)),
    }
