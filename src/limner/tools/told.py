"""What a file's metadata tell of its training, in words: kohya's `ss_*` keys and Stability's `modelspec.*`. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from limner import parsing
from limner.errors import printable

_MOST_TAGS = 20
_KEYS = (
    ("title", "modelspec.title"), ("author", "modelspec.author"), ("license", "modelspec.license"),
    ("made", "modelspec.date"), ("trigger words", "modelspec.trigger_phrase"), ("how to use it", "modelspec.usage_hint"),
    ("merged from", "modelspec.merged_from"), ("base model", "ss_sd_model_name"), ("its kind", "ss_base_model_version"),
    ("pictures", "ss_num_train_images"), ("class pictures", "ss_num_reg_images"), ("resolution", "ss_resolution"),
    ("batch size", "ss_total_batch_size"), ("steps", "ss_steps"), ("of", "ss_max_train_steps"), ("epochs", "ss_num_epochs"),
    ("learning rate", "ss_learning_rate"), ("of the denoiser", "ss_unet_lr"),
    ("of the text encoder", "ss_text_encoder_lr"),
    ("schedule", "ss_lr_scheduler"), ("warm-up steps", "ss_lr_warmup_steps"), ("optimiser", "ss_optimizer"),
    ("network", "ss_network_module"), ("rank", "ss_network_dim"), ("alpha", "ss_network_alpha"),
    ("arguments", "ss_network_args"),
    ("dropout", "ss_network_dropout"), ("precision", "ss_mixed_precision"), ("clip skip", "ss_clip_skip"),
    ("noise offset", "ss_noise_offset"), ("min-SNR gamma", "ss_min_snr_gamma"), ("loss", "ss_loss_type"), ("seed", "ss_seed"),
    ("comment", "ss_training_comment"),
)  # fmt: skip


def trained_with(metadata: Mapping[str, str]) -> dict[str, str]:
    """What is known, each thing in words. "None", which sd-scripts writes for what was not used, is left out."""
    out = {
        words: printable(metadata[key], 200)
        for words, key in _KEYS
        if key in metadata and metadata[key] not in ("None", "", "{}", "False")
    }
    if tags := _tags(metadata.get("ss_tag_frequency", "")):
        out["commonest tags"] = ", ".join(f"{printable(tag, 60)} ({count})" for tag, count in tags)
    return out


def _tags(text: str) -> list[tuple[str, int]]:
    """The commonest of {folder: {tag: times}}."""
    try:
        folders = parsing.json_value(text)
    except ValueError:
        return []
    counts = Counter[str]()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, times in tags.items() if isinstance(tags, dict) else ():
            if type(times) is int and 0 < times < 1 << 53:
                counts[tag] += times
    return counts.most_common(_MOST_TAGS)
