"""network_module, network_dim, network_args and what goes with them <-> [adapter]."""

from __future__ import annotations

from typing import Any

from limner.config import Dylora, Full, Lokr, Lora, Oft
from limner.config.kohya import layers
from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer

_LYCORIS = {
    "lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "diag-oft": "oft", "boft": "oft", "ia3": "ia3",
    "glora": "glora", "dylora": "dylora", "full": "full",
}  # fmt: skip
_MODULES = {
    "lora": "lora", "lora_sd3": "lora", "lora_flux": "lora", "lora_fa": "lora", "dylora": "dylora", "loha": "loha",
    "lokr": "lokr", "oft": "oft", "oft_flux": "oft",
}  # fmt: skip
_OF_FAMILY = {"sd3": "networks.lora_sd3", "flux": "networks.lora_flux"}
_RANKED = ("lora", "loha", "lokr", "glora", "dylora")
_WITHOUT_CONVOLUTIONS = ("attn-mlp", "attn-only", "full-lin", "unet-transformer-only")

ARGUMENTS = (
    "network_module", "network_args", "network_dim", "network_alpha", "network_dropout", "scale_weight_norms",
    "network_train_unet_only", "network_train_text_encoder_only", "dim_from_weights",
)  # fmt: skip
OPTIONS = (
    "adapter.kind", "adapter.denoiser", "adapter.text_encoder", "adapter.rules", "adapter.rank", "adapter.alpha",
    "adapter.conv_rank", "adapter.conv_alpha", "adapter.dora", "adapter.rank_stabilized", "adapter.up_lr_ratio",
    "adapter.freeze_down", "adapter.dropout", "adapter.rank_dropout", "adapter.module_dropout", "adapter.max_norm",
    "adapter.factor", "adapter.decompose_both", "adapter.block", "adapter.butterfly", "adapter.constraint",
    "adapter.convolutions", "adapter.unit",
)  # fmt: skip
_LOST = {
    "use_tucker": "Tucker's form of convolutions is not made.",
    "use_cp": "Tucker's form of convolutions is not made.",
    "use_conv_cp": "Tucker's form of convolutions is not made.",
    "disable_conv_cp": "Tucker's form of convolutions is not made in any case.",
    "use_scalar": "There is no learnt factor for a whole layer.",
    "rank_dropout_scale": "What is left after rank_dropout is not scaled by its share.",
    "train_norm": "Adapters change no norms.",
    "rescaled": "OFT's outputs are not scaled.",
    "train_on_input": "Which layers learn factors of their inputs is fixed: keys, values and the feed-forward's end.",
    "wd_on_output": "DoRA's magnitudes are those of LyCORIS' default.",
    "ggpo_beta": "Random disturbances of the weights (GGPO) are not made.",
    "ggpo_sigma": "Random disturbances of the weights (GGPO) are not made.",
    "train_t5xxl": "T5 is not trained.",
    "split_qkv": "Queries, keys and values have an adapter each in any case.",
    "bypass_mode": "It computes the same in another order.",
    "verbose": "Which layers are adapted stands in the run's log.",
}
"""network_args that nothing comes of; the last three change nothing either way."""
_HARMLESS = ("bypass_mode", "verbose", "disable_conv_cp", "split_qkv")


def kind_of(module: str, algorithm: str) -> str | None:
    """The adapter that a module makes, None if Limner has none of that kind."""
    package, _, name = module.strip().rpartition(".")
    if package in ("", "networks") and name in _MODULES:
        return _MODULES[name]
    return _LYCORIS.get(algorithm.strip().lower() or "lora") if module.strip().startswith("lycoris") else None


def read(r: Reader) -> None:
    """Set the options of an adapter. `r.kind` is set already."""
    keys = r.spread("network_args")
    module = r.text("network_module") or ""
    _read_module(r, module)
    is_lycoris = module.startswith("lycoris")
    _read_rank(r, module)
    _read_convolutions(r, is_lycoris)
    _read_switches(r)
    _read_parts(r)
    layers.read(r)
    for key in keys:
        name = f"network_args.{key}"
        if name in r.done:
            continue
        if key not in _LOST:
            r.report.say(name, r.given[name], "unknown", why="Limner knows no such argument of a network.")
        elif key in _HARMLESS or r.flag(name) is False or r.number(name) == 0:
            r.idle(name, _LOST[key])
        else:
            r.unsupported(name, _LOST[key])
    r.unsupported("dim_from_weights", "Set adapter.rank to that of the file.") if r.flag("dim_from_weights") else r.idle(
        "dim_from_weights", "It is off."
    )


