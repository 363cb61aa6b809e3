"""What a LoRA file says about itself, word for word; and its hashes against an independent computation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from limner.config import files
from limner.formats.metadata import adapter_metadata, add_hashes, model_spec, tag_frequency

FACTS = {
    "session_id": 7,
    "started_at": 1700000000.25,
    "saved_at": 1700000100.5,
    "lr": 1e-4,
    "text_encoder_lr": 5e-5,
    "num_shown_per_epoch": 20,
    "num_batches_per_epoch": 10,
    "num_epochs": 3,
    "total_steps": 30,
    "step": 20,
    "epoch": 2,
    "file_alpha": 8.0,
    "precision": "fp32",
    "family": "sd1",
    "has_zero_snr": False,
    "flow_shift": None,
    "takes_guidance": False,
    "clip_skip": 2,
    "text_chunks": 3,
    "resolution": 512,
    "bucket_info": {"buckets": {"0": {"resolution": [512, 512], "count": 20}}},
    "dataset_dirs": {"cat": {"n_repeats": 1, "img_count": 20}},
    "tag_frequency": {"cat": {"ü": 3}},
    "model_name": "m.safetensors",
    "model_hash": "ab" * 32,
    "prediction": "v_prediction",
}
LORA = {"adapter": {"rank": 8, "conv_rank": 4, "dora": True}, "train": {"batch_size": 2, "seed": 5, "clip_norm": "off"}}


def test_kohyas_keys() -> None:
    found = adapter_metadata(files.build(LORA, {}), FACTS)
    assert all(k.startswith("ss_") and isinstance(v, str) for k, v in found.items())
    expected = {
        "ss_network_dim": "8",
        "ss_network_alpha": "8.0",
        "ss_learning_rate": "0.0001",
        "ss_unet_lr": "0.0001",
        "ss_steps": "20",
        "ss_max_train_steps": "30",
        "ss_epoch": "2",
        "ss_num_train_images": "20",
        "ss_batch_size_per_device": "2",
        "ss_seed": "5",
        "ss_max_grad_norm": "0.0",
        "ss_mixed_precision": "no",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_clip_skip": "2",
        "ss_max_token_length": "225",
        "ss_loss_type": "l2",
        "ss_min_snr_gamma": "None",
        "ss_resolution": "(512, 512)",
        "ss_flip_aug": "False",
        "ss_enable_bucket": "True",
        "ss_bucket_no_upscale": "False",
        "ss_training_started_at": "1700000000.25",
        "ss_session_id": "7",
        "ss_network_module": "lycoris.kohya",
    }
    assert {k: found[k] for k in expected} == expected
    assert "ss_text_encoder_lr" not in found
    assert json.loads(found["ss_network_args"]) == {"conv_dim": 4, "conv_alpha": 4, "dora_wd": True}
    assert json.loads(found["ss_tag_frequency"]) == {"cat": {"ü": 3}}
    assert json.loads(found["ss_bucket_info"]) == FACTS["bucket_info"]


def test_kohyas_keys_with_the_text_encoder_alone() -> None:
    raw = {"adapter": {"denoiser": False, "text_encoder": True}, "objective": {"weighting": "min_snr"}}
    found = adapter_metadata(files.build(raw, {}), {**FACTS, "precision": "bf16", "family": "sdxl", "text_chunks": 1})
    assert (found["ss_clip_skip"], found["ss_max_token_length"]) == ("None", "None")
    assert found["ss_text_encoder_lr"] == "5e-05" and "ss_unet_lr" not in found
    assert (found["ss_min_snr_gamma"], found["ss_mixed_precision"], found["ss_max_grad_norm"]) == ("5.0", "bf16", "1.0")
    assert adapter_metadata(files.build({"data": {"flip": True}}, {}), FACTS)["ss_flip_aug"] == "True"
    assert found["ss_network_module"] == "networks.lora" and found["ss_network_args"] == "{}"


# An option, and the keys that say it; of all others a plain run says nothing.
PLAIN = {
    "ss_noise_offset": "None", "ss_noise_offset_random_strength": "False", "ss_adaptive_noise_scale": "None",
    "ss_multires_noise_iterations": "None", "ss_ip_noise_gamma": "None", "ss_ip_noise_gamma_random_strength": "False",
    "ss_zero_terminal_snr": "False", "ss_min_snr_gamma": "None", "ss_debiased_estimation": "False", "ss_loss_type": "l2",
    "ss_huber_schedule": "None", "ss_huber_c": "None", "ss_huber_scale": "None",
}  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({}, {}),
        ({"noise_offset": 0.05}, {"ss_noise_offset": "0.05"}),
        ({"noise_offset_random": True}, {}),
        (
            {"noise_offset": 0.05, "noise_offset_random": True, "noise_offset_adaptive": -0.1},
            {"ss_noise_offset": "0.05", "ss_noise_offset_random_strength": "True", "ss_adaptive_noise_scale": "-0.1"},
        ),
        (
            {"pyramid_levels": 6, "pyramid_discount": 0.4},
            {"ss_multires_noise_iterations": "7", "ss_multires_noise_discount": "0.4"},
        ),
        (
            {"input_perturbation": 0.1, "input_perturbation_random": True},
            {"ss_ip_noise_gamma": "0.1", "ss_ip_noise_gamma_random_strength": "True"},
        ),
        ({"weighting": "min_snr", "snr_gamma": 3.0}, {"ss_min_snr_gamma": "3.0"}),
        ({"weighting": "soft_min_snr"}, {}),
        ({"weighting": "debiased"}, {"ss_debiased_estimation": "True"}),
        ({"loss": "l1"}, {"ss_loss_type": "l1"}),
        (
            {"loss": "huber", "huber_schedule": "snr", "huber_threshold": 0.2},
            {"ss_loss_type": "huber", "ss_huber_schedule": "snr", "ss_huber_c": "0.2", "ss_huber_scale": "1.0"},
        ),
    ],
)
def test_the_objective_in_kohyas_keys(objective: dict, expected: dict) -> None:
    found = adapter_metadata(files.build({"objective": objective}, {}), FACTS)
    assert {k: found[k] for k in PLAIN | expected} == PLAIN | expected
    assert "ss_timestep_sampling" not in found and "ss_guidance_scale" not in found


def test_a_model_trained_down_to_pure_noise_says_so() -> None:
    """Whether it was asked for or is the base model's way."""
    assert adapter_metadata(files.build({}, {}), FACTS | {"has_zero_snr": True})["ss_zero_terminal_snr"] == "True"


