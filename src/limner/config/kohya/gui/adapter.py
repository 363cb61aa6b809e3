"""The LoRA tab's adapter: a LoRA type is a module of sd-scripts or of LyCORIS, and takes some of the tab's keys."""

from __future__ import annotations

from dataclasses import dataclass

from limner.config.files import shown
from limner.config.kohya.gui.form import Form

_WEIGHTS = "down_lr_weight mid_lr_weight up_lr_weight block_lr_zero_threshold block_dims block_alphas conv_block_dims"
_WEIGHTS += " conv_block_alphas"
_DROPOUT = "rank_dropout module_dropout"
_CONV = "conv_dim conv_alpha"
_LORA = f"{_WEIGHTS} {_DROPOUT}"
_FLUX = "img_attn_dim img_mlp_dim img_mod_dim single_dim single_mod_dim txt_attn_dim txt_mlp_dim txt_mod_dim in_dims"
_FLUX += f" train_double_block_indices train_single_block_indices train_blocks split_qkv train_t5xxl {_DROPOUT}"
_GGPO = "train_lora_ggpo ggpo_sigma ggpo_beta"
_LYCORIS = f"LyCORIS_preset {_CONV} {_DROPOUT} rank_dropout_scale train_norm use_tucker"
_DECOMPOSED = f"{_LYCORIS} bypass_mode dora_wd use_scalar"
_PLUS = "loraplus_lr_ratio loraplus_unet_lr_ratio loraplus_text_encoder_lr_ratio"


@dataclass(frozen=True)
class _Type:
    module: str
    takes: str
    algo: str = ""
    has_rank: bool = True


_TYPES = {
    "Standard": _Type("networks.lora", f"{_LORA} {_PLUS}"),
    "Kohya LoCon": _Type("networks.lora", f"{_LORA} {_CONV} {_PLUS}"),
    "LoRA-FA": _Type("networks.lora_fa", _LORA),
    "Kohya DyLoRA": _Type("networks.dylora", f"{_LORA} {_CONV} unit {_PLUS}"),
    "Kohya LoHa": _Type("networks.loha", f"{_CONV} {_DROPOUT} use_tucker {_PLUS}"),
    "Kohya LoKr": _Type("networks.lokr", f"{_CONV} {_DROPOUT} use_tucker factor {_PLUS}"),
    "Flux1": _Type("networks.lora_flux", f"{_FLUX} {_GGPO} {_PLUS}"),
    "Flux1 OFT": _Type("networks.oft_flux", "enable_all_linear"),
    "LyCORIS/LoCon": _Type("lycoris.kohya", f"{_DECOMPOSED} {_PLUS}", "locon"),
    "LyCORIS/LoHa": _Type("lycoris.kohya", f"{_DECOMPOSED} {_PLUS}", "loha"),
    "LyCORIS/LoKr": _Type("lycoris.kohya", f"{_DECOMPOSED} factor use_cp decompose_both {_PLUS}", "lokr"),
    "LyCORIS/BOFT": _Type("lycoris.kohya", f"{_LYCORIS} {_PLUS}", "boft"),
    "LyCORIS/Diag-OFT": _Type("lycoris.kohya", f"{_LYCORIS} constrain rescaled {_PLUS}", "diag-oft"),
    "LyCORIS/DyLoRA": _Type("lycoris.kohya", f"{_LYCORIS} unit", "dylora"),
    "LyCORIS/GLoRA": _Type("lycoris.kohya", f"{_LYCORIS} {_PLUS}", "glora"),
    "LyCORIS/iA3": _Type("lycoris.kohya", f"LyCORIS_preset {_CONV} train_on_input", "ia3", has_rank=False),
    "LyCORIS/Native Fine-Tuning": _Type(
        "lycoris.kohya", f"LyCORIS_preset {_DROPOUT} rank_dropout_scale train_norm {_PLUS}", "full", has_rank=False
    ),
}
_MOST_RANK = 1024
_OLD = {"LoCon": "LyCORIS/LoCon"}
_OTHER_FAMILIES = ("HunyuanImage-2.1", "Anima", "Lumina")
_FLAGS = (
    "split_qkv", "train_t5xxl", "train_lora_ggpo", "enable_all_linear", "bypass_mode", "dora_wd", "use_cp", "use_tucker",
    "use_scalar", "rank_dropout_scale", "rescaled", "train_norm", "decompose_both", "train_on_input",
)  # fmt: skip
_NUMBERS = f"{_DROPOUT} {_PLUS} constrain conv_alpha ggpo_sigma ggpo_beta".split()
_WHOLE = ["conv_dim", "unit", "factor"]
_NAMES = {"LyCORIS_preset": "preset", "constrain": "constraint"}
KEYS = tuple(dict.fromkeys(["LoRA_type", "network_dim", "network_alpha", *" ".join(t.takes for t in _TYPES.values()).split()]))
"""The keys that `read_adapter` accounts for."""


