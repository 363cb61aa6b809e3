"""Where kohya_ss's form says one thing and the trainer is told another, the import takes what the form says, and tells it."""

from __future__ import annotations

from typing import Any

import pytest

from limner.config import Config, files
from limner.config.kohya.gui import read
from limner.config.kohya.report import Line

SECRET = "hf_0123456789abcdef"


def look(tab: str = "L", **keys: Any) -> tuple[Any, dict[str, Line]]:
    """The configuration and the report's lines of a small form."""
    marks: dict[str, dict[str, Any]] = {
        "L": {"LoRA_type": "Standard", "model_list": ""},
        "D": {"model_list": "", "use_wandb": False},
        "F": {"model_list": "", "use_wandb": False, "full_path": True},
        "T": {"model_list": "", "use_wandb": False, "init_word": "cat"},
    }
    raw = marks[tab] | keys
    got = read(raw, "form.json")
    assert got is not None
    assert list(got.report.lines) == list(raw)
    return files.build(got.values, {}), got.report.lines


# --- keys that are lost between the GUI and the trainer


def test_epoch_counts() -> None:
    assert look(epoch=12, max_train_steps=0)[0].train.epochs == 12
    assert look(epoch=12)[0].train.epochs == 12
    assert look(epoch="12", max_train_steps="")[0].train.epochs == 12


def test_epoch_counts_beside_the_steps_that_the_form_begins_with() -> None:
    config, lines = look(epoch=12, max_train_steps=1600)
    assert (config.train.epochs, config.train.steps) == (12, None)
    assert lines["max_train_steps"].outcome == "idle"
    assert "train.steps = 1600" in lines["max_train_steps"].why


def test_steps_that_were_typed_take_precedence_over_epoch() -> None:
    config, lines = look(epoch=12, max_train_steps=900)
    assert (config.train.epochs, config.train.steps) == (None, 900)
    assert lines["epoch"].outcome == "idle"
    assert "train.epochs" in lines["epoch"].why


def test_max_train_epochs_takes_precedence_over_both() -> None:
    config, lines = look(epoch=12, max_train_steps=900, max_train_epochs=5)
    assert (config.train.epochs, config.train.steps) == (5, None)
    assert lines["epoch"].outcome == lines["max_train_steps"].outcome == "idle"


def test_max_train_steps_0_alone_gives_no_length() -> None:
    config, lines = look(max_train_steps=0)
    assert (config.train.epochs, config.train.steps) == (None, None)
    assert lines["max_train_steps"].outcome == "idle"


@pytest.mark.parametrize("tab, outcome", [("L", "idle"), ("D", "unsupported")])
def test_stop_text_encoder_training(tab: str, outcome: str) -> None:
    assert look(tab, stop_text_encoder_training=50)[1]["stop_text_encoder_training"].outcome == outcome


def test_stop_text_encoder_training_minus_1_never_trains_it() -> None:
    config, _ = look("D", stop_text_encoder_training=-1, learning_rate=1e-5, learning_rate_te=1e-5)
    assert not config.adapter.text_encoder


def test_noise_offset_type_chooses() -> None:
    keys = {"noise_offset": 0.1, "adaptive_noise_scale": 0.01, "multires_noise_iterations": 6, "multires_noise_discount": 0.4}
    original, lines = look(noise_offset_type="Original", **keys)
    assert (original.objective.noise_offset, original.objective.pyramid_levels) == (0.1, 0)
    assert lines["multires_noise_iterations"].outcome == "idle"
    multires, lines = look(noise_offset_type="Multires", **keys)
    # of kohya's iterations the first is the full size itself, which Limner does not count
    assert (multires.objective.noise_offset, multires.objective.pyramid_levels) == (0.0, 5)
    assert multires.objective.pyramid_discount == 0.4
    assert lines["noise_offset"].outcome == "idle"


def test_train_blocks_counts_without_split_mode() -> None:
    config, lines = look(LoRA_type="Flux1", flux1_checkbox=True, train_blocks="single", split_mode=False)
    assert lines["train_blocks"].outcome in ("taken", "converted")
    assert any("off" in rule for rule in config.adapter.rules)


