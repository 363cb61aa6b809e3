"""What sd-scripts says of single blocks and kinds of layers <-> adapter.rules."""

from __future__ import annotations

from typing import Any

from limner.config import rules
from limner.config.kohya import blocks
from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer

_DIMS = ("block_dims", "block_alphas")
_RATES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
_OF_CONVOLUTIONS = ("conv_block_dims", "conv_block_alphas")
_OF_LAYERS = (
    "img_attn_dim", "txt_attn_dim", "img_mlp_dim", "txt_mlp_dim", "img_mod_dim", "txt_mod_dim", "single_dim", "single_mod_dim",
    "in_dims", "context_attn_dim", "context_mlp_dim", "context_mod_dim", "x_attn_dim", "x_mlp_dim", "x_mod_dim", "emb_dims",
    "network_reg_dims", "network_reg_lrs", "include_patterns", "exclude_patterns", "train_block_indices",
)  # fmt: skip


def read(r: Reader) -> None:
    """Set adapter.rules."""
    found = [*_dims(r), *_rates(r), *_flux(r)]
    for name in (*_OF_CONVOLUTIONS, *_OF_LAYERS):
        r.unsupported(f"network_args.{name}", "Write it as adapter.rules, by diffusers' names of the layers.")
    if found:
        r.put("adapter.rules", found)


def _count(r: Reader, name: str) -> int:
    """How many blocks there are; 0, and said, where the family has none."""
    count = blocks.COUNTS.get(r.family, 0)
    if not count:
        r.unsupported(name, "Blocks are known of Stable Diffusion 1, 2 and XL. Write it as adapter.rules.")
    return count


def _dims(r: Reader) -> list[str]:
    names = [f"network_args.{n}" for n in _DIMS]
    if not any(map(r.has, names)):
        return []
    count = _count(r, names[0])
    dims, alphas = r.numbers(names[0]), r.numbers(names[1])
    rank, alpha = r.value("adapter.rank") or 4, r.value("adapter.alpha")
    dims = dims or [float(rank)] * count
    alphas = alphas or [alpha or 0.0] * len(dims)
    if not count or len(dims) != count or len(alphas) != count or any(d != int(d) or d < 0 for d in dims):
        for name in names:
            r.unsupported(name, f"There must be {count} of them, whole ranks and alphas; see adapter.rules.")
        return []
    out = [
        f"{pattern}: {'off' if not dim else f'rank={int(dim)}' + (f' alpha={value!r}' if value else '')}"
        for i, (dim, value) in enumerate(zip(dims, alphas, strict=True))
        for pattern in blocks.patterns(r.family, i, convolutions=False)
        if dim != rank or (value or None) != alpha
    ]
    return out if _accounted(r, names, out) else []


def _rates(r: Reader) -> list[str]:
    names = [f"network_args.{n}" for n in _RATES]
    threshold = r.number("network_args.block_lr_zero_threshold") or 0.0
    if not any(map(r.has, names)):
        r.idle("network_args.block_lr_zero_threshold", "There are no weights of blocks.")
        return []
    count = _count(r, next(n for n in names if r.has(n)))
    sides = (9, 3, 9) if count == 23 else (12, 1, 12)
    weights = list[float]()
    for name, size in zip(names, sides, strict=True):
        text = ",".join(r.texts(name))
        found = blocks.curve(text, size) if text and text[0].isalpha() else r.numbers(name) if text else [1.0] * size
        if not count or not found or len(found) < size or any(w < 0 for w in found):
            r.unsupported(name, f"There must be {size} weights, or the name of a curve; see adapter.rules.")
            return []
        weights += found[:size]
    first = 1 if count == 23 else 0
    out = [
        f"{pattern}: {'off' if weight <= threshold else f'lr_factor={weight!r}'}"
        for i, weight in enumerate(weights, first)
        for pattern in blocks.patterns(r.family, i, convolutions=r.value("adapter.conv_rank") is not None)
        if weight != 1
    ]
    return out if _accounted(r, [*names, "network_args.block_lr_zero_threshold"], out) else []