def read_adapter(form: Form) -> None:
    """Make the module and its arguments; keys that the type does not take are idle."""
    name = form.text("LoRA_type")
    name = _OLD.get(name or "", name)
    kind = _TYPES.get(name or "Standard")
    if name in _OTHER_FAMILIES:
        form.refuse("LoRA_type", f"Limner does not train {name}; choose another base model.")
    elif kind is None:
        form.refuse("LoRA_type", f"There is no LoRA type {shown(name)}; a plain LoRA is trained instead.")
    elif name is not None:
        module = "networks.lora_sd3" if name == "Standard" and form.family == "sd3" else kind.module
        form.send("network_module", module, "LoRA_type")
        if kind.algo:
            form.send_network("algo", kind.algo, "LoRA_type")
    kind = kind or _TYPES["Standard"]
    most = _MOST_RANK if kind.algo == "lokr" or kind.module == "networks.lokr" else None
    for key in ("network_dim", "network_alpha"):
        number = _at_most(form, key, form.number(key, whole=key == "network_dim"), most)
        if number is not None and not kind.has_rank:
            form.idle(key, f"{name} has no rank.")
        elif number is not None:
            form.send(key, number, key)
    takes = kind.takes.split()
    for key in KEYS[3:]:
        if key in form.raw and key not in takes:
            form.idle(key, f"LoRA type {shown(name)} does not take it.")
        else:
            _read(form, key, kind)


def _at_most(form: Form, key: str, number: float | int | None, most: int | None) -> float | int | None:
    """LoKr's ranks are written as 100000 where no matrix shall be a product: the scale is 1 then, whatever alpha says."""
    rank = form.number("network_dim" if key.startswith("network") else "conv_dim", whole=True)
    if number is None or most is None or not rank or rank <= most:
        return number
    form.notes[key] = f"So high a rank stands for whole matrices, whose scale is 1; {most} is the highest here."
    return most


def _read(form: Form, key: str, kind: _Type) -> None:
    value = _value(form, key)
    if key in ("conv_dim", "conv_alpha") and "lokr" in (kind.algo, kind.module.rpartition(".")[2]):
        value = _at_most(form, key, value if isinstance(value, int | float) else None, _MOST_RANK)
    if value is None:
        return
    if key == "conv_alpha" and not kind.algo and not form.number("conv_dim"):
        form.idle(key, "conv_dim is off.")
    elif key in ("ggpo_sigma", "ggpo_beta") and not form.flag("train_lora_ggpo"):
        form.idle(key, "train_lora_ggpo is not ticked.")
    elif value is False and key != "train_on_input":
        form.idle(key, "It is not ticked.")
    elif key == "conv_dim" and value == 0 and kind.algo and (rank := form.number("network_dim", whole=True)):
        form.send_network(key, rank, key)  # LyCORIS takes network_dim then
    elif value == 0 and key != "train_on_input":
        form.idle(key, "0 is off.")
    elif (key, value) in (("factor", -1), ("train_blocks", "all")) or (value == "all" and key.endswith("_block_indices")):
        form.idle(key, f"{shown(value)} is usual.")
    elif key == "train_lora_ggpo":
        form.refuse(key, "Limner has no GGPO; adapter.dropout or adapter.max_norm keep an adapter small.")
    elif key in ("ggpo_sigma", "ggpo_beta"):
        form.refuse(key, "Limner has no GGPO.")
    else:
        name = "block_size" if key == "unit" and kind.algo else _NAMES.get(key, key)
        form.send_network(name, value, key)


def _value(form: Form, key: str) -> float | str | None:
    if key in _FLAGS:
        return form.flag(key)
    if key in _NUMBERS or key in _WHOLE:
        return form.number(key, whole=key in _WHOLE)
    return form.text(key)
