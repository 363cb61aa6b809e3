"""What a configuration asks of a base model that its family ignores, or cannot do. No torch.

Asked before the start, and again by the trainer once a model has come from the hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from limner.config import Config, Sample
from limner.config.prompts import Prompt
from limner.errors import Finding, UserError
from limner.formats.base import Base
from limner.formats.known import FAMILIES
from limner.formats.objectives import unsuited_objective


def unsuited(config: Config, base: Base) -> Iterator[Finding]:
    """Findings at the options; errors where the run would be wrong."""
    asked = config.model.family
    if asked is not None and asked != base.family:
        yield Finding("model.family", f"{asked!r} was asked for, {config.model.base} is {base.family!r}.", "Remove the line.")
    title, objective = FAMILIES[base.family].title, config.objective
    if objective.guidance is not None and not base.takes_guidance:
        yield Finding("objective.guidance", f"has no effect: this {title} model is told none.", "Remove it.", "warning")
    if config.model.clip_skip is not None and not FAMILIES[base.family].skips_layers:
        said = f"has no effect: which layers count is settled for {title}."
        yield Finding("model.clip_skip", said, "Remove it.", "warning")
    yield from unsuited_objective(config, base)
    if base.prediction == "flow":
        yield from _unsuited_to_a_flow(config, base, title)


def _unsuited_to_a_flow(config: Config, base: Base, title: str) -> Iterator[Finding]:
    sample, adapter = config.sample, config.adapter
    if config.embedding.token is not None:
        said = f"words cannot be learnt for {title}, only for Stable Diffusion 1, 2 and XL."
        yield Finding("embedding.token", said, "Remove it, and teach a LoRA with data.trigger.")
    if config.model.text_chunks > 1:
        said = f"has no effect: how much {title} reads of a caption is settled."
        yield Finding("model.text_chunks", said, "Remove it.", "warning")
    if config.data.weighted_captions:
        yield Finding("data.weighted_captions", f"{title} reads no weights in captions.", "Set it to false.")
    if sample.solver not in (None, "euler"):
        yield Finding("sample.solver", f"{sample.solver} cannot paint with {title}.", 'Set "euler", or remove it.')
    if not adapter.trains_base:
        if getattr(adapter, "convolutions", False):
            field = "adapter.conv_rank" if hasattr(adapter, "conv_rank") else "adapter.convolutions"
            yield Finding(field, f"has no effect: {title} has no 3x3 convolutions.", "Remove it.", "warning")
        if adapter.text_encoder:
            yield Finding("adapter.text_encoder", "adapts CLIP; T5 stays as it is.", "", "note")
    elif config.output.layout == "original" and adapter.text_encoder and _leaves_out_text(base):
        said = "the file that would be written holds no text encoder, and it is trained."
        yield Finding("output.layout", said, 'Set it to "diffusers": the model becomes a folder.')


def _leaves_out_text(base: Base) -> bool:
    """Whether a single file is written without one of the text encoders that can be trained: those that lie in a file of their
    own stay there, and of a folder those that single files of the family usually leave out."""
    parts = FAMILIES[base.family].parts
    texts = [n for n in parts if n.startswith("text_encoder") and n not in (base.t5, *base.absent)]
    return any(n in base.others if base.layout == "file" else parts[n].is_apart for n in texts)


def require_suited(prompts: Sequence[Prompt], base: Base) -> None:
    """Raise UserError if a prompt asks for what the model cannot do."""
    if errors := [f for f in unsuited_prompts(prompts, base) if f.severity == "error"]:
        raise UserError(errors[:20])


def unsuited_prompts(prompts: Sequence[Prompt], base: Base, inherited: Sample | None = None) -> Iterator[Finding]:
    """Findings at the prompts, errors where a picture would be another than was asked for. What the prompts have from the
    options, `inherited`, is not said again at each."""
    title, is_flow, inherited = FAMILIES[base.family].title, base.prediction == "flow", inherited or Sample()
    if base.takes_guidance and inherited.negative and all(p.guidances(True, base.guidance)[1] == 1 for p in prompts):
        said = f"has no effect: {title} is told the guidance instead."
        yield Finding("sample.negative", said, "Remove it, or give the prompts --g and --l.", "warning")
    for prompt in prompts:
        if base.max_side_px is not None and max(prompt.width, prompt.height) > base.max_side_px:
            said = f"{prompt.width} x {prompt.height} is too large: {title} has places for {base.max_side_px} px a side."
            yield Finding(prompt.where, said, "Choose a smaller --w and --h.")
        if is_flow and prompt.solver not in (None, "euler", inherited.solver):
            yield Finding(prompt.where, f"{prompt.solver} cannot paint with {title}.", 'Choose "euler", or none.')
        if prompt.told_guidance is not None and not base.takes_guidance:
            said = f"--g (guidance_scale) is for models that are told the guidance, this {title} model is not."
            yield Finding(prompt.where, said, "Take it out, or use --l (scale).")
        if prompt.shift is not None and not is_flow:
            said = f"--fs (flow_shift) is for flows, {title} is none."
            yield Finding(prompt.where, said, "Take it out of the prompt.")
