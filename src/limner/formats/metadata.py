"""What an adapter's file says about itself: kohya's `ss_*` and Stability's `modelspec.*` keys, all values text, all true.

Hashes: `sshs_model_hash` is the SHA-256 of everything behind the header; `sshs_legacy_hash` the first 8 digits of the
SHA-256 of 64 KiB at 1 MiB (kohya.md §2.10).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from limner.config import Config, Dylora, Lokr, Lora, Oft
from limner.config.model import merges
from limner.config.optimizers import kohya_name
from limner.formats.known import FAMILIES
from limner.formats.objective_keys import objective_keys

ARCHITECTURES = {
    ("sd1", "epsilon"): "stable-diffusion-v1",
    ("sd1", "v_prediction"): "stable-diffusion-v1",
    ("sd2", "epsilon"): "stable-diffusion-v2-512",
    ("sd2", "v_prediction"): "stable-diffusion-v2-768-v",
    ("sdxl", "epsilon"): "stable-diffusion-xl-v1-base",
    ("sdxl", "v_prediction"): "stable-diffusion-xl-v1-base",
    ("sd3", "flow"): "stable-diffusion-3",
    ("flux", "flow"): "flux-1-dev",
}
BASE_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "sd3": "sd3", "flux": "flux1"}
TRIGGER = "modelspec.trigger_phrase"
MODULES = {"sd3": "networks.lora_sd3", "flux": "networks.lora_flux"}
_IMPLEMENTATIONS = {"flux": "https://github.com/black-forest-labs/flux"}
_KOHYA_PREDICTION = {"epsilon": "epsilon", "v_prediction": "v", "flow": None}
_MOST_TAGS = 400_000
"""Different tags of one folder that are counted at a time."""


def _text(value: Any) -> str:
    """As sd-scripts writes it: None as "None", booleans as "True"/"False", containers as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def network(config: Config, family: str) -> dict[str, Any]:
    """What sd-scripts or LyCORIS would have been asked for."""
    adapter, args = config.adapter, dict[str, Any]()
    module = MODULES.get(family, "networks.lora")
    if isinstance(adapter, Lora) and not adapter.dora:
        module = "networks.lora_fa" if adapter.freeze_down and family not in MODULES else module
    elif isinstance(adapter, Dylora):
        module, args["unit"] = "networks.dylora", adapter.unit
    else:
        module, args = "lycoris.kohya", _lycoris(adapter)
    if getattr(adapter, "conv_rank", None) is not None:
        args |= {"conv_dim": adapter.conv_rank, "conv_alpha": adapter.file_alpha(spatial=True)}  # type: ignore[union-attr]
    for ours, theirs in (("rank_dropout", "rank_dropout"), ("module_dropout", "module_dropout")):
        if value := getattr(adapter, ours, 0.0):
            args[theirs] = value
    if getattr(adapter, "up_lr_ratio", 1.0) != 1:
        args["loraplus_lr_ratio"] = adapter.up_lr_ratio  # type: ignore[union-attr]
    has_rank = hasattr(adapter, "rank")
    limit = getattr(adapter, "max_norm", "off")
    return {
        "ss_network_module": module,
        "ss_network_dim": adapter.rank if has_rank else getattr(adapter, "block", None),  # type: ignore[union-attr]
        "ss_network_alpha": adapter.file_alpha(spatial=False) if has_rank else None,  # type: ignore[union-attr]
        "ss_network_dropout": getattr(adapter, "dropout", None) or None,
        "ss_network_args": args,
        "ss_scale_weight_norms": None if limit == "off" else limit,
    }


def _lycoris(adapter: Any) -> dict[str, Any]:
    """network_args of lycoris.kohya. A plain LoRA with DoRA is its default, "lora"."""
    if isinstance(adapter, Lora):
        return {"dora_wd": True}
    if isinstance(adapter, Oft):
        out = {"algo": "boft" if adapter.butterfly else "diag-oft"}
        return out | ({"constraint": adapter.constraint} if adapter.constraint else {})
    out = dict[str, Any](algo=adapter.kind)
    if isinstance(adapter, Lokr):
        out |= {"factor": adapter.factor} | ({"decompose_both": True} if adapter.decompose_both else {})
    return out