def _read_module(r: Reader, module: str) -> None:
    algorithm = r.text("network_args.algo") or ""
    found = kind_of(module, algorithm)
    if not module:
        r.put("adapter.kind", r.kind)
        return
    if found is None:
        r.put("adapter.kind", r.kind)
        r.unsupported("network_module", f'Limner has no such adapter; "{r.kind}" is taken.')
        return
    pairs: dict[str, Any] = {"adapter.kind": found}
    if module.endswith("lora_fa"):
        pairs["adapter.freeze_down"] = True
    if algorithm.lower() == "boft":
        pairs["adapter.butterfly"] = True
    r.values.setdefault("adapter", {})["kind"] = found
    r.take("network_module", pairs)
    if r.has("network_args.algo"):
        r.take("network_args.algo", {k: v for k, v in pairs.items() if k != "adapter.freeze_down"})


def _read_rank(r: Reader, module: str) -> None:
    if r.kind in _RANKED:
        rank = r.integer("network_dim")
        if rank is None and r.complete and "network_dim" not in r.given:
            rank = 4
        if rank is not None:
            r.take("network_dim", {"adapter.rank": rank})
        alpha = r.number("network_alpha")
        if alpha is not None and alpha > 0:
            r.take("network_alpha", {"adapter.alpha": alpha})
        elif alpha is not None:
            r.idle("network_alpha", "0 stands for the rank, as not giving it does here.")
    elif r.kind == "oft":
        size = r.integer("network_dim")
        if module.rpartition(".")[2] in ("oft", "oft_flux"):
            r.unsupported("network_dim", "There it is how many blocks there are; adapter.block is how large one is.")
        elif size is not None:
            r.take("network_dim", {"adapter.block": size})
        r.idle("network_alpha", "OFT has none.")
    else:
        for name in ("network_dim", "network_alpha"):
            r.idle(name, f'"{r.kind}" has none.')
    _read_unit(r)


def _read_unit(r: Reader) -> None:
    for name in ("network_args.unit", "network_args.block_size"):
        unit = r.integer(name)
        if unit is not None and r.kind == "dylora":
            r.take(name, {"adapter.unit": unit})
        elif unit is not None:
            r.idle(name, f'"{r.kind}" has none.')


def _read_preset(r: Reader) -> str:
    preset = r.text("network_args.preset") or ""
    if preset in _WITHOUT_CONVOLUTIONS or preset in ("", "full"):
        r.idle("network_args.preset", "Which layers are adapted follows from adapter.conv_rank or adapter.convolutions.")
        if preset in ("attn-only", "full-lin", "unet-transformer-only"):
            r.unsupported(
                "network_args.preset", "Attention and feed-forward layers are adapted; adapter.rules leaves some out."
            )
    elif preset:
        r.unsupported("network_args.preset", "Limner's layers are adapted instead; adapter.rules leaves some out.")
    return preset


def _read_convolutions(r: Reader, is_lycoris: bool) -> None:
    preset, is_ranked = _read_preset(r), r.kind in _RANKED
    adapts = is_lycoris and r.kind != "ia3" and preset not in _WITHOUT_CONVOLUTIONS
    rank, alpha = r.integer("network_args.conv_dim"), r.number("network_args.conv_alpha")
    if is_lycoris and not adapts:
        rank = None
    elif adapts and is_ranked and r.complete:
        rank, alpha = rank or r.value("adapter.rank"), alpha or r.value("adapter.alpha")
    if is_ranked and rank is not None and rank > 0:
        _take_convolutions(r, rank, alpha if alpha or is_lycoris or not r.complete else 1.0)
        return
    if r.kind in ("oft", "full"):
        enabled = r.flag("network_args.enable_conv")
        if enabled is not None:
            r.take("network_args.enable_conv", {"adapter.convolutions": enabled})
        elif adapts and r.complete:
            r.put("adapter.convolutions", True)
    for name in ("network_args.conv_dim", "network_args.conv_alpha"):
        r.idle(name, "Convolutions have no rank with these settings.")