def test_what_the_finetuning_tab_forgets_counts() -> None:
    config, _ = look(
        "F", max_grad_norm=0.5, lr_scheduler="cosine_with_restarts", lr_scheduler_num_cycles=3, vae="ae.safetensors"
    )
    assert (config.train.clip_norm, config.optimizer.schedule_cycles, str(config.model.vae)) == (0.5, 3, "ae.safetensors")


@pytest.mark.parametrize(
    "key", ["mem_eff_save", "single_blocks_to_swap", "double_blocks_to_swap", "no_token_padding", "show_timesteps"]
)
def test_what_no_trainer_of_the_tab_knows_does_nothing(key: str) -> None:
    value = "console" if key == "show_timesteps" else True if key in ("mem_eff_save", "no_token_padding") else 3
    keys: dict[str, Any] = {key: value}
    assert look(**keys)[1][key].outcome in ("idle", "unsupported")


def test_inpainting_is_refused_by_name() -> None:
    assert look(train_inpainting=True)[1]["train_inpainting"].outcome == "unsupported"
    assert look(train_inpainting=False)[1]["train_inpainting"].outcome == "idle"


@pytest.mark.parametrize(
    "box, name", [("lumina_checkbox", "Lumina"), ("hunyuan_image_checkbox", "HunyuanImage"), ("anima_checkbox", "Anima")]
)
@pytest.mark.parametrize("tab", ["L", "D", "F"])
def test_families_without_a_trainer_are_refused_by_name(tab: str, box: str, name: str) -> None:
    config, lines = look(tab, **{box: True})
    assert lines[box].outcome == "unsupported"
    assert name in lines[box].why
    assert config.model.family is None


# --- a 0 that means 0


def test_max_grad_norm_0_does_not_clip() -> None:
    assert look(max_grad_norm=0)[0].train.clip_norm == "off"


def test_guidance_scale_0_is_0() -> None:
    assert look(LoRA_type="Flux1", flux1_checkbox=True, guidance_scale=0)[0].objective.guidance == 0


@pytest.mark.parametrize(
    "key, value, option",
    [("prior_loss_weight", 0, "objective.prior_weight"), ("huber_c", 0, "objective.huber_threshold"),
     ("multires_noise_discount", 0, "objective.pyramid_discount"), ("learning_rate", 0, "optimizer.lr")],
)  # fmt: skip
def test_a_0_that_cannot_be_is_said_and_never_becomes_the_trainers_default(key: str, value: float, option: str) -> None:
    keys: dict[str, Any] = {key: value, "noise_offset_type": "Multires", "multires_noise_iterations": 6}
    _, lines = look(**keys)
    assert lines[key].outcome in ("unsupported", "converted")
    assert lines[key].why
    assert not (option in lines[key].becomes and lines[key].outcome == "taken")


def test_learning_rate_0_is_idle_where_unet_lr_takes_its_place() -> None:
    config, lines = look(learning_rate=0, unet_lr=3e-4)
    assert lines["learning_rate"].outcome == "idle"
    assert config.optimizer.lr == 3e-4


def test_seed_0_is_0() -> None:
    config, lines = look(seed=0)
    assert config.train.seed == 0
    assert "new seed" in lines["seed"].why


# --- learning rates


def test_text_encoder_lr_0_does_not_train_the_text_encoder() -> None:
    config, _ = look(learning_rate=1e-4, unet_lr=2e-4, text_encoder_lr=0)
    assert (config.adapter.text_encoder, config.adapter.denoiser, config.optimizer.lr) == (False, True, 2e-4)


def test_unet_lr_0_does_not_train_the_denoiser() -> None:
    config, _ = look(learning_rate=1e-4, unet_lr=0, text_encoder_lr=5e-5)
    assert (config.adapter.text_encoder, config.adapter.denoiser, config.optimizer.text_encoder_lr) == (True, False, 5e-5)


