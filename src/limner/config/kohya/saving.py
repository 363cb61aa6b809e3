"""What is saved, painted and told on the way <-> [output], [sample] and [logging], where it is not the same by another name."""

from __future__ import annotations

from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer
from limner.config.sample import own_solver

ARGUMENTS = (
    "save_precision", "save_model_as", "save_last_n_steps", "save_last_n_epochs", "save_last_n_steps_state",
    "save_last_n_epochs_state", "save_state", "save_state_on_train_end", "metadata_tags", "log_with", "logging_dir",
    "sample_prompts", "sample_sampler", "seed", "use_safetensors", "output_dir",
)  # fmt: skip
OPTIONS = (
    "output.dtype", "output.layout", "output.keep_last", "output.state_every_steps", "output.tags", "logging.trackers",
    "sample.prompts", "sample.prompt_file", "sample.solver", "sample.negative", "sample.width", "sample.height", "sample.steps",
    "sample.guidance", "sample.seed", "train.seed", "output.path",
)  # fmt: skip
_TYPES = {"float": "fp32", "fp16": "fp16", "bf16": "bf16"}
_DIFFUSERS = ("diffusers", "diffusers_safetensors")
_USUAL_PAINTING = {"flux": {"steps": 20}, "": {"steps": 30, "guidance": 7.5}}
"""What sd-scripts takes where a prompt does not say it; pictures are 512 x 512 then."""


def read(r: Reader) -> None:
    """Set what is saved, painted and told."""
    seed = r.integer("seed")
    if seed is not None:
        r.take("seed", {"train.seed": seed})
    _read_files(r)
    _read_states(r)
    _read_trackers(r)
    _read_prompts(r)


def _read_files(r: Reader) -> None:
    folder = r.text("output_dir")
    if folder:
        r.take("output_dir", {"output.path": folder})
    precision = r.text("save_precision")
    if precision is not None:
        r.take("save_precision", {"output.dtype": _TYPES.get(precision, precision)})
    elif r.complete and r.kind not in ("none",):
        r.put("output.dtype", "fp32")  # as it was trained
    form = (r.text("save_model_as") or "").strip()
    if form in _DIFFUSERS and r.kind == "none":
        r.take("save_model_as", {"output.layout": "diffusers"})
    elif form in ("safetensors", "diffusers_safetensors"):
        r.idle("save_model_as", "Files are safetensors in any case.")
    elif form:
        r.account("save_model_as", "converted", why="Files are always safetensors, which nothing is executed of.") if (
            r.has("save_model_as")
        ) else None
    tags = r.text("metadata_tags")
    if tags:
        r.take("metadata_tags", {"output.tags": [t.strip() for t in tags.split(",") if t.strip()]})
    r.idle("use_safetensors", "Files are safetensors in any case.")


