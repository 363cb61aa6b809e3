"""Keys of the GUI about where and how the trainer is started. Limner starts its own; no text of these reaches its command."""

from __future__ import annotations

from collections.abc import Iterator

from limner.config.files import shown
from limner.config.kohya.computing import BACKENDS, BLOCKS, OFF, OTHER
from limner.config.kohya.gui.form import Form
from limner.config.launch import Launch, extra_words, gpus
from limner.errors import UserError

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
    """Account for them, and take the numbers of processes, machines and threads, and the GPUs."""
    _counts(form)
    _gpus(form)
    _extra(form)
    _compiling(form)
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
    _whole(form, "num_processes", "launch.num_processes", 1024)
    if (several := form.flag("multi_gpu")) is not None:
        why = "It is not ticked." if not several else "launch.num_processes alone says how many GPUs are used."
        form.idle("multi_gpu", why)
    _whole(form, "num_machines", "launch.num_machines", 1024)
    if (port := form.number("main_process_port", whole=True)) == 0:
        form.idle("main_process_port", "0 is off.")
    elif port is not None:
        _whole(form, "main_process_port", "launch.main_process_port", 65_000)
    threads = form.number("num_cpu_threads_per_process", whole=True)
    if threads == _FORM_THREADS:
        form.idle("num_cpu_threads_per_process", "2 is what the form begins with; PyTorch chooses for this machine.")
    else:
        _whole(form, "num_cpu_threads_per_process", "launch.num_threads", 4096)


def _whole(form: Form, key: str, option: str, most: int) -> None:
    """Take a number from 1 to `most`."""
    value = form.number(key, whole=True)
    if value is not None and 1 <= value <= most:
        form.set(option, value)
        form.take(key, option)
    elif value is not None:
        form.refuse(key, f"{shown(value)} is not from 1 to {most}; it was left out.")


def _gpus(form: Form) -> None:
    text = form.text("gpu_ids")
    if text is None:
        return
    try:
        chosen = gpus(Launch(gpu_ids=text))
    except (ValueError, UserError):
        form.refuse("gpu_ids", f"{shown(text)} is no list of GPUs; it was left out.")
        return
    if chosen is None:
        form.idle("gpu_ids", "All are used where nothing is said.")
    else:
        form.set("launch.gpu_ids", ",".join(map(str, chosen)))
        form.take("gpu_ids", "launch.gpu_ids")


_OPTIONS = {
    "num_processes": "num_processes", "num_machines": "num_machines", "machine_rank": "machine_rank",
    "main_process_ip": "main_process_ip", "main_process_port": "main_process_port", "gpu_ids": "gpu_ids",
    "num_cpu_threads_per_process": "num_threads",
}  # fmt: skip
"""Arguments of `accelerate launch` -> the option of [launch] that is the same."""


def _extra(form: Form) -> None:
    """Take what is an option, or among the arguments that are let through; nothing else is carried out."""
    text = form.text(_EXTRA)
    if text is None:
        return
    taken, let_through, left = list[str](), list[str](), list[str]()
    for name, value in _arguments(text):
        option = _OPTIONS.get(name)
        try:
            if option is not None:
                typed = int(value) if option not in ("main_process_ip", "gpu_ids") else value
                Launch.model_validate({option: typed})
                form.set(f"launch.{option}", typed)
                taken.append(f"launch.{option}")
            else:
                word = f"--{name}" + (f"={value}" if value else "")
                let_through += extra_words(Launch(extra=(word,)))
        except (ValueError, UserError):
            left.append(name)
    if let_through:
        form.set("launch.extra", let_through)
        taken.append("launch.extra")
    if left:
        named = ", ".join(shown(name) for name in dict.fromkeys(left))
        form.refuse(_EXTRA, f"They are for accelerate's own command, which Limner makes itself; left out: {named}.")
    else:
        form.convert(_EXTRA, *taken, why="Each of them by itself.")


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    """(name, value) of each argument in a text; a word that belongs to none is a name of its own."""
    name = ""
    for word in text.replace('"', " ").replace("'", " ").split():
        if word.startswith("--"):
            if name:
                yield name, ""
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if equals:
                yield name, value
                name = ""
        else:
            yield (name, word) if name else (word, "")
            name = ""
    if name:
        yield name, ""
