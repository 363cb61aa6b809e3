"""Training a whole model or an embedding: which parts are trained, and in what precision <-> [adapter] and [embedding]."""

from __future__ import annotations

from typing import Any

from limner.config import rules
from limner.config.defaults import embedding_rate
from limner.config.kohya import blocks
from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer

ARGUMENTS = ("train_text_encoder", "stop_text_encoder_training", "full_bf16", "full_fp16", "block_lr", "train_t5xxl")
OPTIONS = ("adapter.weights", "embedding.lr", "embedding.token", "embedding.vectors", "embedding.initial")
_BLOCKS = 23


def read(r: Reader) -> None:
    """Set what is trained of a whole model, or the embedding's rate."""
    r.put("adapter.kind", r.kind)
    if r.kind == "embedding":
        return
    _read_text(r)
    full = r.flag("full_bf16")
    if full is not None:
        r.take("full_bf16", {"adapter.weights": "bf16" if full else "fp32"})
    if r.flag("full_fp16"):
        r.unsupported("full_fp16", "Weights are trained in fp32 or bf16: fp16 loses small updates. See adapter.weights.")
    else:
        r.idle("full_fp16", "It is off.")
    _read_blocks(r)
    r.idle("train_t5xxl", "It is off.") if not r.flag("train_t5xxl") else r.unsupported("train_t5xxl", "T5 is not trained.")


def _read_text(r: Reader) -> None:
    if r.knows("train_text_encoder"):
        trains = r.flag("train_text_encoder")
        if trains is not None:
            r.take("train_text_encoder", {"adapter.text_encoder": trains})
        return
    stop = r.integer("stop_text_encoder_training")
    if stop is not None and r.knows("stop_text_encoder_training"):
        said = "It is trained to the end." if stop > 0 else ""
        r.take("stop_text_encoder_training", {"adapter.text_encoder": stop >= 0}, said)
    elif r.complete and r.knows("stop_text_encoder_training"):
        r.put("adapter.text_encoder", True)


def _read_blocks(r: Reader) -> None:
    """block_lr: the learning rates of 23 blocks of Stable Diffusion XL."""
    rates, common = r.numbers("block_lr"), r.number("learning_rate")
    if rates is None:
        return
    if len(rates) != _BLOCKS or not common or common <= 0 or any(rate < 0 for rate in rates):
        r.unsupported("block_lr", "There must be 23 rates beside a learning_rate; see adapter.rules.")
        return
    found = [
        f"{pattern}: {'off' if not rate else f'lr_factor={rate / common:.10g}'}"
        for i, rate in enumerate(rates)
        for pattern in blocks.patterns("sdxl", i, convolutions=True, whole=True)
        if rate != common
    ]
    r.take("block_lr", {"adapter.rules": found}, "Factors of the learning rate.")


def write(w: Writer, lr: float) -> None:
    """The arguments of a whole model's training, or of an embedding's; `lr` is the denoiser's learning rate."""
    adapter: Any = w.config.adapter
    if adapter.kind == "embedding":
        _write_embedding(w)
        return
    w.put("full_bf16", adapter.weights == "bf16", "adapter.weights")
    if w.knows("train_text_encoder"):
        w.put("train_text_encoder", adapter.text_encoder, "adapter.text_encoder")
    elif w.knows("stop_text_encoder_training"):
        w.put("stop_text_encoder_training", None if adapter.text_encoder else -1, "adapter.text_encoder")
    elif adapter.text_encoder:
        w.lose("adapter.text_encoder", f"{w.script.name} trains the transformer alone.")
    if not adapter.denoiser:
        w.lose("adapter.denoiser", f"{w.script.name} always trains the denoiser.")
    if adapter.rules:
        _write_rules(w, lr)


def _write_rules(w: Writer, lr: float) -> None:
    parsed = list(rules.parse(w.config.adapter.rules, ranks=False))  # type: ignore[union-attr]
    rates = [lr] * _BLOCKS
    places = {p: i for i in range(_BLOCKS) for p in blocks.patterns("sdxl", i, convolutions=True, whole=True)}
    said = dict[int, dict[str, float]]()
    for rule in parsed:
        pattern = rule.text.rpartition(":")[0].strip()
        if pattern in places:
            factor = 0.0 if rule.off else rule.values["lr_factor"]
            said.setdefault(places[pattern], {})[pattern] = factor
    is_whole = all(
        set(found) == {p for p, at in places.items() if at == i} and len(set(found.values())) == 1 for i, found in said.items()
    )
    if not w.knows("block_lr") or not is_whole or sum(map(len, said.values())) != len(parsed):
        w.lose("adapter.rules", "sd-scripts has learning rates for the 23 blocks of Stable Diffusion XL alone.")
        return
    for i, found in said.items():
        rates[i] = lr * next(iter(found.values()))
    w.put("block_lr", ",".join(f"{rate:.10g}" for rate in rates), "adapter.rules")


def _write_embedding(w: Writer) -> None:
    section = w.config.embedding
    w.put("token_string", section.token, "embedding.token")
    w.put("init_word", section.initial, "embedding.initial")
    w.put("num_vectors_per_token", section.vectors, "embedding.vectors")
    w.put("learning_rate", embedding_rate(section, w.config.optimizer), "embedding.lr")
    if section.token is None:
        w.lose("embedding.token", "is not given, and it is what is to be trained.", "Set it.")
