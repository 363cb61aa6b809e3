"""Everything that can be known before the start, found all at once and without importing torch.

Each check is `(Config, Machine, records) -> Iterable[Finding]`; what needs the base model or the scan gets them in records.
"""

from __future__ import annotations

import importlib.util
import netrc
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from limner import disk, runs
from limner.config import Config, Lora, defaults
from limner.config.fields import applies, condition_words, values
from limner.config.prompts import all_prompts
from limner.data.dataset import Dataset, assemble, bucket_rule
from limner.data.decode import decode
from limner.data.scan import Scan, scan
from limner.errors import Finding, UserError
from limner.formats.base import T5_SOURCE, Base, base_of
from limner.formats.footprint import Footprint, footprint, num_trained
from limner.formats.known import FAMILIES
from limner.formats.single import is_pickled
from limner.formats.suited import unsuited, unsuited_prompts
from limner.machine import Machine

_RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


@dataclass
class Records:
    """What the checks share: the recognised base model, the scanned pictures, what weights weigh; None where they could not
    be had."""

    base: Base | None = None
    scan: Scan | None = None
    dataset: Dataset | None = None
    footprint: Footprint | None = None
    deep: bool = False
    may_follow: Callable[[str], bool] | None = None


Check = Callable[[Config, Machine | None, Records], Iterable[Finding]]


def examine(
    config: Config, machine: Machine | None, *, deep: bool = False, may_follow: Callable[[str], bool] | None = None
) -> tuple[list[Finding], Records]:
    """All findings, errors first, and what was learnt on the way. `deep` decodes every picture; links among the pictures for
    which `may_follow` is false are errors.

    Of a machine that is not known (yet), nothing is said.
    """
    records, findings = Records(deep=deep, may_follow=may_follow), []
    for check in CHECKS:
        try:
            findings += check(config, machine, records)
        except UserError as error:
            findings += error.findings
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda f: order.index(f.severity)), records


