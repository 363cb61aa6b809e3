"""adapter.start: an adapter file to go on from, and whether it is what the options describe."""

from __future__ import annotations

import math
from typing import Any

from limner.adapters import reading
from limner.adapters.adapter import Adapter
from limner.adapters.dylora import DyloraLayer
from limner.adapters.layered import LayerAdapter
from limner.adapters.layers import Layer
from limner.adapters.lora import LoraLayer
from limner.adapters.together import Together
from limner.engine.checkpoint import newest_state
from limner.errors import Finding, UserError, wrong
from limner.formats.header import read_header
from limner.models.family import Family
from limner.runs import Run

_START = "adapter.start"


def go_on(adapter: Adapter, family: Family, section: Any, run: Run) -> None:
    """Take over the file of adapter.start. Raises UserError if it is not what the options describe.

    Where the run has a training state the weights will come from there.
    """
    path = getattr(section, "start", None)
    adapter = adapter.beside if isinstance(adapter, Together) else adapter
    if path is None or not isinstance(adapter, LayerAdapter) or newest_state(run.states)[0] is not None:
        return
    if not section.text_encoder and any(n.startswith(reading.TEXT) for n in read_header(path, _START).tensors):
        said = "the file also changes the text encoder, which would be lost."
        raise wrong(_START, said, "Set adapter.text_encoder = true.")
    state = reading.read(path, family, _START)
    found = {name: layer for name, _, layer in reading.layers_of(family, state, _START)}
    own = {name: layer for name, (_, layer) in adapter.layers.items()}
    faults = [*_of_kinds(own, found, section), *_of_layers(own, found)]
    if faults:
        raise UserError(faults[:1])  # one may follow from the other
    adapter.load_state_dict({f"{n}.{key}": t.detach() for n, layer in found.items() for key, t in layer.tensors().items()})


def _of_layers(own: dict[str, Layer], found: dict[str, Layer]) -> list[Finding]:
    out = []
    for names, said in ((own.keys() - found.keys(), "does not change {}"), (found.keys() - own.keys(), "also changes {}")):
        if names:
            more = f" and {len(names) - 1} layers more" if len(names) > 1 else ""
            remedy = "Set adapter.denoiser, adapter.text_encoder, adapter.rules and the convolutions as it was trained."
            out.append(Finding(_START, f"the file {said.format(min(names))}{more}.", remedy))
    return out


def _of_kinds(own: dict[str, Layer], found: dict[str, Layer], section: Any) -> list[Finding]:
    for name in own.keys() & found.keys():
        ours, its = own[name], found[name]
        if type(its) is not (LoraLayer if isinstance(ours, DyloraLayer) else type(ours)):
            said = f"the file is a {_title(its)}, not a {_title(ours)}."
            return [Finding(_START, said, "Set adapter.kind and its options as it was trained.")]
        spatial = "conv_" if ours.sizes.is_spatial else ""
        if its.rank != ours.rank and None not in (its.rank, ours.rank):
            said = f"the file has rank {its.rank} at {name}, {ours.rank} is asked for."
            return [Finding(_START, said, f"Set adapter.{spatial}rank = {its.rank}, or a rule for this layer.")]
        if not math.isclose(its.scale, ours.scale, rel_tol=1e-3):
            rank = its.rank or 1
            alpha = its.scale * (section.divisor(rank) if hasattr(section, "divisor") else rank)
            said = f"the file scales by {its.scale:g} at {name}, {ours.scale:g} is asked for."
            return [Finding(_START, said, f"Set adapter.{spatial}alpha = {alpha:g}.")]
        shapes = {k: tuple(t.shape) for k, t in its.tensors().items()}
        if shapes.keys() != ours.tensors().keys() or any(t.numel() != math.prod(shapes[k]) for k, t in ours.tensors().items()):
            said = f"the file has other shapes at {name}: {', '.join(f'{k} {s}' for k, s in shapes.items() if s)}."
            return [Finding(_START, said, "Set the options of the adapter as it was trained.")]
    return []


def _title(layer: Layer) -> str:
    return type(layer).__name__.removesuffix("Layer")
