"""Names of the Stable Diffusion 3 transformer's tensors as Stability laid them out, from diffusers' names. No torch.

The original stacks query, key and value as the rows of one tensor, so that three of our names share one of the file's, in
their order. Scale and shift of the last layer, and of the last block's text side, lie there the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable

from limner.formats.layout import There, renamed

_PLACES = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_LEAVES = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_q": "x_block.attn.qkv",
    "attn.to_k": "x_block.attn.qkv",
    "attn.to_v": "x_block.attn.qkv",
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn.add_k_proj": "context_block.attn.qkv",
    "attn.add_v_proj": "context_block.attn.qkv",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_q": "x_block.attn2.qkv",
    "attn2.to_k": "x_block.attn2.qkv",
    "attn2.to_v": "x_block.attn2.qkv",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}


def transformer_names(names: Iterable[str]) -> dict[str, There]:
    """The place of each name, in the order of stacking. Raises ValueError for a name without one."""
    names = list(names)
    last = max((int(n.split(".")[1]) for n in names if n.startswith("transformer_blocks.")), default=0)
    swapped = ("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear")
    blocks = {"transformer_blocks": ("joint_blocks", _LEAVES)}
    return renamed(names, _PLACES, blocks, "Stable Diffusion 3's original layout", swapped)