def _take_convolutions(r: Reader, rank: int, alpha: float | None) -> None:
    if r.has("network_args.conv_dim"):
        r.take("network_args.conv_dim", {"adapter.conv_rank": rank})
    else:
        r.put("adapter.conv_rank", rank)
        said = "Not given: LyCORIS adapts the convolutions with network_dim, too."
        r.report.say("network_args.conv_dim", None, "taken", "adapter.conv_rank", why=said)
    if alpha and r.has("network_args.conv_alpha"):
        r.take("network_args.conv_alpha", {"adapter.conv_alpha": alpha})
    elif alpha:
        r.put("adapter.conv_alpha", alpha)


def _read_switches(r: Reader) -> None:
    for name, option in (("dora_wd", "dora"), ("rs_lora", "rank_stabilized"), ("decompose_both", "decompose_both")):
        _take_if(r, f"network_args.{name}", f"adapter.{option}", r.flag(f"network_args.{name}"))
    dropouts = (("network_args.rank_dropout", "rank_dropout"), ("network_args.module_dropout", "module_dropout"))
    for name, option in (*dropouts, ("network_dropout", "dropout"), ("network_args.dropout", "dropout")):
        if r.raw(name) is not None:
            _take_if(r, name, f"adapter.{option}", r.number(name))
    factor = r.integer("network_args.factor")
    if factor is not None:
        _take_if(r, "network_args.factor", "adapter.factor", factor, idle=-1)
    for name in ("network_args.constraint", "network_args.constrain"):
        if r.raw(name) is not None:
            _take_if(r, name, "adapter.constraint", r.number(name))
    norm = r.number("scale_weight_norms")
    if norm is not None:
        _take_if(r, "scale_weight_norms", "adapter.max_norm", norm)
    ratio = r.number("network_args.loraplus_lr_ratio")
    if ratio is not None:
        _take_if(r, "network_args.loraplus_lr_ratio", "adapter.up_lr_ratio", ratio)
    _read_ratios(r, ratio)
    if r.has("network_args.enable_all_linear"):
        r.unsupported("network_args.enable_all_linear", "Attention and feed-forward layers are adapted in any case.")


def _read_ratios(r: Reader, common: float | None) -> None:
    """LoRA+ has one ratio for all parts here."""
    own = {p: r.number(f"network_args.loraplus_{p}_lr_ratio") for p in ("unet", "text_encoder")}
    for part, ratio in own.items():
        name = f"network_args.loraplus_{part}_lr_ratio"
        if ratio is None:
            continue
        trains_text = not r.flag("network_train_unet_only")
        if ratio in (0, common) or (part == "text_encoder" and not trains_text):
            r.idle(name, "It changes nothing beside the other settings.")
        elif common is None and (not trains_text or own["unet"] == own["text_encoder"]):
            r.take(name, {"adapter.up_lr_ratio": ratio})
        else:
            r.unsupported(name, "The denoiser and the text encoder have one ratio, adapter.up_lr_ratio.")


def _take_if(r: Reader, name: str, option: str, value: Any, idle: Any = 0) -> None:
    """Take a value unless it is off, which every kind of adapter can be."""
    if value is None:
        return
    if not value or value == idle:
        r.idle(name, "It is off.")
    elif r.option(option) is None:
        r.unsupported(name, f'"{r.kind}" has none here.')
    else:
        r.take(name, {option: value})


def _read_parts(r: Reader) -> None:
    """What is adapted: the text encoder too, unless it is said otherwise or it does not move."""
    only_denoiser, only_text = r.flag("network_train_unet_only"), r.flag("network_train_text_encoder_only")
    rates = r.numbers("text_encoder_lr") if r.has("text_encoder_lr") else None
    if only_denoiser is not None:
        trains = not only_denoiser and not (rates is not None and not any(rates))
        said = "" if trains != only_denoiser else "Its learning rate is 0."
        r.take("network_train_unet_only", {"adapter.text_encoder": trains}, said)
    elif rates is not None:
        r.put("adapter.text_encoder", any(rates))
    if only_text is not None:
        stands_still = r.has("unet_lr") and r.number("unet_lr") == 0
        denoiser = not only_text and not stands_still
        said = "Its learning rate is 0." if stands_still and not only_text else ""
        r.take("network_train_text_encoder_only", {"adapter.denoiser": denoiser}, said)
        if only_text:
            r.put("adapter.text_encoder", True)


