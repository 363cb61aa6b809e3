"""What a LoRA file says of its training becomes a configuration again."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from limner.config import Config, files
from limner.config.kohya import of_lora, own_flow
from limner.formats.metadata import adapter_metadata, model_spec

# as sd-scripts 0.10.1 writes them: kohya.md 2.10
KOHYA = {
    "ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False", "ss_learning_rate": "0.0001", "ss_unet_lr": "0.0002",
    "ss_text_encoder_lr": "[5e-05]", "ss_network_module": "networks.lora", "ss_network_dim": "32", "ss_network_alpha": "16.0",
    "ss_network_args": '{"conv_dim": "8", "conv_alpha": "4"}', "ss_network_dropout": "None", "ss_mixed_precision": "bf16",
    "ss_seed": "1234", "ss_max_train_steps": "1500", "ss_lr_scheduler": "cosine", "ss_lr_warmup_steps": "100",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.95))", "ss_max_grad_norm": "1.0",
    "ss_noise_offset": "0.0357", "ss_min_snr_gamma": "5.0", "ss_clip_skip": "None", "ss_batch_size_per_device": "4",
    "ss_resolution": "(1024, 1024)", "ss_enable_bucket": "True", "ss_bucket_no_upscale": "True", "ss_keep_tokens": "1",
    "ss_shuffle_caption": "True", "ss_dataset_dirs": '{"10_sks cat": {"n_repeats": 10, "img_count": 12}}',
    "ss_reg_dataset_dirs": "{}", "ss_bucket_info": '{"buckets": {}, "mean_img_ar_error": 0}', "ss_tag_frequency": "{}",
    "ss_sd_model_name": "base.safetensors", "ss_output_name": "cat", "ss_epoch": "3", "ss_session_id": "77",
    "sshs_model_hash": "ab", "modelspec.title": "My cat", "modelspec.author": "Me", "modelspec.trigger_phrase": "sks cat",
    "foreign": "x", "ss_something_new": "1",
}  # fmt: skip


def test_every_key_is_accounted_for_and_the_configuration_is_as_it_was() -> None:
    found = of_lora(KOHYA)
    config = files.build(found.values, {})
    assert set(KOHYA) <= set(found.report.lines)
    adapter: Any = config.adapter
    assert (adapter.kind, adapter.rank, adapter.alpha, adapter.conv_rank, adapter.conv_alpha) == ("lora", 32, 16.0, 8, 4.0)
    assert (adapter.text_encoder, adapter.denoiser) == (True, True)
    optimizer = config.optimizer
    assert (optimizer.kind, optimizer.lr, optimizer.text_encoder_lr) == ("adamw_8bit", 2e-4, 5e-5)
    assert (optimizer.weight_decay, optimizer.beta2, optimizer.schedule, optimizer.warmup_steps) == (0.1, 0.95, "cosine", 100)
    assert (config.objective.noise_offset, config.objective.weighting) == (0.0357, "min_snr")
    assert (config.data.resolution, config.data.buckets, config.data.upscale, config.data.trigger) == (
        1024,
        True,
        False,
        "sks cat",
    )
    assert (config.train.batch_size, config.train.steps, config.train.seed) == (4, 1500, 1234)
    assert (config.model.family, config.output.title) == ("sdxl", "My cat")
    outcomes = {key: found.report.lines[key].outcome for key in KOHYA}
    assert (outcomes["foreign"], outcomes["ss_something_new"], outcomes["ss_bucket_info"]) == ("unknown", "unknown", "idle")
    assert "10_sks cat" in found.report.lines["ss_dataset_dirs"].why


def _own_metadata(raw: dict[str, Any], **more: Any) -> dict[str, str]:
    """As a run of Limner writes it."""
    config = files.build(raw, {})
    numbers = "session_id started_at num_shown_per_epoch num_batches_per_epoch num_epochs step epoch model_hash"
    facts: dict[str, Any] = dict.fromkeys(numbers.split(), 1)
    facts |= {"saved_at": 1.0, "lr": 3e-5, "text_encoder_lr": None, "total_steps": 300, "family": "sdxl", "precision": "bf16"}
    facts |= {"clip_skip": 1, "text_chunks": 1, "resolution": 768, "bucket_info": {}, "dataset_dirs": {}, "tag_frequency": {}}
    facts |= {"model_name": "m.safetensors", "has_zero_snr": False, "takes_guidance": False, "prediction": "epsilon", **more}
    return adapter_metadata(config, facts) | model_spec(config, facts)


def test_an_own_file_gives_its_configuration_back() -> None:
    raw: dict[str, Any] = {
        "adapter": {"kind": "lokr", "rank": 8, "alpha": 4.0, "factor": 16},
        "train": {"steps": 300, "seed": 9, "batch_size": 2},
        "optimizer": {"kind": "lion", "lr": 3e-5, "weight_decay": 0.2, "schedule": "cosine_restarts", "warmup_steps": 10},
        "objective": {"pyramid_levels": 5, "input_perturbation": 0.1, "loss": "huber"},
        "data": {"trigger": "sks", "flip": True, "resolution": 768},
        "output": {"author": "Me"},
    }
    metadata = _own_metadata(raw)
    found = of_lora(metadata)
    again = files.build(found.values, {})
    for section, values in raw.items():
        for name, value in values.items():
            assert getattr(getattr(again, section), name) == value, f"{section}.{name}"
    assert set(metadata) <= set(found.report.lines)


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize(
    ("objective", "shift"),
    [
        ({"timesteps": "logit_normal", "logit_std": 0.8}, 3.0),
        ({"timesteps": "logit_normal", "logit_mean": 0.5}, 3.0),
        ({"timesteps": "logit_normal"}, "resolution"),
        ({"timesteps": "mode", "mode_scale": 0.7}, 2.0),
        ({"timesteps": "uniform"}, 1.0),
        ({"timesteps": "uniform", "weighting": "sigma_sqrt"}, 2.0),
    ],
)
def test_own_files_say_how_a_flow_was_trained(family: str, objective: dict[str, Any], shift: float | str) -> None:
    metadata = _own_metadata({"objective": {**objective, "shift": shift}}, family=family, prediction="flow", flow_shift=shift)
    found = of_lora(metadata)
    again = files.build(found.values, {}).objective
    assert {name: getattr(again, name) for name in objective} == objective
    assert again.shift == shift
    assert set(metadata) <= set(found.report.lines)


def test_sd_scripts_own_flux_files_count_the_other_way() -> None:
    metadata = {
        "ss_base_model_version": "flux1", "ss_timestep_sampling": "sigma", "ss_weighting_scheme": "logit_normal",
        "ss_logit_mean": "0.5", "ss_logit_std": "1.0", "ss_discrete_flow_shift": "2.0", "ss_sd_scripts_commit_hash": "abc",
    }  # fmt: skip
    found = files.build(of_lora(metadata).values, {}).objective
    assert (found.timesteps, found.logit_mean, found.shift) == ("logit_normal", -0.5, 2.0)


def test_hostile_metadata_never_crashes() -> None:
    rng = random.Random(2)
    texts = [
        "", "None", "nan", "1e999", "[" * 3000, "{" * 3000, '{"a": NaN}', json.dumps({"x" * 500: [1]}), "9" * 5000,
        "\x00", "\ud800",
        "(((", "a(b=(c", "__import__('os').system('x')", "True", "(1,", "é" * 2000, '{"algo": {"a": 1}}', "-1", "0",
    ]  # fmt: skip
    for _ in range(120):
        metadata = {key: rng.choice([*texts, KOHYA[key]]) for key in KOHYA}
        metadata |= {key: rng.choice(texts) for key in own_flow.KEYS} | {"\x1b": "x", "": ""}
        found = of_lora(metadata)
        assert isinstance(files.build(found.values, {}), Config)
        assert set(metadata) <= set(found.report.lines)
    files.build(of_lora({"ss_optimizer": 5, "ss_network_args": None}).values, {})  # type: ignore[dict-item]


def test_a_megabyte_of_an_optimizers_words_is_looked_at_in_time() -> None:
    began = time.process_time()  # no regular expression takes long over it
    of_lora({"ss_optimizer": "a(" + "b=(" * 300_000})
    of_lora({"ss_optimizer": "a(" + "b='" * 300_000})
    assert time.process_time() - began < 5