def test_both_rates_0_do_not_train_the_text_encoder() -> None:
    config, lines = look(learning_rate=1e-4, unet_lr=0, text_encoder_lr=0)
    assert (config.adapter.text_encoder, config.adapter.denoiser, config.optimizer.lr) == (False, True, 1e-4)
    assert "kohya trains both" in lines["text_encoder_lr"].why


def test_rates_of_their_own() -> None:
    config, _ = look(learning_rate=1e-4, unet_lr=3e-4, text_encoder_lr=5e-5)
    assert (config.optimizer.lr, config.optimizer.text_encoder_lr, config.adapter.text_encoder) == (3e-4, 5e-5, True)


def test_t5xxl_lr_is_said() -> None:
    assert look(t5xxl_lr=1e-5)[1]["t5xxl_lr"].outcome == "idle"
    assert look(LoRA_type="Flux1", flux1_checkbox=True, t5xxl_lr=1e-5)[1]["t5xxl_lr"].outcome == "unsupported"


def test_sdxl_has_two_text_encoder_rates() -> None:
    config, lines = look(
        "D", sdxl=True, learning_rate=1e-5, learning_rate_te=9e-6, learning_rate_te1=2e-6, learning_rate_te2=2e-6
    )
    assert config.adapter.text_encoder
    assert config.optimizer.text_encoder_lr == 2e-6
    assert lines["learning_rate_te"].outcome == "idle"


def test_sdxl_text_encoder_rates_of_0_do_not_train_it() -> None:
    assert not look("D", sdxl=True, learning_rate_te1=0, learning_rate_te2=0)[0].adapter.text_encoder


def test_the_finetuning_tick() -> None:
    assert not look("F", train_text_encoder=False, learning_rate_te=1e-5)[0].adapter.text_encoder
    assert look("F", train_text_encoder=True, learning_rate_te=1e-5)[0].adapter.text_encoder
    assert not look("F", train_text_encoder=True, learning_rate_te=0)[0].adapter.text_encoder


# --- warm-up


def test_warm_up_is_percent_and_steps_take_precedence() -> None:
    config, _ = look(lr_scheduler="cosine", lr_warmup=15, lr_warmup_steps=0)
    assert (config.optimizer.warmup_share, config.optimizer.warmup_steps) == (0.15, 0)
    config, lines = look(lr_scheduler="cosine", lr_warmup=15, lr_warmup_steps=70)
    assert (config.optimizer.warmup_share, config.optimizer.warmup_steps) == (0.0, 70)
    assert lines["lr_warmup"].outcome == "idle"


@pytest.mark.parametrize("more", [{"lr_scheduler": "constant"}, {"lr_scheduler": "adafactor", "optimizer": "Adafactor"},
                                  {"lr_scheduler": "cosine", "lr_scheduler_type": "CosineAnnealingLR"}])  # fmt: skip
def test_a_schedule_without_warm_up_ignores_it_instead_of_failing(more: dict[str, Any]) -> None:
    config, lines = look(lr_warmup=10, **more)
    assert (config.optimizer.warmup_share, config.optimizer.warmup_steps) == (0.0, 0)
    assert lines["lr_warmup"].outcome == "idle"


def test_adafactor_with_its_usual_arguments_and_a_warm_up_can_be_imported() -> None:
    config, _ = look(optimizer="Adafactor", lr_scheduler="cosine", lr_warmup=10, learning_rate=1e-4)
    assert config.optimizer.kind == "adafactor"


# --- typed lines


def test_additional_parameters_keep_words_with_spaces_together() -> None:
    config, lines = look(additional_parameters='--caption_prefix "a photo of" --caption_suffix=end')
    assert (config.data.caption_prefix, config.data.caption_suffix) == ("a photo of", "end")
    assert set(lines["additional_parameters"].becomes) == {"data.caption_prefix", "data.caption_suffix"}


def test_additional_parameters_keep_backslashes() -> None:
    config, _ = look(additional_parameters=r'--conditioning_data_dir "C:\my masks\new" --masked_loss')
    assert str(config.data.mask_path) == r"C:\my masks\new"