@pytest.mark.parametrize(
    ("objective", "shift", "expected"),
    [
        ({}, "resolution", ("flux_shift", "none", "None", "1.0")),
        ({}, 3.0, ("shift", "none", "3.0", "1.0")),
        ({"timesteps": "logit_normal", "logit_std": 0.8}, 1.0, ("sigmoid", "none", "1.0", "0.8")),
        ({"timesteps": "logit_normal", "logit_mean": 0.5}, 1.0, ("sigma", "logit_normal", "1.0", "1.0")),
        ({"timesteps": "uniform"}, 1.0, ("uniform", "none", "1.0", "None")),
        ({"timesteps": "uniform"}, 2.5, ("sigma", "uniform", "2.5", "None")),
        ({"timesteps": "mode"}, 1.0, ("sigma", "mode", "1.0", "None")),
        ({"weighting": "sigma_sqrt"}, 3.0, ("shift", "sigma_sqrt", "3.0", "1.0")),
    ],
)
def test_how_a_flows_timesteps_are_drawn_in_kohyas_keys(objective: dict, shift: Any, expected: tuple) -> None:
    facts = {**FACTS, "family": "flux", "prediction": "flow", "flow_shift": shift, "takes_guidance": True}
    found = adapter_metadata(files.build({"objective": objective}, {}), facts)
    names = ("ss_timestep_sampling", "ss_weighting_scheme", "ss_discrete_flow_shift", "ss_sigmoid_scale")
    assert tuple(found[n] for n in names) == expected
    assert (found["ss_model_prediction_type"], found["ss_guidance_scale"]) == ("raw", "1.0")
    assert found["ss_mode_scale"] == ("1.29" if objective.get("timesteps") == "mode" else "None")


def test_the_range_of_timesteps_in_stabilitys_keys() -> None:
    config = files.build({"objective": {"least_timestep": 200, "most_timestep": 700}}, {})
    assert model_spec(config, FACTS)["modelspec.timestep_range"] == "200,700"


@pytest.mark.parametrize(
    ("optimizer", "name", "schedule"),
    [
        ({}, "torch.optim.AdamW", "cosine"),
        ({"weight_decay": 0.1, "beta2": 0.99}, "torch.optim.AdamW(weight_decay=0.1,betas=(0.9, 0.99))", "cosine"),
        ({"schedule_floor": 0.1}, "torch.optim.AdamW", "cosine_with_min_lr"),
        ({"schedule": "constant", "warmup_steps": 3}, "torch.optim.AdamW", "constant_with_warmup"),
        ({"kind": "lion", "schedule": "constant"}, "pytorch_optimizer.Lion", "constant"),
        ({"kind": "sgd", "momentum": 0.5, "schedule": "piecewise"}, "torch.optim.SGD(momentum=0.5)", "piecewise_constant"),
        (
            {"kind": "prodigy", "arguments": ["d_coef = 2.0"], "schedule": "cosine_restarts"},
            "pytorch_optimizer.Prodigy(d_coef=2.0)",
            "cosine_with_restarts",
        ),
        ({"kind": "other", "class_path": "torch.optim.RAdam", "eps": 1e-3}, "torch.optim.RAdam", "cosine"),
    ],
)
def test_optimisers_and_schedules_by_kohyas_names(optimizer: dict, name: str, schedule: str) -> None:
    found = adapter_metadata(files.build({"optimizer": optimizer}, {}), FACTS)
    assert (found["ss_optimizer"], found["ss_lr_scheduler"]) == (name, schedule)
    assert adapter_metadata(files.build({"optimizer": {"warmup_share": 0.5}}, {}), FACTS)["ss_lr_warmup_steps"] == "15"


