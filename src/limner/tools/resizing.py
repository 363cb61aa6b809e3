"""A LoRA cut to fewer ranks: each layer's product by its own, exact, singular values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import isfinite

import torch
from torch import Tensor

from limner import parsing
from limner.adapters.layers import Sizes
from limner.adapters.reading import layers_of, own_names
from limner.config.tools.ranks import Resize
from limner.errors import Finding, wrong
from limner.formats.header import Header
from limner.formats.lora_file import family_of_lora
from limner.formats.single import header_of
from limner.models.family import Family
from limner.models.weights import Weights
from limner.tools.lora_layers import PEFT_SAYS, Found, Pair, peft_scales, sort
from limner.tools.lora_output import write
from limner.tools.low_rank import Product, product_of, shaped, singular_of_sum
from limner.tools.model_layers import by_names_in_files, find
from limner.tools.outline import outline, usual
from limner.tools.ranked_file import (
    Line,
    check_device,
    in_dtype,
    network_keys,
    report_lines,
    rule_words,
)
from limner.tools.ranks import Cut, check_value, cut_matrix, cut_singular
from limner.tools.tool import Progress, Report, refuse_output

_TOOL, _WHERE = "resize", "resize.lora"
_EXACT = 1024
"""Up to this rank a product is decomposed in float64."""
_OF_THE_FILE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "modelspec.thumbnail", PEFT_SAYS)
"""Metadata that are true of the file as it was only."""


@dataclass(frozen=True)
class _Layer:
    """A layer to be cut."""

    name: str
    matrix: Product | Tensor
    """Its change, at its scale."""
    kernel: tuple[int, ...]
    scale: float
    was: str
    names: tuple[str, str, str]
    """Of what is written: down, up, and alpha, which is left out if empty."""


def look(section: Resize) -> Report:
    header, found = _opened(section)
    ranks = Counter(header.tensors[pair.down].shape[0] for pair in found.pairs)
    lines = [f"{count} layers of rank {rank}" for rank, count in sorted(ranks.items())]
    lines += [f"{count} layers of {kind}" for kind, count in Counter(found.dense.values()).items()]
    if found.dense:
        _family(section, header)
    return Report([section.output], lines, _remarks(found))


def run(section: Resize, progress: Progress) -> Report:
    header, found = _opened(section)
    weights, lines, tensors = Weights([section.lora]), list[Line](), dict[str, Tensor]()
    count, remarks = len(found.pairs) + len(found.dense), list(_remarks(found))
    for done, layer in enumerate(_layers(section, header, found, weights, remarks)):
        progress(done, count, layer.name)
        cut = _cut(section, layer)
        down, up = shaped(cut.product, layer.kernel)
        down_name, up_name, alpha_name = layer.names
        tensors[down_name] = in_dtype(down, section.dtype, layer.name, "resize.dtype")
        tensors[up_name] = in_dtype(up / layer.scale if layer.scale else up, section.dtype, layer.name, "resize.dtype")
        if alpha_name:
            tensors[alpha_name] = torch.tensor(layer.scale * cut.product.rank)
        lines.append(Line(layer.name, layer.was, cut))
    progress(count, count, "writing")
    for name in found.others:
        tensors[name] = weights[name].contiguous()
    alphas = {float(tensors[name]) for name in tensors if name.endswith(".alpha")}
    alpha = str(alphas.pop()) if len(alphas) == 1 else "Dynamic"
    rank = max(line.cut.product.rank for line in lines)
    metadata = _metadata(section, header, found, network_keys(section, rank, alpha))
    write(section.output, tensors, metadata, "resize.output")
    fewer = sum(line.was.isdigit() and int(line.was) < section.rank for line in lines)
    if section.rule == "rank" and fewer:
        remarks.append(Finding("resize.rank", f"{fewer} layers had fewer ranks than asked, and keep them.", severity="note"))
    sizes = [path.stat().st_size / 1e6 for path in (section.lora, section.output)]
    return Report(
        [section.output], [*report_lines(lines, section.verbose), f"{sizes[0]:.1f} MB became {sizes[1]:.1f}."], remarks
    )


def _opened(section: Resize) -> tuple[Header, Found]:
    """The file's header and its layers. Raises UserError."""
    check_value(section, _TOOL)
    check_device(section, _TOOL)
    refuse_output(section.output, [section.lora], section.overwrite, "resize.output")
    if not section.lora.is_file():
        raise wrong(_WHERE, f"{section.lora} is not a file.", "Give the path of a LoRA's .safetensors file.")
    header = header_of(section.lora, _WHERE)
    found = sort(header.tensors, _WHERE)
    for pair in found.pairs:
        _check(pair, header)
    return header, found