def test_additional_parameters_take_precedence_over_the_form() -> None:
    config, lines = look(min_snr_gamma=5, max_train_steps=900, additional_parameters="--min_snr_gamma 3 --max_train_epochs 7")
    assert (config.objective.snr_gamma, config.train.epochs, config.train.steps) == (3.0, 7, None)
    assert lines["min_snr_gamma"].outcome == lines["max_train_steps"].outcome == "idle"
    assert "additional_parameters" in lines["min_snr_gamma"].why


def test_additional_parameters_say_what_is_trained() -> None:
    assert not look(text_encoder_lr=1e-4, additional_parameters="--network_train_unet_only")[0].adapter.text_encoder
    assert look(seed=0, additional_parameters="--seed 7")[0].train.seed == 7


def test_additional_network_args_join_those_of_the_form() -> None:
    config, _ = look(
        LoRA_type="Flux1", flux1_checkbox=True, rank_dropout=0.1, additional_parameters="--network_args train_blocks=single"
    )
    assert config.adapter.rank_dropout == 0.1
    assert config.adapter.rules


def test_additional_parameters_of_a_shipped_preset() -> None:
    text = '--lr_scheduler_type "CosineAnnealingLR" --lr_scheduler_args "T_max=1000" "eta_min=0e-0"'
    _, lines = look(additional_parameters=text, lr_scheduler="cosine")
    assert lines["additional_parameters"].outcome in ("unsupported", "converted")
    assert lines["additional_parameters"].why


def test_an_open_quote_is_said() -> None:
    line = look(additional_parameters='--caption_prefix "a photo')[1]["additional_parameters"]
    assert line.outcome == "unsupported"
    assert "quotes" in line.why


def test_optimizer_args_in_quotes() -> None:
    config, _ = look(optimizer="AdamW", optimizer_args='"weight_decay=0.1" "betas=0.9,0.95"')
    assert (config.optimizer.weight_decay, config.optimizer.beta2) == (0.1, 0.95)


def test_a_lycoris_preset_path_with_a_space_stays_whole() -> None:
    line = look(LoRA_type="LyCORIS/LoCon", LyCORIS_preset="my presets/only unet.toml")[1]["LyCORIS_preset"]
    assert line.value == "my presets/only unet.toml"
    assert line.outcome == "unsupported"


def test_accelerates_own_arguments_are_not_carried_out() -> None:
    config, lines = look(extra_accelerate_launch_args="--rdzv_backend c10d; touch x", dynamo_backend="tvm", gpu_ids="0;ls")
    keys = ("extra_accelerate_launch_args", "gpu_ids", "dynamo_backend")
    assert {lines[key].outcome for key in keys} == {"unsupported"}
    assert "rdzv_backend" in lines["extra_accelerate_launch_args"].why
    assert (config.launch.extra, config.launch.gpu_ids) == ((), None)


def test_accelerates_panel_becomes_options() -> None:
    extra = "--machine_rank 1 --main_process_ip=10.0.0.1 --monitor_interval 2 --num_processes=4 --enable-cpu-affinity"
    config, lines = look(extra_accelerate_launch_args=extra, gpu_ids="2, 3", num_machines=2, main_process_port=29511)
    section = config.launch
    assert (section.machine_rank, section.main_process_ip, section.num_processes) == (1, "10.0.0.1", 4)
    assert section.extra == ("--monitor_interval=2", "--enable_cpu_affinity")
    assert (section.gpu_ids, section.num_machines, section.main_process_port) == ("2,3", 2, 29511)
    assert lines["extra_accelerate_launch_args"].outcome == "converted"
    assert {lines[key].outcome for key in ("gpu_ids", "num_machines", "main_process_port")} == {"taken"}


@pytest.mark.parametrize("text", ["--monitor_interval=1;ls", "evil.py", "--rdzv_conf=../x", "--main_process_port=0x1", "-m os"])
def test_no_word_of_accelerates_arguments_goes_through_unread(text: str) -> None:
    config, lines = look(extra_accelerate_launch_args=text)
    assert lines["extra_accelerate_launch_args"].outcome == "unsupported"
    assert config.launch == Config().launch


