"""Names of an OpenCLIP text encoder's tensors (SD 2's ViT-H, SDXL's ViT-bigG) from transformers' names. No torch.

The tensors are the same ones, but for two things: the original stacks query, key and value as the rows of one `in_proj`, so
that three of our names share one of the file's, in their order; and `text_projection` is transposed (`is_transposed`).
SD 2 uses one layer fewer than its file holds. `logit_scale` and `attn_mask` have no place in transformers' model.
"""

from __future__ import annotations

from collections.abc import Iterable

_LEAVES = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_PLACES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_STACKED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def openclip_names(names: Iterable[str], prefix: str) -> dict[str, str]:
    """{transformers' name: name in the file} in the order of stacking. Raises ValueError for a name without a place."""
    return {name: prefix + _place(name.removeprefix("text_model.")) for name in sorted(names, key=_order)}


def is_transposed(name: str) -> bool:
    """Whether the tensor with this name in the file lies there the other way round."""
    return name.endswith(".text_projection")


def _order(name: str) -> int:
    return next((i for i, stacked in enumerate(_STACKED) if stacked in name), 0)


def _place(name: str) -> str:
    if name in _PLACES:
        return _PLACES[name]
    layers, _, rest = name.partition("encoder.layers.")
    number, _, inner = rest.partition(".")
    module, _, kind = inner.rpartition(".")  # kind: weight or bias
    if layers or not number.isdigit():
        raise ValueError(f"OpenCLIP's layout has no place for {name!r}")
    if module in _STACKED:
        return f"transformer.resblocks.{number}.attn.in_proj_{kind}"
    if module not in _LEAVES:
        raise ValueError(f"OpenCLIP's layout has no place for {name!r}")
    return f"transformer.resblocks.{number}.{_LEAVES[module]}.{kind}"
