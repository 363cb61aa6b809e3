"""Names of an OpenCLIP text encoder's tensors (SD 2's ViT-H, SDXL's ViT-bigG) from transformers' names. No torch.

The tensors are the same ones, but for two things: the original stacks query, key and value as the rows of one `in_proj`, so
that three of our names share one of the file's, in their order; and `text_projection` is transposed.
SD 2 uses one layer fewer than its file holds. `logit_scale` and `attn_mask` have no place in transformers' model.
"""

from __future__ import annotations

from collections.abc import Iterable

from limner.formats.layout import There, renamed

_LEAVES = {
    "self_attn.q_proj.weight": "attn.in_proj_weight",
    "self_attn.k_proj.weight": "attn.in_proj_weight",
    "self_attn.v_proj.weight": "attn.in_proj_weight",
    "self_attn.q_proj.bias": "attn.in_proj_bias",
    "self_attn.k_proj.bias": "attn.in_proj_bias",
    "self_attn.v_proj.bias": "attn.in_proj_bias",
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


def openclip_names(names: Iterable[str]) -> dict[str, There]:
    """The place of each name, in the order of stacking. Raises ValueError for a name without one."""
    own = {name.removeprefix("text_model."): name for name in names}
    blocks = {"encoder.layers": ("transformer.resblocks", _LEAVES)}
    places = renamed(own, _PLACES, blocks, "OpenCLIP's layout", transposed=("text_projection",))
    return {own[name]: there for name, there in places.items()}