def _read_states(r: Reader) -> None:
    every_steps, every_epochs = r.integer("save_every_n_steps"), r.integer("save_every_n_epochs")
    steps, epochs = r.integer("save_last_n_steps"), r.integer("save_last_n_epochs")
    if epochs is not None and every_epochs:
        r.take("save_last_n_epochs", {"output.keep_last": max(1, epochs)})
    else:
        r.idle("save_last_n_epochs", "Nothing is saved at epochs.")
    if steps is None or not every_steps:
        r.idle("save_last_n_steps", "Nothing is saved at steps.")
    elif r.value("output.keep_last") is not None:
        r.unsupported("save_last_n_steps", "There is one number for all, and save_last_n_epochs gives it.")
    else:
        r.take("save_last_n_steps", {"output.keep_last": steps // every_steps + 1}, "As a number of checkpoints.")
    for name in ("save_last_n_steps_state", "save_last_n_epochs_state"):
        r.idle(name, "The newest two training states are kept in any case.")
    for name in ("save_state", "save_state_on_train_end"):
        r.idle(name, "The training state is kept in any case; see output.state_every_steps.")


def _read_trackers(r: Reader) -> None:
    tracker = r.text("log_with")
    if tracker in ("wandb", "all"):
        r.take("log_with", {"logging.trackers": ["wandb"]})
    elif tracker is not None:
        r.idle("log_with", "TensorBoard files are written in any case.") if tracker == "tensorboard" else r.refuse(
            "log_with", "is not known."
        )
    r.idle("logging_dir", "TensorBoard files lie in the run's own folder.")


def _read_prompts(r: Reader) -> None:
    prompts = r.text("sample_prompts")
    if prompts:
        r.take("sample_prompts", {"sample.prompt_file": prompts})
        if r.complete:
            for name, value in {"width": 512, "height": 512, **_USUAL_PAINTING.get(r.family, _USUAL_PAINTING[""])}.items():
                r.put(f"sample.{name}", value)
    sampler = r.text("sample_sampler")
    if sampler is None:
        return
    if r.family in ("sd3", "flux"):
        r.idle("sample_sampler", "Flows are painted by Euler's method in any case.")
    elif r.fault("sample.solver", sampler):
        r.unsupported("sample_sampler", "Limner has ddim, euler, euler_a and dpmsolver++; ddim is taken.")
    else:
        r.take("sample_sampler", {"sample.solver": own_solver(sampler)})


def write(w: Writer) -> None:
    """The arguments of what is saved, painted and told."""
    w.put("seed", w.config.train.seed, "train.seed")
    _write_files(w)
    trackers = w.config.logging.trackers
    directory = w.facts.logging_dir
    if "wandb" in trackers:
        w.put("log_with", "all" if directory else "wandb", "logging.trackers")
    elif directory:
        w.put("log_with", "tensorboard", "logging.trackers")
    w.put("logging_dir", directory or None, "logging.trackers")
    if "trackio" in trackers:
        w.lose("logging.trackers", "sd-scripts does not know trackio.", "Remove it.", severity="warning")
    _write_prompts(w)


def _write_files(w: Writer) -> None:
    output, is_whole = w.config.output, w.config.adapter.kind == "none"
    w.put("output_dir", w.facts.output_dir or (None if output.path is None else str(output.path)), "output.path")
    w.put("save_precision", "float" if output.dtype == "fp32" else output.dtype, "output.dtype")
    if is_whole and output.layout == "diffusers" and w.family in ("sd3", "flux"):
        w.lose("output.layout", "sd-scripts writes this family as one file.")
    w.put(
        "save_model_as",
        "diffusers_safetensors" if is_whole and output.layout == "diffusers" else "safetensors",
        "output.layout",
    )
    w.put("metadata_tags", ",".join(output.tags), "output.tags")
    every_steps, every_epochs, keep = output.save_every_steps, output.save_every_epochs, output.keep_last
    w.put("save_state", bool(every_steps or every_epochs), "output.state_every_steps")
    if every_steps:
        w.put("save_last_n_steps_state", every_steps, "output.state_every_steps")
    if every_epochs:
        w.put("save_last_n_epochs_state", 2, "output.state_every_steps")
    if output.state_every_steps != 100:
        said = "sd-scripts saves training states with its checkpoints alone."
        w.lose("output.state_every_steps", said, "Set output.save_every_steps.", severity="warning")
    if keep is not None and every_epochs:
        w.put("save_last_n_epochs", keep, "output.keep_last")
    if keep is not None and every_steps:
        w.arguments["save_last_n_steps"] = (keep - 1) * every_steps
        if every_epochs:
            w.lose("output.keep_last", "sd-scripts keeps so many of each kind.", "Mind the space.", severity="warning")


def _write_prompts(w: Writer) -> None:
    sample = w.config.sample
    path = w.facts.sample_prompts or (None if sample.prompt_file is None else str(sample.prompt_file))
    w.put("sample_prompts", path, "sample.prompt_file")
    if sample.prompts and not w.facts.sample_prompts:
        w.lose("sample.prompts", "sd-scripts reads prompts from a file.", "Use sample.prompt_file.")
    elif path and not w.facts.sample_prompts:
        said = "What a prompt does not say is painted with sd-scripts' own sizes, steps and guidance."
        w.lose("sample.prompt_file", said, "Mind that pictures look otherwise.", severity="warning")
    if sample.solver is not None and w.family in ("sd3", "flux"):
        w.lose("sample.solver", "Flows are painted by Euler's method in any case.", severity="warning")
    elif sample.solver is not None:
        w.put("sample_sampler", "dpmsolver++" if sample.solver == "dpmpp_2m" else sample.solver, "sample.solver")
    if path and not (sample.every_steps or sample.every_epochs or sample.at_start):
        said = "sd-scripts does not paint at the end of its own accord."
        w.lose("sample.every_steps", said, "Set it, or sample.every_epochs.", severity="warning")