def adapter_metadata(config: Config, facts: Mapping[str, Any]) -> dict[str, str]:
    """kohya's keys for an adapter. `facts` are what the run found out: see `engine.prepare.metadata_facts`."""
    adapter = config.adapter
    values: dict[str, Any] = {
        "ss_session_id": facts["session_id"],
        "ss_training_started_at": facts["started_at"],
        "ss_training_finished_at": facts["saved_at"],
        "ss_output_name": config.output.name,
        "ss_learning_rate": facts["lr"],
        "ss_unet_lr": facts["lr"] if adapter.denoiser else None,
        "ss_text_encoder_lr": facts["text_encoder_lr"] if adapter.text_encoder else None,
        "ss_num_train_images": facts["num_shown_per_epoch"],
        "ss_num_reg_images": facts.get("num_class_pictures", 0),
        "ss_num_batches_per_epoch": facts["num_batches_per_epoch"],
        "ss_num_epochs": facts["num_epochs"],
        "ss_batch_size_per_device": config.train.batch_size,
        "ss_total_batch_size": config.train.batch_size * config.launch.num_processes,
        "ss_gradient_checkpointing": config.memory.checkpointing,
        "ss_gradient_accumulation_steps": config.train.accumulation,
        "ss_max_train_steps": facts["total_steps"],
        "ss_steps": facts["step"],
        "ss_epoch": facts["epoch"],
        "ss_lr_warmup_steps": config.optimizer.num_warmup_steps(facts["total_steps"]),
        "ss_lr_scheduler": config.optimizer.kohya_schedule(),
        "ss_optimizer": kohya_name(config.optimizer),
        "ss_max_grad_norm": 0.0 if config.train.clip_norm == "off" else config.train.clip_norm,
        **network(config, facts["family"]),
        "ss_mixed_precision": {"fp32": "no"}.get(facts["precision"], facts["precision"]),
        "ss_v2": facts["family"] == "sd2",
        "ss_base_model_version": BASE_VERSIONS[facts["family"]],
        "ss_clip_skip": facts["clip_skip"] if FAMILIES[facts["family"]].skips_layers else None,
        "ss_max_token_length": 75 * facts["text_chunks"] if facts["text_chunks"] > 1 else None,
        "ss_seed": config.train.seed,
        "ss_cache_latents": config.memory.cache_latents,
        "ss_resolution": f"({facts['resolution']}, {facts['resolution']})",
        "ss_flip_aug": config.data.flip,
        "ss_enable_bucket": config.data.buckets,
        "ss_bucket_no_upscale": not config.data.upscale,
        "ss_bucket_info": facts["bucket_info"],
        "ss_prior_loss_weight": config.objective.prior_weight,
        "ss_dataset_dirs": facts["dataset_dirs"],
        "ss_reg_dataset_dirs": facts.get("class_dirs", {}),
        "ss_tag_frequency": facts["tag_frequency"],
        "ss_sd_model_name": facts["model_name"],
        "ss_new_sd_model_hash": facts["model_hash"],
    }
    values |= objective_keys(config.objective, facts)
    return {k: _text(v) for k, v in values.items() if not (v is None and k in ("ss_unet_lr", "ss_text_encoder_lr"))}


def model_spec(config: Config, facts: Mapping[str, Any], suffix: str = "/lora") -> dict[str, str]:
    """Stability's model metadata, version 1.0.1; only keys whose value is known."""
    out, resolution = config.output, facts["resolution"]
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": ARCHITECTURES[facts["family"], facts["prediction"]] + suffix,
        "implementation": _IMPLEMENTATIONS.get(facts["family"], "https://github.com/Stability-AI/generative-models"),
        "title": out.title or out.name,
        "resolution": f"{resolution}x{resolution}",
        "author": out.author,
        "description": out.description,
        "license": out.license,
        "tags": ", ".join(out.tags) or None,
        "trigger_phrase": config.data.trigger or config.embedding.token,
        "date": datetime.datetime.fromtimestamp(float(facts["saved_at"]), datetime.UTC).isoformat(timespec="seconds"),
        "prediction_type": _KOHYA_PREDICTION[facts["prediction"]],
        "timestep_range": f"{config.objective.least_timestep},{config.objective.most_timestep}",
        "merged_from": ", ".join(p.name for p, _ in merges(config.model)) or None,
    }
    return {f"modelspec.{k}": str(v) for k, v in values.items() if v is not None}


def tag_frequency(captions: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """{folder: {tag: times}} from (folder, caption) pairs, tags parted by commas as kohya counts them.

    Of the first 100 folders, and the commonest 2,000 of each: a header may not grow past 100 MB, and readers choke far earlier.
    """
    out: dict[str, Counter[str]] = {}
    for folder, caption in captions:
        if folder not in out:
            if len(out) == 100:
                continue
            out[folder] = Counter()
        counts = out[folder]
        counts.update(filter(None, map(str.strip, caption.split(","))))
        if len(counts) > _MOST_TAGS:  # sentences, of which hardly any comes twice
            out[folder] = Counter(dict(counts.most_common(_MOST_TAGS // 2)))
    return {f: dict(c.most_common(2000)) for f, c in out.items()}


def add_hashes(path: Path) -> dict[str, str]:
    """The two hashes of a safetensors file's content, under their kohya names."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + length)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0x100000)
        legacy = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    return {"sshs_model_hash": digest, "sshs_legacy_hash": legacy}
