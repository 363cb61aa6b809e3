"""What each optimiser is: its class, what it takes from [optimizer], what it can and cannot do. Facts alone, no torch."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limner.config.optimizer import Optimizer

PACKAGES = ("torch.optim", "pytorch_optimizer", "transformers", "bitsandbytes", "schedulefree", "prodigyopt", "prodigyplus")
"""Where a class given by its path may come from."""

_BETAS = {"betas": "optimizer.beta1 and optimizer.beta2"}
_EPS = {"eps": "optimizer.eps"}
_DECAY = {"weight_decay": "optimizer.weight_decay"}
_MOMENTUM = {"momentum": "optimizer.momentum"}


@dataclass(frozen=True)
class Facts:
    """One optimiser."""

    path: str
    """The class."""
    takes: dict[str, str]
    """Its arguments that other options decide: {argument: option}."""
    state_bytes: float
    """Of state for each trained number."""
    one_by_one: bool = False
    """Each weight's update needs nothing of the other weights, so weights may be moved one at a time."""
    finds_rate: bool = False
    """It finds the learning rate itself, one for all weights; lr multiplies it."""
    averages: bool = False
    """Schedule-free: it is to be used at an average that it keeps, and wants a constant learning rate."""


_ADAM = _BETAS | _EPS | _DECAY
_LION = _BETAS | _DECAY
_RELATIVE_STEP = {"relative_step": 'optimizer.schedule = "adafactor"', "warmup_init": "optimizer.warmup_steps"}
_OF_MUON = {"adamw_lr": "optimizer.lr", "adamw_wd": "optimizer.weight_decay"}

TABLE = {
    "adamw": Facts("torch.optim.AdamW", _ADAM, 8, one_by_one=True),
    "adamw_8bit": Facts("bitsandbytes.optim.AdamW8bit", _ADAM, 2, one_by_one=True),
    "paged_adamw_8bit": Facts("bitsandbytes.optim.PagedAdamW8bit", _ADAM, 2),
    "lion": Facts("pytorch_optimizer.Lion", _LION, 4, one_by_one=True),
    "lion_8bit": Facts("bitsandbytes.optim.Lion8bit", _LION, 1, one_by_one=True),
    "adafactor": Facts("transformers.optimization.Adafactor", _DECAY | _RELATIVE_STEP, 0.1, one_by_one=True),
    "prodigy": Facts("pytorch_optimizer.Prodigy", _ADAM, 16, finds_rate=True),
    "dadapt_adam": Facts("pytorch_optimizer.DAdaptAdam", _ADAM, 12, finds_rate=True),
    "dadapt_lion": Facts("pytorch_optimizer.DAdaptLion", _LION, 8, finds_rate=True),
    "schedule_free": Facts(
        "pytorch_optimizer.ScheduleFreeAdamW", _ADAM | {"warmup_steps": "optimizer.warmup_steps"}, 8, averages=True
    ),
    "came": Facts("pytorch_optimizer.CAME", _LION, 4.1, one_by_one=True),
    "muon": Facts("pytorch_optimizer.Muon", _MOMENTUM | _DECAY | _OF_MUON, 4),
    "sgd": Facts("torch.optim.SGD", _MOMENTUM | _DECAY, 4, one_by_one=True),
}


def facts(section: Optimizer) -> Facts:
    """The facts of the chosen optimiser. Of a class given by its path they are told from its name."""
    if section.kind != "other":
        return TABLE[section.kind]
    path = section.class_path or ""
    name = path.lower().replace("_", "")
    return Facts(path, _DECAY, 8, finds_rate="prodigy" in name or "dadapt" in name, averages="schedulefree" in name)


def package_of(path: str) -> str | None:
    """Which of PACKAGES a class's path lies in, None if in none of them or if it is no path."""
    if not all(part.isidentifier() and not part.startswith("__") for part in path.split(".")):
        return None
    return next((p for p in PACKAGES if path.startswith(p + ".")), None)


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """{name: value} of texts "name=value", the value written as in Python. Raises ValueError that names the text."""
    out: dict[str, Any] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name.isidentifier() or name.startswith("__") or not value:
            raise ValueError(f'"{text}" is not of the form name=value')
        if name in out:
            raise ValueError(f"{name} is given twice")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise ValueError(f'"{value}" is not a value: write True, 0.5, (0.9, 0.99) or "text"') from None
    return out


def kohya_name(section: Optimizer) -> str:
    """As sd-scripts writes it into files: the class's path, and in brackets what was given that is not usual."""
    usual, given = Optimizer(kind=section.kind), []
    for argument, values in (
        ("weight_decay", lambda s: s.weight_decay),
        ("betas", lambda s: (s.beta1, beta2(s))),
        ("eps", lambda s: s.eps),
        ("momentum", momentum),
    ):
        if argument in facts(section).takes and values(section) != values(usual):
            given.append(f"{argument}={values(section)}")
    given += [f"{name}={value!r}" for name, value in parse_arguments(section.arguments).items()]
    return facts(section).path + (f"({','.join(given)})" if given else "")


def beta2(section: Optimizer) -> float:
    """Lion's paper has 0.99 (arXiv:2302.06675, table 12), Adam's 0.999."""
    if section.beta2 is not None:
        return section.beta2
    return 0.99 if section.kind in ("lion", "lion_8bit") else 0.999


def momentum(section: Optimizer) -> float:
    if section.momentum is not None:
        return section.momentum
    return 0.95 if section.kind == "muon" else 0.9