def test_dynamo_compiles_blocks() -> None:
    config, lines = look(
        dynamo_backend="inductor", dynamo_mode="reduce-overhead", dynamo_use_fullgraph=True, dynamo_use_dynamic=False
    )
    speed = config.speed
    assert (speed.compile, speed.compile_backend, speed.compile_mode) == ("blocks", "inductor", "reduce-overhead")
    assert (speed.compile_fullgraph, speed.compile_dynamic) == (True, False)
    assert lines["dynamo_backend"].outcome == "converted" and lines["dynamo_backend"].becomes == (
        "speed.compile", "speed.compile_backend",
    )  # fmt: skip
    off, lines = look(dynamo_backend="no", dynamo_mode="max-autotune", dynamo_use_fullgraph=True)
    assert off.speed.compile == "off" and not off.speed.compile_fullgraph
    assert {lines[name].outcome for name in ("dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph")} == {"idle"}


# --- other defects


def test_resume_from_huggingface_is_a_text_there_and_a_flag_in_the_trainer() -> None:
    assert look(resume_from_huggingface="owner/name/state")[1]["resume_from_huggingface"].outcome == "unsupported"


def test_resume_from_huggingface_was_a_flag_once() -> None:
    assert look(resume_from_huggingface=False)[1]["resume_from_huggingface"].outcome == "idle"


def test_bucket_steps_of_1_as_many_shipped_presets_have_them() -> None:
    config, lines = look(bucket_reso_steps=1)
    assert config.data.bucket_step_px is None
    assert "what the family needs" in lines["bucket_reso_steps"].why


def test_an_empty_base_model_is_not_taken_for_one() -> None:
    config, lines = look(pretrained_model_name_or_path="")
    assert lines["pretrained_model_name_or_path"].outcome == "idle"
    assert config.model.base == Config().model.base


def test_a_hub_id_with_a_dot_is_one() -> None:
    base = "stabilityai/stable-diffusion-3.5-medium"
    assert look(pretrained_model_name_or_path=base)[0].model.base == base


def test_block_dims_of_sdxl_are_23() -> None:
    dims = ",".join(["4"] * 11 + ["8"] * 12)
    line = look(sdxl=True, network_dim=8, block_dims=dims)[1]["block_dims"]
    assert line.outcome in ("taken", "converted")


def test_fp16_with_full_bf16_is_settled() -> None:
    _, lines = look("D", mixed_precision="fp16", full_bf16=True)
    assert lines["full_bf16"].why or lines["full_bf16"].becomes


def test_lora_fa_has_neither_convolutions_nor_lora_plus() -> None:
    config, lines = look(LoRA_type="LoRA-FA", conv_dim=8, conv_alpha=4, loraplus_lr_ratio=16)
    assert config.adapter.freeze_down
    assert config.adapter.conv_rank is None
    assert {lines[key].outcome for key in ("conv_dim", "conv_alpha", "loraplus_lr_ratio")} == {"idle"}


def test_the_flux_type_without_the_flux_box_is_flux() -> None:
    config, _ = look(LoRA_type="Flux1", flux1_checkbox=False, guidance_scale=1.0)
    assert (config.model.family, config.objective.guidance) == ("flux", 1.0)


def test_two_families_ticked() -> None:
    config, lines = look(sdxl=True, flux1_checkbox=True)
    assert config.model.family == "sdxl"
    assert lines["flux1_checkbox"].outcome == "idle"
    config, lines = look("D", sd3_checkbox=True, flux1_checkbox=True)
    assert config.model.family == "sd3"
    assert lines["flux1_checkbox"].outcome == "idle"