def _check(pair: Pair, header: Header) -> None:
    """Raises UserError unless the shapes of a pair make a product."""
    down, up = header.tensors[pair.down].shape, header.tensors[pair.up].shape
    alpha = header.tensors.get(pair.alpha)
    fits = len(down) == len(up) and len(up) in (2, 4) and 0 not in (*down, *up) and set(up[2:]) <= {1}
    if fits and pair.middle:
        middle = header.tensors[pair.middle].shape
        fits = len(middle) == 4 and 0 not in middle and middle[:2] == (up[1], down[0]) and set(down[2:]) <= {1}
    elif fits:
        fits = up[1] == down[0]
    if not fits or (alpha and alpha.shape not in ((), (1,))):
        shapes = f"{pair.down} {down} and {pair.up} {up}"
        raise wrong(_WHERE, f"the matrices of {pair.name} do not make a product: {shapes}.", "Download it again.")


def _remarks(found: Found) -> list[Finding]:
    out = list[Finding]()
    if found.magnitudes:
        said = (
            f"{found.magnitudes} layers are DoRA: their magnitudes stay as they are, and shares are those of the product alone."
        )
        out.append(Finding(_WHERE, said, severity="note"))
    strangers = len(found.others) - found.magnitudes
    if strangers:
        out.append(Finding(_WHERE, f"{strangers} tensors are no layers of low rank, and stay as they are.", severity="note"))
    return out


def _layers(
    section: Resize, header: Header, found: Found, weights: Mapping[str, Tensor], remarks: list[Finding]
) -> Iterator[_Layer]:
    scales = peft_scales(header, _WHERE)
    for pair in found.pairs:
        down, up = _finite(weights, pair.down), _finite(weights, pair.up)
        has_alpha = pair.alpha in weights or pair.down.endswith("lora_down.weight")
        scale = float(weights[pair.alpha]) / len(down) if pair.alpha in weights else 1.0
        if not isfinite(scale):
            raise wrong(_WHERE, f"{pair.alpha} is no finite number.", "Choose a file that is whole.")
        kernel = tuple(down.shape[2:])
        if pair.middle:
            middle = _finite(weights, pair.middle)
            down = torch.einsum("pqkl,qi->pikl", middle, down.flatten(1))
            kernel = tuple(middle.shape[2:])
        applied = scale if has_alpha else scales.get(pair.name.partition(".")[0], 1.0)
        names = pair.down, pair.up, pair.alpha if has_alpha else ""
        was = str(header.tensors[pair.down].shape[0])
        yield _Layer(pair.name, product_of(down, up, applied), kernel, scale if has_alpha else 1.0, was, names)
    if found.dense:
        yield from _dense(section, header, found, weights, remarks)


