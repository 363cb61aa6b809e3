"""Every key that kohya_ss's forms have is accounted for, and what they say is what is trained."""

from __future__ import annotations

import json
import math
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from limner.config import files
from limner.config.kohya.gui import read
from limner.config.kohya.report import Imported
from limner.config.kohya.sources import read_text
from limner.errors import UserError

# {key: {the tabs that have it: its default there}}; L LoRA, D Dreambooth, F Finetuning, T Textual Inversion, E LECO, C LLLite
GOLDEN = Path(__file__).parents[1] / "golden"
KEYS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "kohya_gui_keys.json").read_text(encoding="utf-8"))
NUM_KEYS = {"L": 287, "D": 175, "F": 215, "T": 128}


def form(tab: str, **changes: Any) -> dict[str, Any]:
    """A tab's form as it begins."""
    return {k: v for k, by in KEYS.items() for tabs, v in by.items() if tab in tabs} | changes


def imported(raw: dict[str, Any]) -> tuple[Any, Imported]:
    got = read(raw, "form.json")
    assert got is not None
    assert list(got.report.lines) == list(raw)  # each once, in their order
    for key, line in got.report.lines.items():
        assert line.key == key
        assert line.outcome in ("taken", "converted", "idle", "unsupported", "unknown")
        assert line.why or line.outcome == "taken" or line.becomes, line
        assert not (line.becomes and line.outcome in ("idle", "unknown")), line
    return files.build(got.values, {}), got


@cache
def defaults(tab: str) -> tuple[Any, Imported]:
    return imported(form(tab))


@pytest.mark.parametrize("tab", NUM_KEYS)
def test_every_key_with_its_default_stands_in_the_report(tab: str) -> None:
    assert len(form(tab)) == NUM_KEYS[tab]
    _, got = defaults(tab)
    assert not [line for line in got.report.lines.values() if line.outcome == "unknown"]


@pytest.mark.parametrize("tab", NUM_KEYS)
def test_each_key_alone(tab: str) -> None:
    marks = {"L": {"LoRA_type": "Standard"}, "D": {"model_list": ""}, "F": {"full_path": True}, "T": {"init_word": "*"}}[tab]
    for key, value in form(tab).items():
        imported({"max_resolution": "512,512", "optimizer": "AdamW", **marks, key: value})


def test_the_lora_form_as_it_begins() -> None:
    config, _ = defaults("L")
    assert (config.adapter.kind, config.adapter.rank, config.adapter.alpha) == ("lora", 8, 1.0)
    assert config.adapter.text_encoder
    assert config.model.base == "runwayml/stable-diffusion-v1-5"
    assert (config.train.steps, config.train.epochs, config.train.precision) == (1600, None, "fp16")
    assert (config.optimizer.kind, config.optimizer.lr, config.optimizer.text_encoder_lr) == ("adamw_8bit", 1e-4, 1e-4)
    assert (config.optimizer.schedule, config.optimizer.warmup_share) == ("cosine", 0.1)
    assert (config.data.resolution, config.data.upscale, config.data.buckets) == (512, False, True)
    assert (config.output.name, config.output.save_every_epochs, config.output.dtype) == ("last", 1, "fp16")


def test_the_dreambooth_form_as_it_begins() -> None:
    config, _ = defaults("D")
    assert config.adapter.kind == "none"
    assert config.adapter.text_encoder
    assert (config.optimizer.lr, config.optimizer.text_encoder_lr) == (1e-5, 1e-5)


def test_the_finetuning_form_as_it_begins() -> None:
    config, got = defaults("F")
    assert config.adapter.kind == "none"
    assert config.adapter.text_encoder
    assert (config.data.repeats, config.data.bucket_max_px, config.data.buckets) == (40, None, True)
    assert (config.optimizer.schedule, config.optimizer.warmup_share) == ("constant", 0.0)
    assert got.report.lines["dataset_repeats"].becomes == ("data.repeats",)