def test_a_started_finetuning_run_and_a_saved_one_are_the_same() -> None:
    keys = {"train_dir": "C:\\meta", "caption_metadata_filename": "cap.json", "image_folder": "pics"}
    for name in ("generate_caption_database", "create_caption"):
        config, _ = look("F", **keys, **{name: False})
        assert str(config.data.metadata) == "C:\\meta\\cap.json"
        assert str(config.data.path) == "pics"
        assert look("F", **keys, **{name: True})[0].data.metadata is None


@pytest.mark.parametrize(
    "keys",
    [
        {"huggingface_token": SECRET},
        {"wandb_api_key": SECRET},
        {"additional_parameters": f"--huggingface_token {SECRET} --min_snr_gamma 5"},
        {"additional_parameters": f"--wandb_api_key={SECRET}"},
        {"additional_parameters": f'--wandb_api_key "{SECRET}"'},
        {"additional_parameters": f'--wandb-api-key "a b{SECRET}" --min_snr_gamma 5'},
        {"extra_accelerate_launch_args": f"--wandb_api_key {SECRET}"},
        {"wandb_api_key": [SECRET]},
        {"openai_api_key": SECRET},
    ],
)
def test_tokens_are_neither_written_nor_shown(keys: dict[str, Any]) -> None:
    config, lines = look(**keys)
    assert SECRET not in repr(config) + repr(lines) + files.render(config)
    if "min_snr_gamma" not in repr(keys):
        assert lines[next(iter(keys))].outcome in ("unsupported", "unknown")


# --- what a drop-in needs


def test_use_8bit_adam() -> None:
    assert look(use_8bit_adam=True)[0].optimizer.kind == "adamw_8bit"
    assert look(use_8bit_adam=False)[0].optimizer.kind == "adamw"
    assert look(use_8bit_adam=True, optimizer="Lion")[0].optimizer.kind == "lion"


def test_use_wandb() -> None:
    assert look(use_wandb="True")[0].logging.trackers == ("wandb",)
    assert look(use_wandb=False)[0].logging.trackers == ()


@pytest.mark.parametrize("value", [True, False, "xformers", "sdpa", "none"])
def test_xformers_was_a_tick_once(value: bool | str) -> None:
    config, lines = look(xformers=value)
    assert config.speed.attention == "auto"
    assert lines["xformers"].becomes == (("speed.attention",) if value in (True, "xformers", "sdpa") else ())


def test_locon_was_a_type_of_its_own_once() -> None:
    config, _ = look(LoRA_type="LoCon", network_dim=16, conv_dim=4, conv_alpha=2)
    assert (config.adapter.kind, config.adapter.conv_rank, config.adapter.conv_alpha) == ("lora", 4, 2.0)


def test_lora_network_weights() -> None:
    assert str(look(lora_network_weights="a.safetensors")[0].adapter.start) == "a.safetensors"
    assert str(look(lora_network_weights="a.safetensors", network_weights="b.safetensors")[0].adapter.start) == "b.safetensors"


def test_save_model_as_of_a_lora_is_safetensors() -> None:
    assert look(save_model_as="diffusers")[1]["save_model_as"].outcome == "converted"
    assert look("D", save_model_as="diffusers")[0].output.layout == "diffusers"


def test_clip_l_and_t5xxl_mean_another_family_on_each_tab() -> None:
    config, lines = look(LoRA_type="Flux1", flux1_checkbox=True, clip_l="f.safetensors", sd3_clip_l="s.safetensors")
    assert (str(config.model.clip_l), lines["sd3_clip_l"].outcome) == ("f.safetensors", "idle")
    config, lines = look(sd3_checkbox=True, clip_l="f.safetensors", sd3_clip_l="s.safetensors", sd3_t5xxl="t.safetensors")
    assert (str(config.model.clip_l), str(config.model.t5), lines["clip_l"].outcome) == (
        "s.safetensors",
        "t.safetensors",
        "idle",
    )
    for tab in ("D", "F"):
        keys = {
            "clip_l": "s.safetensors",
            "t5xxl": "t.safetensors",
            "flux1_clip_l": "f.safetensors",
            "flux1_t5xxl": "u.safetensors",
        }
        config, _ = look(tab, sd3_checkbox=True, **keys)
        assert (str(config.model.clip_l), str(config.model.t5)) == ("s.safetensors", "t.safetensors")
        config, _ = look(tab, flux1_checkbox=True, **keys)
        assert (str(config.model.clip_l), str(config.model.t5)) == ("f.safetensors", "u.safetensors")