def check_base(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    section = config.model
    if section.config is not None and not os.path.isdir(section.config):
        yield Finding("model.config", f"{section.config} is not a folder.", "Give a diffusers folder with configuration files.")
        return
    records.base = base = base_of(section)
    if base.path is None:
        yield Finding(
            "model.base", f"{section.base} is not on this machine; it will be fetched from the Hugging Face hub.", "", "note"
        )
    if section.revision is not None and (base.layout == "file" or Path(section.base).exists()):
        yield Finding("model.revision", "has no effect on a local model.", "Remove it.", "warning")
    if section.config is not None and base.layout == "folder":
        yield Finding("model.config", "has no effect on a diffusers folder.", "Remove it.", "warning")
    wanted = config.objective.prediction
    if not base.is_prediction_known and wanted is None:
        said = f"{section.base} does not say what it predicts; {base.prediction} is assumed."
        remedy = 'Set "epsilon" or "v_prediction"; with the wrong one nothing is learnt.'
        yield Finding("objective.prediction", said, remedy, "warning")
    elif wanted is not None and base.is_prediction_known and base.prediction != "flow" and wanted != base.prediction:
        said = f"{wanted} is asked for, the model says {base.prediction}."
        yield Finding("objective.prediction", said, "Remove the line unless the model's own setting is wrong.", "warning")


def check_parts(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """Which files the base model's parts are taken from."""
    del machine
    section, base = config.model, records.base
    if base is None or base.path is None:
        return
    if any(is_pickled(p) for p in (base.path, *base.others.values())):
        said = "a pickled file can hold code: Limner reads its numbers and runs none of it, other programs may."
        yield Finding("model.base", said, "Use the .safetensors version where there is one.", "warning")
    for name, path in base.others.items():
        option = f"model.{FAMILIES[base.family].parts[name].option}"
        if getattr(section, option.removeprefix("model.")) is None:
            yield Finding(option, f"{path} is taken, which lies beside the model.", "", "note")
    for part in (FAMILIES[base.family].parts[name] for name in base.absent):
        said = f"no {part.title} was found; the model is trained without it."
        severity = "note" if part.option == "t5" else "warning"
        yield Finding(f"model.{part.option}", said, "Give its file to train with it.", severity)
    if base.t5 and base.t5_tokenizer is None:
        said = f"T5's tokenizer is not on this machine; it will be fetched from the Hugging Face hub ({T5_SOURCE})."
        yield Finding("model.t5_tokenizer", said, "", "note")
    if section.t5_tokenizer is not None and not base.t5:
        yield Finding("model.t5_tokenizer", "has no effect: this model has no T5.", "Remove it.", "warning")


def check_pictures(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    records.scan = found = scan(config.data, records.may_follow)
    if config.data.skip_broken:
        for finding in found.broken[:50]:
            yield Finding(finding.field, f"{finding.message} It will be skipped.", "", "warning")
    else:
        yield from found.broken[:50]
    if len(found.broken) > 50:
        severity = "warning" if config.data.skip_broken else "error"
        said = f"{len(found.broken) - 50} more files are broken."
        yield Finding("data.path", said, "Mend or remove those above first.", severity)
    if found.num_barred and config.data.skip_broken:  # the trainer, which knows no allowed folders, would follow them
        said = f"{found.num_barred} links among the pictures lead outside the allowed folders."
        yield Finding("data.path", said, "Put the files themselves there, or remove the links.")
    if not found.pictures:
        yield Finding("data.path", f"{config.data.path} holds no usable picture.", "Put .png, .jpg, .webp or .bmp files there.")
    yield from found.warnings


def check_depth(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """Decode every picture, if asked to."""
    del machine
    if not records.deep or records.scan is None:
        return
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for finding in filter(None, pool.map(_fault, (p.path for p in records.scan.pictures))):
            yield replace(finding, severity="warning", remedy="It will be skipped.") if config.data.skip_broken else finding


def _fault(path: str) -> Finding | None:
    try:
        decode(path)
    except UserError as error:
        return error.findings[0]
    return None


def check_buckets(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    if records.base is None:
        return
    data, rule, family_step = config.data, bucket_rule(config, records.base), records.base.bucket_step_px
    if rule.resolution < rule.step:
        yield Finding(
            "data.resolution", f"{rule.resolution} is less than a bucket step of {rule.step}.", f"Use at least {rule.step}."
        )
        return
    if rule.step % records.base.latent_factor:
        said = f"{rule.step} is not a multiple of {records.base.latent_factor}, the factor of this model's VAE."
        yield Finding("data.bucket_step_px", said, f"Use {family_step}.")
        return
    if rule.step % family_step:
        said = f"{rule.step} is not a multiple of {family_step}; pictures of odd sizes train less well."
        if records.base.prediction == "flow":  # its transformer looks at patches of 2x2 latents
            yield Finding("data.bucket_step_px", f"{rule.step} is not a multiple of {family_step}.", f"Use {family_step}.")
            return
        yield Finding("data.bucket_step_px", said, f"Use {family_step}.", "warning")
    if data.buckets and not (rule.minimum <= rule.resolution <= rule.maximum):
        said = f"the resolution {rule.resolution} lies outside {rule.minimum}..{rule.maximum}."
        yield Finding("data.bucket_min_px", said, "Make bucket_min_px smaller or bucket_max_px larger.")
        return
    if records.scan is None or not records.scan.pictures:
        return
    records.dataset = assemble(config, records.base, records.scan.pictures)
    longest, limit = max(max(size) for size in records.dataset.bucket_counts()), records.base.max_side_px
    if limit is not None and longest > limit:
        said = f"a bucket has a side of {longest} px, this model has places for {limit}."
        yield Finding("data.resolution", said, "Use a lower resolution, or a lower bucket_max_px.")
    small = [p.path for p in records.scan.pictures if p.width * p.height < rule.resolution**2 / 4]
    if small and data.upscale:
        said = (
            f"{len(small)} pictures are less than half the resolution and will be blurred, the first is {Path(small[0]).name}."
        )
        yield Finding("data.resolution", said, "Use larger pictures or a lower resolution.", "warning")


def check_length(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    if config.train.steps is not None and config.train.epochs is not None:
        yield Finding("train.epochs", "both steps and epochs are given.", "Remove one of them.")
    if records.dataset is None:
        return
    total, optimizer = records.dataset.total_steps, config.optimizer
    if optimizer.warmup_steps >= total:
        said = f"the warm-up of {optimizer.warmup_steps} steps is as long as the whole training of {total}."
        yield Finding("optimizer.warmup_steps", said, "Make it shorter.")
    epochs = records.dataset.order.epoch_of(total)
    for field, every, length, unit in (
        ("output.save_every_steps", config.output.save_every_steps, total, "steps"),
        ("sample.every_steps", config.sample.every_steps, total, "steps"),
        ("output.save_every_epochs", config.output.save_every_epochs, epochs, "epochs"),
        ("sample.every_epochs", config.sample.every_epochs, epochs, "epochs"),
    ):
        if every is not None and every > length:
            said = f"{every} is more than the {length} {unit} of the run, so it never happens."
            yield Finding(field, said, "Make it smaller.", "warning")


def check_idle(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """What is set but has no effect, because what it depends on is not (see `when` in the schema)."""
    del machine, records
    for option, value in values(config):
        if value != option.default and not applies(option, config):
            said = f"has no effect unless {condition_words(option.when)}."
            yield Finding(option.path, said, "Change that, or remove this.", "warning")


def check_adapter(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine, records
    adapter = config.adapter
    if not adapter.denoiser and not adapter.text_encoder:
        yield Finding("adapter.denoiser", "nothing is trained.", "Set adapter.denoiser or adapter.text_encoder to true.")
    if isinstance(adapter, Lora) and adapter.dora and config.output.lora_names == "diffusers":
        said = "diffusers means another norm by DoRA's magnitudes than A1111 and ComfyUI."
        yield Finding("output.lora_names", said, 'Set it to "kohya", or adapter.dora = false.')
    if adapter.text_encoder and config.memory.cache_text:
        said = "captions are not cached while the text encoder is trained."
        yield Finding("memory.cache_text", said, "", "note")


def check_memory(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """What is stored otherwise, or elsewhere."""
    del records
    memory, adapter = config.memory, config.adapter
    if memory.quantize != "off":
        if adapter.trains_base:
            yield Finding("memory.quantize", "the model itself is trained, which needs whole numbers.", 'Set it to "off".')
        if isinstance(adapter, Lora) and adapter.dora:
            yield Finding(
                "memory.quantize", "DoRA needs the layers' whole weights.", 'Set it to "off", or adapter.dora = false.'
            )
    if memory.swap_blocks:
        if adapter.trains_base:
            yield Finding("memory.swap_blocks", "the model itself is trained; only frozen weights are swapped.", "Set it to 0.")
        if not memory.checkpointing or memory.checkpoint_every != 1:
            said = "without computing every layer again, all weights would stay on the device for the backward pass."
            yield Finding("memory.swap_blocks", said, "Set memory.checkpointing = true and memory.checkpoint_every = 1.")
        if machine is not None and (config.launch.device or machine.best().kind) != "cuda":
            yield Finding("memory.swap_blocks", "there is no GPU to swap to.", "Set it to 0.")


def check_family(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    if records.base is not None and records.base.path is not None:
        yield from unsuited(config, records.base)


def check_preservation(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine, records
    if config.objective.preserve == "off":
        return
    if config.adapter.trains_base:
        said = "needs the base model beside the trained one, and the base model itself is trained."
        yield Finding("objective.preserve", said, 'Set it to "off", or adapter.kind = "lora".')
    if config.adapter.text_encoder:
        yield Finding(
            "objective.preserve", "does not work while the text encoder is trained.", "Set adapter.text_encoder = false."
        )
    if not config.data.trigger:
        yield Finding("data.trigger", "is needed by objective.preserve.", "Set it to the word that the captions use.")
    if not config.data.class_words:
        yield Finding("data.class_words", "are needed by objective.preserve.", 'Set them, for example ["dog"] for your dog.')


def check_device(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del records
    if machine is None:
        return
    device = config.launch.device or machine.best().kind
    facts = machine.first(device)
    if facts is None:
        said = f"this machine has no {device} that torch {machine.torch} (built for {machine.torch_build}) can use."
        yield Finding("launch.device", said, "Remove the line, or see `limner doctor`.")
        return
    if machine.gpu_without_torch and device == "cpu" and config.launch.device is None:
        said = f"there is a {machine.gpu_without_torch}, but torch {machine.torch} is a CPU build."
        yield Finding("launch.device", said, "Install a CUDA build of torch; the README says how.", "warning")
    precision = defaults.precision(config, device, facts.bf16)
    if precision == "fp16" and device == "cpu":
        yield Finding("train.precision", "fp16 is hundreds of times slower than fp32 on a CPU.", 'Use "bf16" or "fp32".')
    if precision == "bf16" and not facts.bf16:
        yield Finding("train.precision", f"{facts.name} has no bf16.", 'Use "fp16" or "fp32".')
    count = config.launch.num_processes
    if device == "cpu" and count > machine.cores:
        yield Finding("launch.num_processes", f"{count} processes on {machine.cores} cores.", f"Use at most {machine.cores}.")
    if device != "cpu" and count > machine.count(device):
        said = f"{count} processes, but {machine.count(device)} {device} device{'s' * (machine.count(device) != 1)}."
        yield Finding("launch.num_processes", said, f"Use at most {machine.count(device)}.")


def check_weights(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """Whether the weights alone fit on the device."""
    base = records.base
    if base is None or base.path is None or machine is None:
        return
    facts = machine.first(config.launch.device or machine.best().kind)
    if facts is None or not facts.memory_mib:
        return
    records.footprint = weighed = footprint(config, base, defaults.precision(config, facts.kind, facts.bf16))
    if base.t5 and (config.adapter.text_encoder or not config.memory.cache_text):
        said = f"all text encoders stay in memory beside the denoiser, T5 among them: {weighed.text_mib} MiB."
        yield Finding("memory.cache_text", said, "Leave the text encoders untrained and cache_text on.", "warning")
    if weighed.most_mib > facts.memory_mib and not config.memory.swap_blocks:
        said = f"the weights alone take {weighed.most_mib} MiB, {facts.name} has {facts.memory_mib}."
        remedy = "Set memory.quantize (fp8 or nf4), memory.swap_blocks, or a lower adapter.rank."
        yield Finding("model.base", said, remedy, "warning")


def check_prompts(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    section = config.sample
    resolution, step = (records.base.resolution_px, records.base.bucket_step_px) if records.base else (512, 64)
    prompts = all_prompts(config, config.data.resolution or resolution, step)
    if records.base is not None and records.base.path is not None:
        yield from islice(unsuited_prompts(prompts, records.base, section), 20)
    asked = section.every_steps is not None or section.every_epochs is not None or section.at_start
    if asked and not prompts:
        yield Finding(
            "sample.prompts", "pictures are to be painted, but there is no prompt.", 'Set sample.prompts = ["..."].', "warning"
        )


def check_logging(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """Trackers that are asked for: whether they are installed, and would be let in."""
    del machine, records
    section = config.logging
    if not section.trackers:
        return
    for name in section.trackers:
        if importlib.util.find_spec(name) is None:
            yield Finding("logging.trackers", f"{name} is not installed.", f'Run: pip install "limner[{name}]"')
    if "wandb" in section.trackers and not _wandb_has_key():
        said = "wandb has no key and is not offline."
        remedy = (
            "Set WANDB_API_KEY (and WANDB_BASE_URL for a server of your own), run `wandb login`, or set WANDB_MODE=offline."
        )
        yield Finding("logging.trackers", said, remedy)
    if not section.project.strip() or len(section.project) > 128 or set(section.project) & set("/\\#?%:\n\t"):
        said = f"{section.project!r} cannot be a project's name."
        yield Finding("logging.project", said, "Use 1 to 128 characters, none of them / \\ # ? % :")


def _wandb_has_key() -> bool:
    """Whether wandb needs no key, or would find one where it looks for it."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    logins = os.environ.get("NETRC") or "~/.netrc"
    try:
        return netrc.netrc(Path(logins).expanduser()).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False


def check_output(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """Names that work everywhere, folders that can be written, space for what will be."""
    del machine
    name = config.output.name
    if not name.strip() or name in (".", "..") or name != name.strip() or name.endswith("."):
        yield Finding("output.name", f"{name!r} cannot be a file name.", "Use letters and digits.")
    elif any(c in name for c in '/\\:*?"<>|$`\n\t') or name.split(".")[0].lower() in _RESERVED or name.startswith((".", "-")):
        yield Finding("output.name", f"{name!r} cannot be a file name on every system.", "Use letters, digits, - and _.")
    elif len(os.fsencode(name)) > 200:
        yield Finding("output.name", f"is {len(os.fsencode(name))} bytes long.", "Use at most 200 bytes.")
    yield from _already_there(config)
    for field, folder in (
        ("output.path", config.output.path),
        ("memory.cache_path", config.memory.cache_path),
        ("LIMNER_HOME", runs.home()),
    ):
        if folder is not None:
            yield from _writable(field, folder)
    needed = _needed_mib(config, records)
    free = disk.free_bytes(config.output.path or runs.home()) >> 20
    if free < needed:
        yield Finding(
            "output.path", f"{free} MiB are free, about {needed} MiB are needed.", "Free some space, or choose another disk."
        )


def _already_there(config: Config) -> Iterable[Finding]:
    """What lies where the finished files shall go, if they go to a folder of the user's."""
    if config.output.path is None:
        return
    makes_folder = config.adapter.trains_base and config.output.layout == "diffusers"
    target = config.output.path / (config.output.name + ("" if makes_folder else ".safetensors"))
    if not os.path.lexists(target):
        return
    if target.is_dir() and (not makes_folder or not (target / disk.MANIFEST).is_file()):
        yield Finding("output.name", f"{target} is a folder that Limner did not write.", "Choose another name.")
    else:
        yield Finding("output.name", f"{target} exists and will be replaced.", "Choose another name to keep it.", "warning")


def _writable(field: str, folder: Path) -> Iterable[Finding]:
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))  # the rest is made when it is needed
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=disk.TEMPORARY):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield Finding(field, f"{folder} cannot be written ({reason}).", "Choose another folder, or change its permissions.")


def _needed_mib(config: Config, records: Records) -> int:
    """About how much the run writes, in MiB: caches, three training states at the peak, the finished file."""
    base, pictures = records.base, len(records.scan.pictures) if records.scan else 0
    if base is None or base.path is None:
        return 200
    side = (config.data.resolution or base.resolution_px) // base.latent_factor
    text = 512 * 4096 if base.prediction == "flow" else (75 * config.model.text_chunks + 2) * 2048
    variants = 2 if config.data.flip else 1
    caches = pictures * 4 * (variants * 2 * base.latent_channels * side**2 + text)
    trained = num_trained(config, base)
    # weights and two moments in float32, and the finished file
    return (caches + trained * (3 * 12 + 4)) // 2**20 + 50


CHECKS: tuple[Check, ...] = (
    check_base,
    check_parts,
    check_pictures,
    check_depth,
    check_buckets,
    check_length,
    check_idle,
    check_adapter,
    check_memory,
    check_family,
    check_preservation,
    check_device,
    check_weights,
    check_prompts,
    check_logging,
    check_output,
)
