"""Keys of the GUI about where and how the trainer is started. Limner starts its own; nothing of these texts is carried out."""

from __future__ import annotations

from limner.config.files import shown
from limner.config.kohya.computing import BACKENDS, BLOCKS, OFF, OTHER
from limner.config.kohya.gui.form import Form

_EXTRA = "extra_accelerate_launch_args"
_FORM_THREADS = 2  # what the form begins with, whatever the machine
_USED_ELSEWHERE = {
    "model_list": "It is the list that the model was chosen from.",
    "model_name": "The page itself uses it.",
    "save_as_bool": "The page itself uses it.",
    "show_timesteps": "It only shows timesteps, and trains nothing.",
    "show_timesteps_resolution": "It only shows timesteps, and trains nothing.",
    "conv_dims": "The GUI does not read it either.",
    "conv_alphas": "The GUI does not read it either.",
    "full_path": "It is about files that kohya makes on the way.",
    "batch_size": "It is about files that kohya makes on the way; the training has train_batch_size.",
    "use_latent_files": "It is about files that kohya makes on the way; Limner's cache is memory.cache_latents.",
    "generate_image_buckets": "Limner sorts pictures into buckets by itself.",
    "create_buckets": "Limner sorts pictures into buckets by itself.",
    "latent_metadata_filename": "It is about files that kohya makes on the way.",
}
KEYS = (
    "num_processes", "multi_gpu", "num_machines", "num_cpu_threads_per_process", "gpu_ids", "main_process_port",
    "dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic", _EXTRA, "huggingface_token",
    "wandb_api_key", "resume_from_huggingface", "train_inpainting", *_USED_ELSEWHERE,
)  # fmt: skip
"""The keys that `read_launch` accounts for."""


def read_launch(form: Form) -> None:
    """Account for them, and take the number of processes and threads."""
    _counts(form)
    _started_otherwise(form)
    _tokens(form)
    if form.raw.get("resume_from_huggingface") is False:
        form.idle("resume_from_huggingface", "It is off.")
    elif form.text("resume_from_huggingface") is not None:
        form.refuse("resume_from_huggingface", "Fetch the files first; kohya cannot resume from it either.")
    if (ticked := form.flag("train_inpainting")) is not None:
        if ticked:
            form.refuse("train_inpainting", "Limner trains no inpainting models.")
        else:
            form.idle("train_inpainting", "It is not ticked.")
    for key, why in _USED_ELSEWHERE.items():
        if key in form.raw:
            form.idle(key, why)


def _started_otherwise(form: Form) -> None:
    if gpus := form.text("gpu_ids"):
        form.refuse("gpu_ids", f"Start Limner with CUDA_VISIBLE_DEVICES={shown(gpus)} in its environment.")
    if (port := form.number("main_process_port", whole=True)) is not None:
        form.idle("main_process_port", "0 is off." if port == 0 else "Limner takes a free port by itself.")
    _compiling(form)
    if form.text(_EXTRA) is not None:
        form.refuse(_EXTRA, "They are for accelerate's own command, which Limner makes itself; nothing of it is carried out.")


def _compiling(form: Form) -> None:
    """The panel's Dynamo options, which there compile the whole model."""
    backend, mode = (form.text("dynamo_backend") or "no").lower(), form.text("dynamo_mode")
    flags = {name: form.flag(f"dynamo_{name}") for name in ("use_fullgraph", "use_dynamic")}
    if backend not in BACKENDS:
        if backend != "no":
            form.refuse("dynamo_backend", OTHER)
        for key in ("dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic"):
            if key in form.raw and key not in form.report.lines:
                form.idle(key, OFF)
        return
    form.set("speed.compile", "blocks")
    form.set("speed.compile_backend", backend)
    form.convert("dynamo_backend", "speed.compile", "speed.compile_backend", why=BLOCKS)
    if mode in ("default", "reduce-overhead", "max-autotune"):
        form.set("speed.compile_mode", mode)
        form.take("dynamo_mode", "speed.compile_mode")
    elif mode is not None:
        form.refuse("dynamo_mode", "There is no such mode: see speed.compile_mode.")
    for name, value in flags.items():
        if value is not None:
            option = f"speed.compile_{name.removeprefix('use_')}"
            form.set(option, value)
            form.take(f"dynamo_{name}", option)


def _tokens(form: Form) -> None:
    for key, place in (("huggingface_token", "HF_TOKEN"), ("wandb_api_key", "WANDB_API_KEY")):
        if form.text(key) is not None:
            form.refuse(key, f"Tokens are never written into a configuration; set {place} in the environment.")


def _counts(form: Form) -> None:
    processes = form.number("num_processes", whole=True)
    if processes is not None and 1 <= processes <= 1024:
        form.set("launch.num_processes", processes)
        form.take("num_processes", "launch.num_processes")
    elif processes is not None:
        form.refuse("num_processes", f"{shown(processes)} is not from 1 to 1024; it was left out.")
    if (several := form.flag("multi_gpu")) is not None:
        why = "It is not ticked." if not several else "launch.num_processes alone says how many GPUs are used."
        form.idle("multi_gpu", why)
    if (machines := form.number("num_machines", whole=True)) is not None:
        if machines > 1:
            form.refuse("num_machines", "Limner trains on one machine.")
        else:
            form.idle("num_machines", "One machine is what Limner uses.")
    threads = form.number("num_cpu_threads_per_process", whole=True)
    if threads == _FORM_THREADS:
        form.idle("num_cpu_threads_per_process", "2 is what the form begins with; PyTorch chooses for this machine.")
    elif threads is not None and 1 <= threads <= 4096:
        form.set("launch.num_threads", threads)
        form.take("num_cpu_threads_per_process", "launch.num_threads")
    elif threads is not None:
        form.refuse("num_cpu_threads_per_process", f"{shown(threads)} is not from 1 to 4096; it was left out.")