def test_the_finetuning_tab_has_a_box_of_its_own_for_sdxl() -> None:
    assert look("F", sdxl_checkbox=True)[0].model.family == "sdxl"


def test_a_dataset_file_takes_the_place_of_the_folders() -> None:
    config, lines = look(dataset_config="set.toml", train_data_dir="pics", reg_data_dir="reg")
    assert (str(config.data.subsets), config.data.path, config.data.class_path) == ("set.toml", None, None)
    assert lines["train_data_dir"].outcome == lines["reg_data_dir"].outcome == "idle"


def test_folders_stay_the_text_that_they_are() -> None:
    config, _ = look(train_data_dir="C:\\Users\\me\\img", reg_data_dir="D:/reg pictures", output_dir="\\\\server\\out")
    paths = (config.data.path, config.data.class_path, config.output.path)
    assert [str(p) for p in paths] == ["C:\\Users\\me\\img", "D:/reg pictures", "\\\\server\\out"]


@pytest.mark.parametrize(
    "lora_type, kind, options",
    [
        ("Standard", "lora", {"rank": 16, "alpha": 8.0, "conv_rank": None}),
        ("Kohya LoCon", "lora", {"rank": 16, "conv_rank": 4, "conv_alpha": 2.0}),
        ("Kohya DyLoRA", "dylora", {"rank": 16, "unit": 4}),
        ("Kohya LoHa", "loha", {"rank": 16, "conv_rank": 4}),
        ("Kohya LoKr", "lokr", {"rank": 16, "factor": 8}),
        ("LyCORIS/LoCon", "lora", {"rank": 16, "conv_rank": 4, "dora": True}),
        ("LyCORIS/LoHa", "loha", {"rank": 16, "alpha": 8.0}),
        ("LyCORIS/LoKr", "lokr", {"rank": 16, "factor": 8, "decompose_both": True}),
        ("LyCORIS/BOFT", "oft", {"butterfly": True}),
        ("LyCORIS/Diag-OFT", "oft", {"butterfly": False}),
        ("LyCORIS/DyLoRA", "dylora", {"rank": 16, "unit": 4}),
        ("LyCORIS/GLoRA", "glora", {"rank": 16}),
        ("LyCORIS/iA3", "ia3", {}),
        ("LyCORIS/Native Fine-Tuning", "full", {}),
        ("Flux1 OFT", "oft", {}),
    ],
)
def test_each_lora_type(lora_type: str, kind: str, options: dict[str, Any]) -> None:
    keys = {
        "network_dim": 16,
        "network_alpha": 8,
        "conv_dim": 4,
        "conv_alpha": 2,
        "unit": 4,
        "factor": 8,
        "LyCORIS_preset": "full",
    }
    config, lines = look(LoRA_type=lora_type, decompose_both=True, dora_wd=True, **keys)
    assert config.adapter.kind == kind
    assert {name: getattr(config.adapter, name) for name in options} == options
    assert lines["LoRA_type"].outcome in ("taken", "converted")


def test_a_lokr_of_whole_matrices() -> None:
    """100000 stands for matrices that are no products, whose scale is 1 whatever alpha says."""
    keys: dict[str, Any] = {"network_dim": 100000, "network_alpha": 1, "conv_dim": 100000, "conv_alpha": 1}
    config, lines = look(LoRA_type="LyCORIS/LoKr", **keys)
    assert config.adapter.rank_and_scale(spatial=False) == (1024, 1.0)
    assert config.adapter.rank_and_scale(spatial=True) == (1024, 1.0)
    assert {lines[key].outcome for key in keys} == {"converted"}