def _flux(r: Reader) -> list[str]:
    out = list[str]()
    which = r.text("network_args.train_blocks")
    if which in ("single", "double"):
        other, _ = blocks.FLUX_BLOCKS["double" if which == "single" else "single"]
        out.append(f"{other}.*: off")
        _accounted(r, ["network_args.train_blocks"], out)
    elif which is not None:
        r.idle("network_args.train_blocks", "All blocks are trained.")
    for part, (prefix, count) in blocks.FLUX_BLOCKS.items():
        name = f"network_args.train_{part}_block_indices"
        text = r.text(name)
        if text is None:
            continue
        kept = blocks.indices(text, count)
        if kept is None:
            r.refuse(name, "is no list of blocks.")
        elif len(kept) == count:
            r.idle(name, "All blocks are trained.")
        else:
            off = [f"{prefix}.*: off"] if not kept else [f"{prefix}.{i}.*: off" for i in range(count) if i not in kept]
            out += off
            _accounted(r, [name], off)
    return out


def _accounted(r: Reader, names: list[str], found: list[str]) -> bool:
    fault = r.fault("adapter.rules", found) if found else ""
    for name in names:
        if not r.has(name):
            continue
        if fault:
            r.refuse(name, fault)
        elif found:
            r.account(name, "converted", "adapter.rules", why="A rule for each block that differs.")
        else:
            r.idle(name, "It is the same for all blocks.")
    return not fault


def write(w: Writer, *, is_lycoris: bool) -> dict[str, Any]:
    """network_args that say what adapter.rules do."""
    adapter: Any = w.config.adapter
    if not adapter.rules:
        return {}
    found = None if is_lycoris or adapter.kind != "lora" else _arrays(w)
    if found is None:
        said = "sd-scripts' adapters have ranks and rates for whole blocks of Stable Diffusion 1, 2 and XL alone, and off for "
        w.lose("adapter.rules", said + "those of Flux.1.")
        return {}
    return found


def _arrays(w: Writer) -> dict[str, Any] | None:
    adapter: Any = w.config.adapter
    parsed = rules.parse(adapter.rules, ranks=True)
    if w.family == "flux":
        return _indices(parsed)
    alpha = adapter.file_alpha(spatial=False)
    effects = blocks.per_block(w.family, parsed, adapter.rank, alpha, convolutions=adapter.conv_rank is not None)
    if effects is None or (adapter.conv_rank is not None and any(e.off or e.rank != adapter.rank for e in effects)):
        return None
    out = dict[str, Any]()
    if any(e.off or (e.rank, e.alpha) != (adapter.rank, alpha) for e in effects):
        out["block_dims"] = ",".join("0" if e.off else str(e.rank) for e in effects)
        out["block_alphas"] = ",".join(str(e.alpha) for e in effects)
    if any(e.lr_factor != 1 for e in effects):
        factors = [str(e.lr_factor) for e in effects]
        parts = (
            (factors[1:10], factors[10:13], factors[13:22])
            if w.family == "sdxl"
            else (factors[:12], factors[12:13], factors[13:])
        )
        out |= {name: ",".join(part) for name, part in zip(_RATES, parts, strict=True)}
    return out


def _indices(parsed: list[rules.Rule]) -> dict[str, Any] | None:
    off = {part: set[int]() for part in blocks.FLUX_BLOCKS}
    for rule in parsed:
        pattern = rule.text.rpartition(":")[0].strip()
        places = {
            f"{prefix}.{i}.*": (part, {i}) for part, (prefix, count) in blocks.FLUX_BLOCKS.items() for i in range(count)
        } | {f"{prefix}.*": (part, set(range(count))) for part, (prefix, count) in blocks.FLUX_BLOCKS.items()}
        if pattern not in places or not rule.off:
            return None
        part, numbers = places[pattern]
        off[part] |= numbers
    return {
        f"train_{part}_block_indices": ",".join(str(i) for i in range(count) if i not in off[part]) or "none"
        for part, (_, count) in blocks.FLUX_BLOCKS.items()
        if off[part]
    }
