"""What a LoRA file says about itself, word for word; and its hashes against an independent computation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

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