def test_the_textual_inversion_form_as_it_begins() -> None:
    config, _ = imported(form("T", token_string="mycat", init_word="cat", num_vectors_per_token=4))
    assert config.adapter.kind == "embedding"
    assert (config.embedding.token, config.embedding.initial, config.embedding.vectors) == ("mycat", "cat", 4)
    assert config.embedding.lr == 1e-5


@pytest.mark.parametrize("tab, name", [("E", "LECO"), ("C", "LLLite")])
def test_tabs_without_a_counterpart_are_refused_by_name(tab: str, name: str) -> None:
    with pytest.raises(UserError, match=name) as caught:
        read_text(json.dumps(form(tab)), "my form.json")
    assert [f.field for f in caught.value.findings] == ["my form.json"]


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"optimizer": {"kind": "adamw"}, "model": {"base": "pocket"}},
        {"optimizer_type": "AdamW", "resolution": "512,512", "epoch": 1, "noise_offset_type": "Original", "network_dim": 8},
        {"general": {"enable_bucket": True}, "datasets": [{"resolution": 512}]},
        {"optimizer": "AdamW"},
        {"prompt": "a cat", "width": 512},
    ],
)
def test_other_files_are_left_to_others(raw: dict[str, Any]) -> None:
    assert read(raw, "other.json") is None


# --- presets

IA3 = {
    "LoRA_type": "LyCORIS/iA3", "adaptive_noise_scale": 0.005, "caption_dropout_rate": 0.5, "epoch": 300, "keep_tokens": 1,
    "gradient_checkpointing": True, "learning_rate": 1.0, "lr_scheduler": "constant", "lr_warmup": 0, "min_snr_gamma": 5,
    "network_alpha": 1024, "network_dim": 1024, "network_dropout": 0.3, "noise_offset": 0.05, "noise_offset_type": "Original",
    "optimizer": "Prodigy", "optimizer_args": "d_coef=1.0 weight_decay=0.01 safeguard_warmup=False", "scale_weight_norms": 1,
    "seed": "31337", "shuffle_caption": True, "text_encoder_lr": 1.0, "train_batch_size": 1, "unet_lr": 1.0,
}  # fmt: skip


def test_a_preset_says_only_what_it_says() -> None:
    config, got = imported(IA3)
    assert (config.adapter.kind, config.train.epochs, config.train.seed) == ("ia3", 300, 31337)
    assert (config.optimizer.kind, config.optimizer.lr, config.optimizer.schedule) == ("prodigy", 1.0, "constant")
    assert (config.objective.noise_offset, config.objective.weighting, config.objective.snr_gamma) == (0.05, "min_snr", 5.0)
    assert got.report.lines["network_dim"].outcome == "idle"
    assert config.data.resolution is None
    assert "base" not in got.values.get("model", {})


def _presets() -> list[dict[str, Any]]:
    names = "name LoRA_type network_dim network_alpha optimizer lr_scheduler lr_warmup learning_rate unet_lr text_encoder_lr"
    columns = f"{names} train_batch_size epoch max_resolution mixed_precision".split()
    lines = (GOLDEN / "kohya_presets.txt").read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(columns, line.split("\t"), strict=True)) for line in lines if not line.startswith("#")]
    return [{key: value for key, value in row.items() if value != "-"} for row in rows]


PRESETS = _presets()
LORA_KINDS = {"Standard": "lora", "Flux1": "lora", "LyCORIS/LoCon": "lora", "LyCORIS/LoHa": "loha", "LyCORIS/LoKr": "lokr"}
LORA_KINDS |= {"LyCORIS/iA3": "ia3"}
OPTIMIZERS = {"AdamW": "adamw", "AdamW8bit": "adamw_8bit", "PagedAdamW8bit": "paged_adamw_8bit", "Lion": "lion"}
OPTIMIZERS |= {"Prodigy": "prodigy", "Adafactor": "adafactor", "DAdaptAdam": "dadapt_adam"}
SCHEDULES = {"cosine_with_restarts": "cosine_restarts", "constant_with_warmup": "constant"}