def _finite(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor in float64. Raises UserError if it cannot be read or is not finite."""
    try:
        tensor = weights[name].double()
    except (OSError, ValueError, RuntimeError) as error:
        raise wrong(_WHERE, f"it cannot be read ({error}).", "Download or copy it again.") from None
    if not bool(tensor.isfinite().all()):
        raise wrong(_WHERE, f"{name} holds numbers that are not finite (NaN or infinite).", "Choose a file that is whole.")
    return tensor


def _dense(
    section: Resize, header: Header, found: Found, weights: Mapping[str, Tensor], remarks: list[Finding]
) -> Iterator[_Layer]:
    """LoHa, LoKr and whole changes: their matrices are built, by the formulas of `adapters`."""
    family = _family(section, header)
    state = {name: weights[name] for name in weights if name.partition(".")[0] in found.dense}
    state = own_names({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, family)
    every, biases = by_names_in_files(family), 0
    # in order of their names, so that the layers of a stack come one behind the other
    layers = layers_of(family, {name: state[name] for name in sorted(state)}, _WHERE)
    for name, members in groupby(layers, key=lambda entry: entry[1].in_file):
        changes = dict[str, Tensor]()
        for _, target, layer in members:
            with torch.no_grad():
                changes[target.name] = layer.delta().detach()
            biases += layer.bias_delta() is not None
        parts = [changes.get(t.name, torch.zeros(Sizes.of(t.module).weight)) for t in every[name]]  # type: ignore[arg-type]
        whole = torch.cat(parts)
        if not bool(whole.isfinite().all()):
            raise wrong(_WHERE, f"{name} holds numbers that are not finite (NaN or infinite).", "Choose a file that is whole.")
        if every[name][0].piece == "swapped":
            whole = torch.cat(whole.chunk(2)[::-1])
        names = f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"
        kind = found.dense.get(name, next(iter(found.dense.values())))
        yield _Layer(name, whole.flatten(1), tuple(whole.shape[2:]), 1.0, kind, names)
    if biases:
        said = f"{biases} layers change biases, too, which a LoRA has no place for: that is left out."
        remarks.append(Finding(_WHERE, said, severity="warning"))


def _family(section: Resize, header: Header) -> Family:
    """The layers that the file is for: of the model that is given, or of the usual one of its family."""
    if section.model is not None:
        return outline(find(section.model, "resize.model"))
    name = family_of_lora(header)
    if name is None:
        said = "it cannot be told which model this is for, and its tensors do not tell the shape of the layers."
        raise wrong(_WHERE, said, "Give the model.")
    return outline(usual(name))


def _cut(section: Resize, layer: _Layer) -> Cut:
    is_spatial = any(n != 1 for n in layer.kernel)
    most = section.conv_rank if is_spatial and section.conv_rank is not None else section.rank
    if isinstance(layer.matrix, Tensor):
        return cut_matrix(layer.matrix.to(section.device), section.rule, section.value, most)
    up, down = (t.to(section.device) for t in (layer.matrix.up, layer.matrix.down))
    if layer.matrix.rank > _EXACT:
        up, down = up.float(), down.float()
    found = singular_of_sum([Product(up, down)])
    return cut_singular(found, float(found.values.double().square().sum()), section.rule, section.value, most)


def _metadata(section: Resize, header: Header, found: Found, network: Mapping[str, str]) -> dict[str, str]:
    """What the file said, where it is still true, and what became of it."""
    kept = {key: text for key, text in header.metadata.items() if key not in _OF_THE_FILE}
    ranks = {header.tensors[pair.down].shape[0] for pair in found.pairs}
    was = str(max(ranks)) if ranks else " and ".join(sorted({*found.dense.values()}))
    comment = f"resized by {rule_words(section, section.conv_rank)} from {was} ({section.lora.name})"
    if before := kept.get("ss_training_comment"):
        comment += f"; {before}"
    kept |= {"ss_training_comment": comment, **network}
    if found.dense and kept.get("ss_network_module") == "lycoris.kohya":
        kept["ss_network_module"] = "networks.lora"
    if args := _network_args(section, kept.get("ss_network_args")):
        kept["ss_network_args"] = args
    return kept


def _network_args(section: Resize, said: str | None) -> str | None:
    """kohya's network_args with the new rank of convolutions, and without what told LyCORIS' kind; None if there are none."""
    try:
        args = parsing.json_value(said or "null")
    except ValueError:
        return None
    if not isinstance(args, dict):
        return None
    args = {key: value for key, value in args.items() if key not in ("algo", "factor", "decompose_both")}
    if "conv_dim" in args:
        is_fixed, rank = section.rule == "rank", section.conv_rank or section.rank
        args["conv_dim"] = str(rank) if is_fixed else "Dynamic"
        args.pop("conv_alpha", None)  # it is for the tensors to say
    return json.dumps(args)