def test_lycoris_without_a_rank_for_convolutions_takes_the_other() -> None:
    config, _ = look(LoRA_type="LyCORIS/LoCon", network_dim=16, network_alpha=8, conv_dim=0)
    assert config.adapter.conv_rank == 16


def test_a_key_of_sd_scripts_that_the_gui_does_not_read() -> None:
    config, lines = look(caption_prefix="a photo of")
    assert config.data.caption_prefix == ""
    assert lines["caption_prefix"].outcome == "idle"
    assert "additional_parameters" in lines["caption_prefix"].why


def test_the_finetuning_tick_is_said_where_it_is_not_followed() -> None:
    _, lines = look("F", train_text_encoder=True, learning_rate_te=0)
    assert (lines["train_text_encoder"].outcome, lines["train_text_encoder"].value) == ("converted", True)


def test_an_unknown_lora_type_is_said() -> None:
    config, lines = look(LoRA_type="LyCORIS/New")
    assert (config.adapter.kind, lines["LoRA_type"].outcome) == ("lora", "unsupported")


def test_sample_prompts_are_the_text_box_and_have_kohyas_flags() -> None:
    text = "a cat --w 768 --h 512 --d 7 --s 28 --l 6.5 --n blurry, ugly\n\n# a comment\na dog --ss euler --cn x.png --ctr 0.5"
    config, lines = look(sample_prompts=text, sample_every_n_epochs=1)
    assert config.sample.prompts == ("a cat --w 768 --h 512 --d 7 --s 28 --l 6.5 --n blurry, ugly", "a dog --ss euler")
    assert "--cn, --ctr" in lines["sample_prompts"].why


def test_warnings_of_flux_defaults_that_do_not_fit_together() -> None:
    config, lines = look(LoRA_type="Flux1", flux1_checkbox=True, model_prediction_type="sigma_scaled")
    assert config.objective.prediction is None
    assert lines["model_prediction_type"].outcome in ("unsupported", "converted")


def test_the_draw_of_flux_in_mode_sigma_is_even_as_the_gui_starts_it() -> None:
    """The form's weighting_scheme is for Stable Diffusion 3."""
    flux: dict[str, Any] = {"timestep_sampling": "sigma", "weighting_scheme": "logit_normal", "discrete_flow_shift": 3.0}
    config, lines = look(LoRA_type="Flux1", flux1_checkbox=True, **flux)
    assert (config.objective.timesteps, config.objective.shift) == ("uniform", 3.0)
    assert lines["weighting_scheme"].outcome == "idle"
    config, _ = look(sd3_checkbox=True, weighting_scheme="logit_normal", logit_mean=0.5, logit_std=2.0)
    assert (config.objective.timesteps, config.objective.logit_mean, config.objective.logit_std) == ("logit_normal", 0.5, 2.0)


def test_flags_that_nobody_knows_and_words_behind_none_are_said() -> None:
    _, lines = look(additional_parameters="--min_snr_gamma 5 --nonsense 3 stray words")
    why = lines["additional_parameters"].why
    assert "nonsense: sd-scripts 0.10.1 has no such argument." in why
    assert "2 words behind no flag" in why or "1 word behind no flag" in why


def test_fp8_as_precision_is_no_precision() -> None:
    config, lines = look(mixed_precision="fp8")
    assert (config.train.precision, lines["mixed_precision"].outcome) == (None, "unsupported")


def test_a_preset_does_not_depend_on_what_was_read_before() -> None:
    first = look(network_dim=4)
    look(network_dim=64, noise_offset=0.1)
    assert look(network_dim=4) == first


def test_values_out_of_range_are_left_out_and_said() -> None:
    config, lines = look(network_dim=0, train_batch_size=-1, noise_offset=7, num_processes=0, keep_tokens=-2)
    assert config.adapter.rank == 16
    assert (config.train.batch_size, config.objective.noise_offset, config.launch.num_processes) == (1, 0.0, 1)
    for key in ("network_dim", "train_batch_size", "noise_offset", "num_processes", "keep_tokens"):
        assert lines[key].outcome == "unsupported", key
        assert lines[key].why