@pytest.mark.parametrize("row", PRESETS, ids=[row["name"] for row in PRESETS])
def test_the_shipped_presets(row: dict[str, str]) -> None:
    """With numbers as the texts that they are in the table."""
    tab = row["name"].partition("/")[0]
    marks: dict[str, Any] = {"model_list": "custom"}
    marks |= {"lora": {}, "dreambooth": {"sd3_checkbox": True}, "finetune": {"dataset_repeats": "1"}}[tab]
    config, _ = imported(marks | {key: value for key, value in row.items() if key != "name"})
    assert config.adapter.kind == (LORA_KINDS[row["LoRA_type"]] if tab == "lora" else "none")
    if tab == "lora" and config.adapter.kind != "ia3":
        whole = int(row["network_dim"]) > 1024
        assert config.adapter.rank == min(int(row["network_dim"]), 1024)
        assert config.adapter.alpha == (1024 if whole else float(row["network_alpha"]))
    assert config.optimizer.kind == OPTIMIZERS[row["optimizer"]]
    # Adafactor finds the rate itself unless it is told otherwise, and has a schedule of its own then
    is_relative = row["optimizer"] == "Adafactor"
    schedule = "adafactor" if is_relative else SCHEDULES.get(row["lr_scheduler"], row["lr_scheduler"])
    assert config.optimizer.schedule == schedule
    assert config.optimizer.lr == (1e-2 if is_relative else float(row.get("unet_lr", row["learning_rate"])))
    if tab == "lora":
        assert config.adapter.text_encoder == (float(row["text_encoder_lr"]) > 0)
    if tab == "lora" and config.adapter.text_encoder and not is_relative:
        assert config.optimizer.text_encoder_lr == float(row["text_encoder_lr"])
    if not is_relative:
        has_warmup = row["lr_scheduler"] != "constant"
        assert config.optimizer.warmup_share == (int(row["lr_warmup"]) / 100 if has_warmup else 0)
    assert config.train.batch_size == int(row["train_batch_size"])
    assert config.train.epochs == (int(row["epoch"]) if "epoch" in row else None)
    assert config.train.precision == row.get("mixed_precision")
    sides = [int(side) for side in row["max_resolution"].split(",")] if "max_resolution" in row else None
    assert config.data.resolution == (sides and math.isqrt(sides[0] * sides[1]))


def test_the_finetuning_preset_with_numbers_as_texts() -> None:
    raw = {
        "batch_size": "1", "create_buckets": False, "create_caption": True, "dataset_repeats": "10", "epoch": "2",
        "learning_rate": "0.0000166666666", "lr_scheduler": "cosine", "lr_warmup": "10", "max_bucket_reso": "1024",
        "max_resolution": "512,512", "max_token_length": "150", "max_train_epochs": "", "noise_offset": "",
        "optimizer": "Lion", "seed": "1234", "train_batch_size": 4, "train_text_encoder": True, "use_8bit_adam": False,
        "use_latent_files": "No", "xformers": True, "gradient_accumulation_steps": 1.0,
    }  # fmt: skip
    config, got = imported(raw)
    assert config.adapter.kind == "none"
    assert (config.train.epochs, config.train.seed, config.train.batch_size) == (2, 1234, 4)
    assert (config.optimizer.kind, config.optimizer.warmup_share) == ("lion", 0.1)
    assert config.optimizer.lr == pytest.approx(0.0000166666666)
    assert (config.data.repeats, config.model.text_chunks, config.train.accumulation) == (10, 2, 1)
    assert got.report.lines["max_train_epochs"].outcome == "idle"


