"""What a configuration asks of a base model that its family ignores, or cannot do. No torch.

Asked before the start, and again by the trainer once a model has come from the hub.
"""

from __future__ import annotations

from collections.abc import Iterator

from limner.config import Config, Lora
from limner.errors import Finding
from limner.formats.base import Base
from limner.formats.known import FAMILIES


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
    if base.has_zero_snr:
        said = "was trained down to a signal of zero, which Limner does not do yet: very dark and bright pictures suffer."
        yield Finding("model.base", said, "Watch for them in the samples; a model without that suffers nothing.", "warning")
    if base.prediction == "flow":
        yield from _unsuited_to_a_flow(config, base, title)


def _unsuited_to_a_flow(config: Config, base: Base, title: str) -> Iterator[Finding]:
    objective, sample, adapter = config.objective, config.sample, config.adapter
    if objective.prediction is not None:
        yield Finding("objective.prediction", f"{title} predicts the flow's velocity, nothing else.", "Remove the line.")
    if objective.min_snr_gamma != "off":
        yield Finding("objective.min_snr_gamma", f"has no meaning for the flow of {title}.", 'Set it to "off".')
    if config.model.text_chunks > 1:
        said = f"has no effect: how much {title} reads of a caption is settled."
        yield Finding("model.text_chunks", said, "Remove it.", "warning")
    if sample.solver not in (None, "euler"):
        yield Finding("sample.solver", f"{sample.solver} cannot paint with {title}.", 'Set "euler", or remove it.')
    if sample.negative and base.takes_guidance:
        yield Finding("sample.negative", f"has no effect: {title} is told the guidance instead.", "Remove it.", "warning")
    if isinstance(adapter, Lora):
        if adapter.conv_rank is not None:
            yield Finding("adapter.conv_rank", f"{title} has no 3x3 convolutions.", "Remove it.", "warning")
        if adapter.dora:
            said = f"cannot be written for {title}: LoRA files stack layers whose magnitudes differ."
            yield Finding("adapter.dora", said, "Set it to false.")
        if adapter.text_encoder:
            yield Finding("adapter.text_encoder", "adapts CLIP; T5 stays as it is.", "", "note")
    elif config.output.layout == "original" and adapter.text_encoder:
        said = f"single files of {title} hold no text encoder, and it is trained."
        yield Finding("output.layout", said, 'Set it to "diffusers": the model becomes a folder.')
