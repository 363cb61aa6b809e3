"""Optimisers from their description: one table of what each class is told, and a trial for classes given by their path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from limner.config import Optimizer
from limner.config.optimizers import PACKAGES, beta2, facts, momentum, package_of, parse_arguments
from limner.engine.one_by_one import OneByOne
from limner.engine.optimizer_state import pack, unpack
from limner.errors import UserError, printable, wrong

Groups = list[dict[str, Any]]
_TRIAL_STEPS = 6
_CAME_BETA3 = 0.9999  # arXiv:2307.02047, section 4.1


def make_optimizer(section: Optimizer, groups: Groups, device: torch.device, seed: int = 0) -> torch.optim.Optimizer | OneByOne:
    """The optimiser that a config section describes, over parameter groups that bring their own `name` and `lr`.

    `seed` decides how weights in bf16 are rounded. Raises UserError if its class is not there, does not take the arguments,
    or, given by its path, does not pass the trial.
    """
    made = _maker(section, device)
    if section.kind == "other":
        _try_out(section, made, groups, device)
    if section.in_backward or any(p.dtype == torch.bfloat16 for g in groups for p in g["params"]):
        assert facts(section).one_by_one, "preflight refuses the others"
        optimizer = OneByOne(groups, made, seed)
        if section.in_backward:
            optimizer.move_in_backward()
        return optimizer
    return made(groups)


def set_learning_rates(optimizer: torch.optim.Optimizer | OneByOne, factor: float) -> dict[str, float]:
    """Set each group's learning rate for the coming step. Returns by group name the rates in effect: of an optimiser that
    finds the rate itself, what it has found times the one set."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return {g["name"]: g["lr"] * (float(g.get("d", 1)) if g["finds_rate"] else 1) for g in optimizer.param_groups}