def test_the_flux_preset() -> None:
    raw = {"LoRA_type": "Flux1", "network_dim": 16, "network_alpha": 16, "flux1_checkbox": True, "fp8_base": True}
    raw |= {
        "unet_lr": 3e-4,
        "text_encoder_lr": 0,
        "clip_l": "H:/clip/clip_l.safetensors",
        "t5xxl": "H:/clip/t5xxl_fp16.safetensors",
    }
    raw |= {"ae": "H:/vae/ae.sft", "guidance_scale": 1.0, "model_prediction_type": "raw", "timestep_sampling": "sigmoid"}
    raw |= {"discrete_flow_shift": 1.0, "flux1_cache_text_encoder_outputs": True, "max_resolution": "512,512"}
    config, _ = imported(raw)
    assert (config.model.family, config.adapter.kind, config.adapter.rank) == ("flux", "lora", 16)
    assert not config.adapter.text_encoder
    assert str(config.model.clip_l) == "H:/clip/clip_l.safetensors"
    assert str(config.model.t5) == "H:/clip/t5xxl_fp16.safetensors"
    assert str(config.model.vae) == "H:/vae/ae.sft"
    assert (config.memory.quantize, config.objective.guidance, config.objective.timesteps) == ("fp8", 1.0, "logit_normal")


def test_the_sd3_dreambooth_preset() -> None:
    raw = {
        "clip_g": "H:/clip_g.safetensors", "clip_l": "H:/clip_l.safetensors", "t5xxl": "H:/t5.safetensors", "epoch": 8,
        "learning_rate": 5e-6, "learning_rate_te": 0, "learning_rate_te1": 1e-5, "learning_rate_te2": 1e-5,
        "lr_scheduler": "cosine", "lr_warmup": 10, "max_resolution": "512,512", "max_train_epochs": 8, "max_train_steps": 1600,
        "optimizer": "PagedAdamW8bit", "optimizer_args": "weight_decay=0.1 betas=.9,.95", "sd3_checkbox": True, "sdxl": False,
        "pretrained_model_name_or_path": "E:/sd3_medium.safetensors", "mode_scale": 1.29, "weighting_scheme": "logit_normal",
        "sd3_cache_text_encoder_outputs": True, "train_data_dir": "C:\\Users\\me\\img", "output_dir": "E:\\models",
    }  # fmt: skip
    config, _ = imported(raw)
    assert (config.model.family, config.adapter.kind, config.adapter.text_encoder) == ("sd3", "none", False)
    assert [str(p) for p in (config.model.clip_l, config.model.clip_g, config.model.t5)] == [
        "H:/clip_l.safetensors", "H:/clip_g.safetensors", "H:/t5.safetensors",
    ]  # fmt: skip
    assert (config.train.epochs, config.train.steps) == (8, None)
    assert (config.optimizer.kind, config.optimizer.weight_decay) == ("paged_adamw_8bit", 0.1)
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.95)
    assert str(config.data.path) == "C:\\Users\\me\\img"


# --- the GUI's config.toml

CONFIG = {
    "model": {"models_dir": "./models", "output_name": "new model", "train_data_dir": "./data", "save_precision": "bf16"},
    "folders": {"output_dir": "./outputs", "reg_data_dir": "./data/reg", "logging_dir": "./logs"},
    "configuration": {"config_dir": "./presets"},
    "accelerate_launch": {"mixed_precision": "bf16", "num_processes": 2, "dynamo_backend": "no"},
    "basic": {"epoch": 3, "max_train_steps": 0, "learning_rate": 2e-4, "lr_warmup": 5, "caption_extension": ".cap",
              "max_grad_norm": 0.5, "save_every_n_steps": 50, "train_batch_size": 4},
    "advanced": {"clip_skip": 2, "flip_aug": True, "max_data_loader_n_workers": "0", "max_token_length": "150",
                 "state_dir": "./outputs", "vae_dir": "./vae", "use_wandb": True, "wandb_api_key": "s3cret", "nonsense": 1},
    "flux1": {"timestep_sampling": "shift"},
    "samples": {"sample_every_n_steps": 100, "sample_sampler": "euler_a"},
    "huggingface": {"huggingface_repo_id": "a/b", "token": "hf_s3cret"},
    "metadata": {"title": "A title", "metadata_author": "Me"},
    "wd14_caption": {"thresh": 0.35},
}  # fmt: skip