def test_stabilitys_keys() -> None:
    output = {"name": "n", "author": "ü", "tags": ["a", "b"]}
    found = model_spec(files.build({"output": output, "data": {"trigger": "zwx"}}, {}), FACTS)
    assert found == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "n",
        "modelspec.resolution": "512x512",
        "modelspec.author": "ü",
        "modelspec.tags": "a, b",
        "modelspec.trigger_phrase": "zwx",
        "modelspec.date": "2023-11-14T22:15:00+00:00",
        "modelspec.prediction_type": "v",
        "modelspec.timestep_range": "0,1000",
    }


@pytest.mark.parametrize("count", [10, 300_000])
def test_the_hashes_are_those_of_the_bytes_behind_the_header(count: int, tmp_path: Path) -> None:
    save_file(
        {"a": torch.arange(count, dtype=torch.float32), "b": torch.ones(3)}, path := tmp_path / "x.safetensors", {"ss_x": "1"}
    )
    content = path.read_bytes()
    behind = content[8 + int.from_bytes(content[:8], "little") :]
    with safe_open(path, "pt") as file:
        assert behind == b"".join(file.get_tensor(k).numpy().tobytes() for k in ("a", "b"))
    assert add_hashes(path) == {
        "sshs_model_hash": hashlib.sha256(behind).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }


def test_the_hashes_do_not_depend_on_the_metadata(tmp_path: Path) -> None:
    found = []
    for i, metadata in enumerate(({"a": "1"}, {"a": "2" * 999})):
        save_file({"a": torch.ones(5)}, path := tmp_path / f"{i}.safetensors", metadata)
        found.append(add_hashes(path)["sshs_model_hash"])
    assert found[0] == found[1]


def test_tags_are_counted_as_kohya_does() -> None:
    captions = [("10_cat", "a cat, red , red"), ("10_cat", " red"), ("x", ""), ("x", ",, ,")]
    assert tag_frequency(captions) == {"10_cat": {"red": 3, "a cat": 1}, "x": {}}
    many = tag_frequency([(f"f{i}", ",".join(f"t{j}" for j in range(3000))) for i in range(120)])
    assert len(many) == 100 and all(len(v) == 2000 for v in many.values())


@pytest.mark.parametrize(
    ("adapter", "module", "dim", "args"),
    [
        ({"rank": 4, "freeze_down": True}, "networks.lora_fa", "4", {}),
        ({"rank": 4, "up_lr_ratio": 16.0}, "networks.lora", "4", {"loraplus_lr_ratio": 16.0}),
        ({"rank": 4, "rank_dropout": 0.1}, "networks.lora", "4", {"rank_dropout": 0.1}),
        ({"kind": "dylora", "rank": 8}, "networks.dylora", "8", {"unit": 4}),
        ({"kind": "loha", "conv_rank": 2}, "lycoris.kohya", "16", {"algo": "loha", "conv_dim": 2, "conv_alpha": 2.0}),
        ({"kind": "lokr", "factor": 8}, "lycoris.kohya", "16", {"algo": "lokr", "factor": 8}),
        ({"kind": "oft", "block": 8, "constraint": 0.1}, "lycoris.kohya", "8", {"algo": "diag-oft", "constraint": 0.1}),
        ({"kind": "oft", "butterfly": True}, "lycoris.kohya", "4", {"algo": "boft"}),
        ({"kind": "ia3", "module_dropout": 0.2}, "lycoris.kohya", "None", {"algo": "ia3", "module_dropout": 0.2}),
        ({"kind": "glora"}, "lycoris.kohya", "16", {"algo": "glora"}),
        ({"kind": "full"}, "lycoris.kohya", "None", {"algo": "full"}),
    ],
)  # fmt: skip
def test_what_sd_scripts_would_have_been_asked_for(adapter: dict, module: str, dim: str, args: dict) -> None:
    found = adapter_metadata(files.build({"adapter": adapter}, {}), FACTS)
    assert (found["ss_network_module"], found["ss_network_dim"]) == (module, dim)
    assert json.loads(found["ss_network_args"]) == args


def test_merged_files_are_named() -> None:
    config = files.build({"model": {"merge": ["/secret/a.safetensors @ 0.5", "b.safetensors"]}}, {})
    assert model_spec(config, FACTS)["modelspec.merged_from"] == "a.safetensors, b.safetensors"


def test_tags_of_very_many_are_counted_within_bounds(monkeypatch) -> None:
    captions = [("a", f"often, {i % 7} of seven, once {i}") for i in range(5000)] + [(f"folder {i}", "x") for i in range(150)]
    whole = tag_frequency(captions)
    monkeypatch.setattr("limner.formats.metadata._MOST_TAGS", 100)
    bounded = tag_frequency(iter(captions))
    for found in (whole, bounded):
        assert list(found) == ["a", *(f"folder {i}" for i in range(99))] and len(found["a"]) <= 2000
        assert list(found["a"].items())[:8] == [
            ("often", 5000),
            *((f"{k} of seven", 5000 // 7 + (k < 5000 % 7)) for k in range(7)),
        ]
    assert len(whole["a"]) == 2000 and len(bounded["a"]) <= 100