def write(w: Writer) -> None:
    """The arguments of an adapter."""
    adapter: Any = w.config.adapter
    module, args = _module(w)
    w.put("network_module", module, "adapter.kind")
    if adapter.kind in _RANKED:
        is_converted = isinstance(adapter, Lora) and adapter.rank_stabilized and not module.startswith("lycoris")
        alpha = adapter.file_alpha(spatial=False) if is_converted else (adapter.alpha or float(adapter.rank))
        w.put("network_dim", adapter.rank, "adapter.rank")
        w.put("network_alpha", alpha, "adapter.alpha")
        if adapter.conv_rank is not None:
            spatial = adapter.file_alpha(spatial=True) if is_converted else (adapter.conv_alpha or float(adapter.conv_rank))
            args |= {"conv_dim": adapter.conv_rank, "conv_alpha": spatial}
    elif isinstance(adapter, Oft):
        w.put("network_dim", adapter.block, "adapter.block")
    for option in ("rank_dropout", "module_dropout"):
        if value := getattr(adapter, option, 0.0):
            args[option] = value
    w.put("network_dropout", getattr(adapter, "dropout", 0.0), "adapter.dropout")
    if (ratio := getattr(adapter, "up_lr_ratio", 1.0)) != 1:
        args["loraplus_lr_ratio"] = ratio
    norm = getattr(adapter, "max_norm", "off")
    w.put("scale_weight_norms", None if norm == "off" else norm, "adapter.max_norm")
    w.put("network_train_unet_only", not adapter.text_encoder, "adapter.text_encoder")
    w.put("network_train_text_encoder_only", not adapter.denoiser, "adapter.denoiser")
    args |= layers.write(w, is_lycoris=module.startswith("lycoris"))
    w.put("network_args", [f"{name}={value}" for name, value in args.items()], "adapter.kind")


def _module(w: Writer) -> tuple[str, dict[str, Any]]:
    """(module, its own arguments)."""
    adapter: Any = w.config.adapter
    usual = _OF_FAMILY.get(w.family, "networks.lora")
    if isinstance(adapter, Lora) and not adapter.dora:
        if not adapter.freeze_down:
            return usual, {}
        if w.family in _OF_FAMILY:
            w.lose("adapter.freeze_down", f"{usual} trains both matrices.")
            return usual, {}
        if adapter.up_lr_ratio != 1:
            w.lose("adapter.up_lr_ratio", "networks.lora_fa has one learning rate.")
        return "networks.lora_fa", {}
    if isinstance(adapter, Dylora) and w.family not in _OF_FAMILY:
        return "networks.dylora", {"unit": adapter.unit}
    # without a preset LyCORIS adapts the convolutions as well
    preset = {} if adapter.convolutions else {"preset": "attn-mlp"}
    if adapter.convolutions:
        said = "LyCORIS adapts the layers before and behind the blocks too, with convolutions."
        option = "adapter.conv_rank" if adapter.kind in _RANKED else "adapter.convolutions"
        w.lose(option, said, "Mind that its files hold more layers.", severity="warning")
    return "lycoris.kohya", _lycoris(w) | preset


def _lycoris(w: Writer) -> dict[str, Any]:
    adapter: Any = w.config.adapter
    if isinstance(adapter, Lora):
        if adapter.freeze_down:
            w.lose("adapter.freeze_down", "LyCORIS' DoRA trains both matrices.")
        return {"algo": "lora", "dora_wd": True} | ({"rs_lora": True} if adapter.rank_stabilized else {})
    if isinstance(adapter, Oft):
        found: dict[str, Any] = {"algo": "boft" if adapter.butterfly else "diag-oft"}
        return found | ({"constraint": adapter.constraint} if adapter.constraint else {})
    out: dict[str, Any] = {"algo": adapter.kind}
    if isinstance(adapter, Lokr):
        out |= {"factor": adapter.factor} | ({"decompose_both": True} if adapter.decompose_both else {})
    elif isinstance(adapter, Dylora):
        out |= {"block_size": adapter.unit}
    elif isinstance(adapter, Full):
        out |= {}
    return out