def test_the_config_toml() -> None:
    got = read(CONFIG, "config.toml")
    assert got is not None
    config = files.build(got.values, {})
    names = [f"{section}.{name}" for section, table in CONFIG.items() for name in table]
    assert list(got.report.lines) == names
    assert (config.train.epochs, config.train.precision, config.train.clip_norm) == (3, "bf16", 0.5)
    assert (config.launch.num_processes, config.optimizer.lr, config.optimizer.warmup_share) == (2, 2e-4, 0.05)
    assert (config.output.name, str(config.data.path), config.output.dtype) == ("new model", "data", "bf16")
    assert (config.output.title, config.output.author, config.logging.trackers) == ("A title", "Me", ("wandb",))
    lines = got.report.lines
    assert lines["advanced.nonsense"].outcome == "unknown"
    assert {lines[name].outcome for name in ("model.models_dir", "advanced.vae_dir", "wd14_caption.thresh")} == {"idle"}
    assert "s3cret" not in repr(got)


@pytest.mark.parametrize(
    "key",
    [
        "advanced.flip_aug",
        "basic.caption_extension",
        "basic.max_grad_norm",
        "basic.save_every_n_steps",
        "basic.train_batch_size",
    ],
)
def test_keys_that_the_gui_documents_and_does_not_read_count_here(key: str) -> None:
    got = read(CONFIG, "config.toml")
    assert got is not None
    assert got.report.lines[key].outcome in ("taken", "converted")
    assert got.report.lines[key].becomes


# --- anything in place of anything

MUTANTS: list[Any] = [
    None, "", "   ", "abc", "0", "1", "-3", "1e-4", "1e400", "nan", "True", "no", "٣", "1_0", "0x10", "1;2", "512,512,512", 0,
    1, -1, 3, 0.0, 1.5, -2.5, 1e300, 10**30, 10**400, math.nan, math.inf, True, False, [], [1, 2], ["a=b"], {},
    {"a": {"b": [1]}},
    "a\x00b", "a\nb", "\u202eevil", "\ud800", "x" * 30_000, "--w 1", '"', "'", "a=b=c", "=", "," * 50, "constant",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_values_of_any_type_never_crash_and_stand_in_the_report(seed: int) -> None:
    rng = random.Random(seed)
    for tab in "LDFT":
        raw = form(tab)
        for key in rng.sample(sorted(raw), rng.choice([1, 5, 40, 120])):
            raw[key] = rng.choice(MUTANTS)
        raw |= {f"unknown {rng.random()}": rng.choice(MUTANTS)}
        for key in rng.sample(sorted(raw), 10):
            del raw[key]
        raw |= {"additional_parameters": rng.choice(["", raw.get("additional_parameters")]), "lr_warmup": 10}
        imported(raw)


def test_each_value_in_place_of_each() -> None:
    rng = random.Random(7)
    for value in MUTANTS:
        for tab in "LDFT":
            marks = {"LoRA_type": "Standard", "sdxl": False} if tab == "L" else {"use_wandb": False, "model_list": ""}
            raw = {k: value if rng.random() < 0.9 else v for k, v in form(tab).items()} | marks
            imported(raw)


def test_numbers_as_texts_are_the_same_numbers() -> None:
    numbers = form("L", network_dim=24, epoch=3, max_train_steps=0, min_snr_gamma=5, noise_offset=0.05, lr_warmup=5)
    texts = {k: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for k, v in numbers.items()}
    flags = {k: str(v) if isinstance(v, bool) else v for k, v in numbers.items()}
    assert imported(texts)[0] == imported(flags)[0] == imported(numbers)[0]


def test_unknown_keys_are_said() -> None:
    _, got = imported(form("L", nonsense=3))
    assert got.report.lines["nonsense"].outcome == "unknown"