def _maker(section: Optimizer, device: torch.device) -> Callable[[Groups], torch.optim.Optimizer]:
    """What makes the optimiser over groups."""
    known = facts(section)
    kind = load_class(known.path)
    accepted = [n for n, p in inspect.signature(kind).parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    given = parse_arguments(section.arguments)
    for name in given:
        refuse_argument(name, accepted, known.takes, known.path)
    own = _TOLD[section.kind](section, device)
    if section.kind == "other":
        if "weight_decay" in accepted:
            own["weight_decay"] = section.weight_decay
        elif section.weight_decay not in (0, Optimizer().weight_decay):
            raise wrong("optimizer.weight_decay", f"{known.path} has none.", "Remove it.")

    def make(groups: Groups) -> torch.optim.Optimizer:
        marked = [g | {"base_lr": g["lr"], "finds_rate": known.finds_rate} for g in groups]
        try:
            optimizer = kind(_part_matrices(marked) if section.kind == "muon" else marked, **{**own, **given})
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            remedy = (
                "Correct optimizer.arguments." if given else "Give what it needs in optimizer.arguments, or choose another."
            )
            field = "optimizer.arguments" if given else "optimizer.class_path"
            raise wrong(field, f"{known.path} cannot be made so: {printable(error)}", remedy) from error
        if train := getattr(optimizer, "train", None):
            train()  # schedule-free ones of some packages are made for evaluation
        return optimizer

    return make


def load_class(path: str) -> type[torch.optim.Optimizer]:
    """The optimiser's class. Raises UserError if there is none of that name."""
    if package_of(path) is None:  # preflight says it before, but a run's file can be changed after
        raise wrong("optimizer.class_path", f"{path} is not taken.", f"Classes are taken from {', '.join(PACKAGES)} alone.")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        said = f"{path} cannot be loaded: {printable(error)}."
        raise wrong("optimizer.class_path", said, f"Install it: pip install {path.split('.')[0]}") from error
    except AttributeError:
        raise wrong("optimizer.class_path", f"{module} has no {name}.", "Correct the name.") from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise wrong("optimizer.class_path", f"{path} is no optimiser.", "Name a subclass of torch.optim.Optimizer.")
    return found


def refuse_argument(name: str, accepted: list[str], taken: dict[str, str], path: str) -> None:
    """Raises UserError for an argument that the class does not have, or that another option decides."""
    if name in taken:
        raise wrong("optimizer.arguments", f"{name} is decided by {taken[name]}.", "Set it there.")
    if name in ("params", "lr") or name not in accepted:
        near = get_close_matches(name, [a for a in accepted if a not in ("params", "lr", *taken)], 1)
        raise wrong("optimizer.arguments", f"{path} has no {name}.", f"Did you mean {near[0]}?" if near else "Remove it.")


# --- what each class is told ------------------------------------------------------------------------------------------


def _adam(section: Optimizer, device: torch.device) -> dict[str, Any]:  # noqa: ARG001
    return {"betas": (section.beta1, beta2(section)), "eps": section.eps, "weight_decay": section.weight_decay}


def _lion(section: Optimizer, device: torch.device) -> dict[str, Any]:  # noqa: ARG001
    return {"betas": (section.beta1, beta2(section)), "weight_decay": section.weight_decay}


def _adafactor(section: Optimizer, device: torch.device) -> dict[str, Any]:  # noqa: ARG001
    return {"weight_decay": section.weight_decay, "relative_step": False, "scale_parameter": False, "warmup_init": False}


def _prodigy(section: Optimizer, device: torch.device) -> dict[str, Any]:
    # its authors' word: with a warm-up, else the tiny first rates would make it find far too large a one
    return _adam(section, device) | {"safeguard_warmup": bool(section.warmup_steps or section.warmup_share)}


def _muon(section: Optimizer, device: torch.device) -> dict[str, Any]:  # noqa: ARG001
    # scaled so that an update is as large as AdamW's (arXiv:2502.16982, eq. 4): one learning rate serves both
    decay = {"weight_decay": section.weight_decay, "adamw_wd": section.weight_decay}
    return {"momentum": momentum(section), "use_adjusted_lr": True, **decay}


def _sgd(section: Optimizer, device: torch.device) -> dict[str, Any]:  # noqa: ARG001
    share = momentum(section)
    return {"momentum": share, "nesterov": share > 0, "weight_decay": section.weight_decay}


_TOLD: dict[str, Callable[[Optimizer, torch.device], dict[str, Any]]] = {
    "adamw": lambda s, d: _adam(s, d) | {"fused": d.type in ("cpu", "cuda")},
    "adamw_8bit": _adam,
    "paged_adamw_8bit": _adam,
    "lion": _lion,
    "lion_8bit": _lion,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
    "dadapt_adam": lambda s, d: _adam(s, d) | {"weight_decouple": True},
    "dadapt_lion": lambda s, d: _lion(s, d) | {"weight_decouple": True},
    "schedule_free": _adam,
    "came": lambda s, d: _lion(s, d) | {"betas": (s.beta1, beta2(s), _CAME_BETA3)},
    "muon": _muon,
    "sgd": _sgd,
    "other": lambda s, d: {},  # noqa: ARG005
}


def _part_matrices(groups: Groups) -> Groups:
    """Each group as two: matrices, whose updates Muon makes orthogonal, and the rest, which it moves as AdamW does."""
    out: Groups = []
    for group in groups:
        for is_matrix in (True, False):
            params = [p for p in group["params"] if (p.ndim == 2) == is_matrix]
            if params:
                out.append(group | {"params": params, "use_muon": is_matrix})
    return out


# --- the trial --------------------------------------------------------------------------------------------------------


def _try_out(section: Optimizer, made: Callable[[Groups], torch.optim.Optimizer], groups: Groups, device: torch.device) -> None:
    """Raises UserError unless the optimiser takes our groups and goes on exactly from its state: 6 steps, save, load into a
    new one, 6 more, and every bit is that of 12 steps without a break."""
    path = facts(section).path
    rates = [g["lr"] for g in groups][:2]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            unbroken, optimizer = _toy(rates, made, device)
            _walk(unbroken, optimizer, range(2 * _TRIAL_STEPS))
            first, optimizer = _toy(rates, made, device)
            _walk(first, optimizer, range(_TRIAL_STEPS))
            tensors, told = pack(optimizer)
            second, optimizer = _toy(rates, made, device)
            _set(second, first)
            unpack(optimizer, tensors, told)
            torch.manual_seed(1)  # one that draws random numbers of its own is found out
            _walk(second, optimizer, range(_TRIAL_STEPS, 2 * _TRIAL_STEPS))
            faster, optimizer = _toy([2 * rate for rate in rates], made, device)
            _walk(faster, optimizer, range(2 * _TRIAL_STEPS))
        except UserError:
            raise
        except Exception as error:  # whatever a class from outside does, it is its fault and not ours
            said = (
                f"{path} cannot be used: in a trial of a few steps it failed ({printable(f'{type(error).__name__}: {error}')})."
            )
            raise wrong("optimizer.class_path", said, "Choose another.") from error
    if all(torch.equal(a, b) for a, b in zip(unbroken, _toy_params(device), strict=True)):
        raise wrong("optimizer.class_path", f"{path} moved no weight in a trial of a few steps.", "Choose another.")
    if all(torch.equal(a, b) for a, b in zip(unbroken, faster, strict=True)):
        said = f"{path} takes no notice of the learning rate, nor of optimizer.schedule."
        raise wrong("optimizer.class_path", said, "Correct optimizer.arguments (relative_step=False?), or choose another.")
    if not all(torch.equal(a, b) for a, b in zip(unbroken, second, strict=True)):
        said = f"{path} does not go on as it would have when a run is resumed: a trial of 6 and 6 steps came out otherwise."
        raise wrong("optimizer.class_path", said, "Choose another.")


def _toy_params(device: torch.device) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    shapes = ((64, 72), (72,), (4, 6), (6, 4, 3, 3), (5,))  # one is large enough for 8-bit states
    return [nn.Parameter(torch.randn(s, generator=rng).to(device)) for s in shapes]


def _toy(rates: list[float], made: Callable[[Groups], torch.optim.Optimizer], device: torch.device):
    torch.manual_seed(0)
    params = _toy_params(device)
    shares = [params] if len(rates) == 1 else [params[:2], params[2:]]
    return params, made([{"name": "", "params": share, "lr": rate} for share, rate in zip(shares, rates, strict=True)])


def _walk(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        rng = torch.Generator().manual_seed(1 + step)
        set_learning_rates(optimizer, 1 / (1 + step))
        for p in params:
            p.grad = (p.detach().cpu() + torch.randn(p.shape, generator=rng)).to(p.device)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _set(params: list[nn.Parameter], others: list[nn.Parameter]) -> None:
    for p, other in zip(params, others, strict=True):
        p.copy_(other)
