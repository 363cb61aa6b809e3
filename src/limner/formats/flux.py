"""Names of the Flux transformer's tensors as Black Forest Labs laid them out, from diffusers' names. No torch.

The original stacks query, key and value (in single blocks the first layer of the MLP as well) as the rows of one tensor, so
that several of our names share one of the file's, in their order. The last layer's scale and shift lie there the other way
round (which nothing here undoes yet).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_PLACES = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_q": "img_attn.qkv",
    "attn.to_k": "img_attn.qkv",
    "attn.to_v": "img_attn.qkv",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.add_k_proj": "txt_attn.qkv",
    "attn.add_v_proj": "txt_attn.qkv",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.to_q": "linear1",
    "attn.to_k": "linear1",
    "attn.to_v": "linear1",
    "proj_mlp": "linear1",
    "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
_BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")
_ORDER = list(dict.fromkeys([*_DOUBLE, *_SINGLE]))


def transformer_names(names: Iterable[str]) -> dict[str, str]:
    """{diffusers' name: name in the file} in the order of stacking. Raises ValueError for a name without a place."""
    return {name: _place(name) for name in sorted(names, key=_order)}


def _order(name: str) -> int:
    match = _BLOCK.fullmatch(name.rpartition(".")[0])
    return _ORDER.index(match[3]) if match and match[3] in _ORDER else 0


def _place(name: str) -> str:
    module, _, kind = name.rpartition(".")  # kind: weight or bias
    if module in _PLACES:
        return f"{_PLACES[module]}.{kind}"
    match = _BLOCK.fullmatch(module)
    leaf = match and (_DOUBLE if match[1] == "transformer_blocks" else _SINGLE).get(match[3])
    if not match or not leaf:
        raise ValueError(f"Flux's original layout has no place for {name!r}")
    block = "double_blocks" if match[1] == "transformer_blocks" else "single_blocks"
    return f"{block}.{match[2]}.{leaf}.{'scale' if leaf.endswith('_norm') else kind}"
