"""A checkout that behaves as sd-scripts does, made anew for a test: real processes, real argparse, real tqdm; no torch.

Its scripts say what those of 0.10 say and write files of the same names at the same moments. What goes wrong is told by
`trouble.txt` in the checkout. Its launcher stands in for accelerate's: started from the checkout, it is found first.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

import headers
from limner import disk, machine, runs, settings
from limner.config import Config, files
from limner.config.kohya import scripts
from limner.machine import Device, Machine

CPU = Machine("2.13.0", "cpu", (Device("cpu", "x86", 16_000, True),), 2, 16_000, "")

_LAUNCHER = """
import argparse, json, os, subprocess, sys
parser = argparse.ArgumentParser()
for name in ("num_processes", "num_machines", "num_cpu_threads_per_process"):
    parser.add_argument(f"--{name}", type=int)
parser.add_argument("--mixed_precision")
parser.add_argument("--dynamo_backend")
parser.add_argument("--cpu", action="store_true")
parser.add_argument("--multi_gpu", action="store_true")
parser.add_argument("script")
parser.add_argument("rest", nargs=argparse.REMAINDER)
args = parser.parse_args()
with open("launched.json", "w") as file:
    json.dump([sys.argv[1:], os.getcwd()], file)
command = [sys.executable, args.script, *args.rest]
code = subprocess.call(command)
if code:
    raise subprocess.CalledProcessError(returncode=code, cmd=command)
"""

_LIBRARY = """
def int_or_float(value):
    return float(value) if "." in value else int(value)

def add_sd_models_arguments(parser):
    parser.add_argument("--v2", action="store_true", help="a help text " "in two pieces")
    parser.add_argument("--pretrained_model_name_or_path", type=str, default=None)

def add_dataset_arguments(parser, support_dreambooth, support_caption):
    parser.add_argument("--dataset_config", type=str, default=None)
    if support_dreambooth:
        parser.add_argument("--reg_data_dir", type=str)
    if support_caption:
        parser.add_argument("--in_json", type=str)

def add_training_arguments(parser, support_dreambooth):
    for_all(parser)
    parser.add_argument("--save_precision", type=str, default=None, choices=[None, "float", "fp16", "bf16"])
    parser.add_argument("--mixed_precision", type=str, default="no", choices=["no", "fp16", "bf16"])
    parser.add_argument("--lr_warmup_steps", type=int_or_float, default=0)
    parser.add_argument("--optimizer_args", type=str, default=None, nargs="*")
    parser.add_argument("--console_log_simple", action="store_true")

    add_many_arguments(parser)

def for_all(parser):
    for_texts(parser)
    parser.add_argument("--config_file", type=str, default=None)
    parser.add_argument("--max_train_steps", type=int, default=1600)
    parser.add_argument("--max_train_epochs", type=int)
    parser.add_argument("--save_every_n_steps", type=int)
    parser.add_argument("--sample_every_n_steps", type=int)
    parser.add_argument("--train_batch_size", type=int, default=1)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--learning_rate", type=float, default=2.0e-6)
    parser.add_argument("--save_state", action="store_true")

def for_texts(parser):
    parser.add_argument("--output_dir", type=str)
    parser.add_argument("--output_name", type=str)
    parser.add_argument("--sample_prompts", type=str)
    parser.add_argument("--resume", type=str)
    parser.add_argument("--logging_dir", type=str)
    parser.add_argument("--metadata_title", type=str)
    parser.add_argument("--lr_scheduler", type=str, default="constant")
    parser.add_argument("--optimizer_type", "--optimizer-type", type=str, default="")
"""

_NETWORK = """
import argparse, os, signal, struct, sys, time, json, tomllib, zipfile, zlib
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import library.train_util as train_util
from library import train_util as again
from library.train_util import add_training_arguments
from tqdm import tqdm


def setup_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    train_util.add_sd_models_arguments(parser)
    again.add_dataset_arguments(parser, True, False)
    add_training_arguments(parser, True)
    parser.add_argument("--network_module", type=str, default=None)
    parser.add_argument("--network_dim", type=int, default=None)
    parser.add_argument("--network_train_unet_only", action="store_true")
    parser.add_argument("--save_model_as", type=str, default="safetensors", choices=[None, "ckpt", "pt", "safetensors"])
    parser.add_argument("--initial_step", type=int, default=None)
    parser.add_argument("--skip_until_initial_step", action="store_true")
    return parser


def picture(path):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\\0abc")) + chunk(b"IEND", b"")
    with open(path, "wb") as file:
        file.write(b"\\x89PNG\\r\\n\\x1a\\n" + body)


def weights(path, pause=0.0):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    head = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head + b"0" * 8)
        file.flush()
        time.sleep(pause)
        file.write(b"0" * 8)


def state(folder, step):
    os.makedirs(folder, exist_ok=True)
    weights(os.path.join(folder, "model.safetensors"))
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        with zipfile.ZipFile(os.path.join(folder, name), "w") as file:
            file.writestr("data.pkl", "x")
    with open(os.path.join(folder, "train_state.json"), "w") as file:
        json.dump({"current_epoch": 1, "current_step": step}, file)


def log(words):
    print(words, file=sys.stderr)


def train(args, trouble, batches=10):
    if "ignore" in trouble:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
    log("caching latents...")
    for _ in tqdm(range(3)):
        time.sleep(0.01)
    if "crash early" in trouble:
        raise ValueError("no such model: \\u732b")
    if "silent" in trouble:
        return
    print("running training / \\u5b66\\u7fd2\\u958b\\u59cb")
    print(f"  num batches per epoch / 1epoch\\u306e\\u30d0\\u30c3\\u30c1\\u6570: {batches}")
    initial, epoch = 0, 0
    if getattr(args, "initial_step", None):
        assert os.path.isfile(os.path.join(args.resume, "optimizer.bin"))
        epoch = args.initial_step // batches
        initial = args.initial_step % batches if args.skip_until_initial_step else 0
    step = initial
    prompts = json.load(open(args.sample_prompts)) if args.sample_prompts else []
    bar = tqdm(range(args.max_train_steps - initial), smoothing=0, desc="steps")
    last_epoch = -(-args.max_train_steps // batches)
    while epoch < last_epoch:
        print(f"\\nepoch {epoch + 1}/{last_epoch}\\n")
        epoch += 1
        for _ in range(step % batches, batches):
            time.sleep(float(trouble[5:]) if trouble.startswith("slow 0") else 0.002)
            if "crash late" in trouble and step == 7:
                raise RuntimeError("Error(s) in loading state_dict for UNet:\\n\\tsize mismatch for conv_in")
            bar.update(1)
            step += 1
            if args.sample_every_n_steps and step % args.sample_every_n_steps == 0:
                log("generating sample images at step / \\u30b5\\u30f3\\u30d7\\u30eb\\u753b\\u50cf\\u751f\\u6210: " + str(step))
                for i, prompt in enumerate(prompts):
                    list(tqdm(range(2)))
                    stamp = time.strftime("%Y%m%d%H%M%S")
                    picture(f"{args.output_dir}/sample/{args.output_name}_{step:06d}_{i:02d}_{stamp}_{prompt['seed']}.png")
            if args.save_every_n_steps and step % args.save_every_n_steps == 0:
                path = os.path.join(args.output_dir, f"{args.output_name}-step{step:08d}.safetensors")
                print(f"\\nsaving checkpoint: {path}", flush=True)
                weights(path, 60.0 if "hang" in trouble else 1.0 if "slow save" in trouble else 0.0)
                if args.save_state:
                    log(f"saving state at step {step}")
                    state(os.path.join(args.output_dir, f"{args.output_name}-step{step:08d}-state"), step)
                before = step - 2 * args.save_every_n_steps
                old = os.path.join(args.output_dir, f"{args.output_name}-step{before:08d}.safetensors")
                if "keep" in trouble and os.path.exists(old):
                    print("removing old checkpoint: " + old)
                    os.remove(old)
            bar.set_postfix(avr_loss=float("nan") if "nan" in trouble else 1.0 / step)
            if step >= args.max_train_steps:
                break
    path = os.path.join(args.output_dir, f"{args.output_name}.safetensors")
    print(f"\\nsaving checkpoint: {path}")
    weights(path)
    print("model saved.")


def main():
    parser = setup_parser()
    with open(parser.parse_args().config_file, "rb") as file:
        given = tomllib.load(file)
    args = parser.parse_args(namespace=argparse.Namespace(**given))
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "seen.json"), "w") as file:
        json.dump({"arguments": given, "dataset": tomllib.load(open(args.dataset_config, "rb"))}, file)
    trouble = open(os.path.join(here, "trouble.txt")).read()
    train(args, trouble)


if __name__ == "__main__":
    main()
"""

_WHOLE = """
import argparse
import library.train_util as train_util
import train_network

def setup_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    train_util.add_sd_models_arguments(parser)
    train_util.add_dataset_arguments(parser, support_caption=True, support_dreambooth=False)
    train_util.add_training_arguments(parser, False)
    parser.add_argument("--save_model_as", type=str, default=None, choices=[None, "ckpt", "safetensors"])
    parser.add_argument("--initial_step", dest="unused", type=int)
    return parser

train_network.setup_parser = setup_parser
if __name__ == "__main__":
    train_network.main()
"""

UNKNOWN = {"noise_offset"}
"""What this version does not know yet."""


def _many() -> str:
    """All other arguments of the real scripts, so that what Limner sets is known."""
    lines = ["", "def add_many_arguments(parser):"]
    here = _LIBRARY + _NETWORK + _WHOLE
    for a in scripts.arguments().values():
        if a.name in UNKNOWN or f'"--{a.name}"' in here:
            continue
        how = 'action="store_true"' if a.kind == "flag" else f"type={a.kind}".replace("=Path", "=str")
        some = ', nargs="*"' if a.is_list else ""
        lines.append(f'    parser.add_argument("--{a.name}", {how}{some})')
    return "\n".join(lines) + "\n"


def make(folder: Path, trouble: str = "") -> Path:
    """Write the checkout."""
    for path, text in {
        "train_network.py": _NETWORK,
        "train_db.py": _WHOLE,
        "library/__init__.py": "",
        "library/train_util.py": _LIBRARY + _many(),
        "accelerate/__init__.py": "",
        "accelerate/commands/__init__.py": "",
        "accelerate/commands/launch.py": _LAUNCHER,
        "README.md": "# sd-scripts\n- **Version 0.10.1 (2026-02-13):**\n- **Version 0.9.1**\n",
        "trouble.txt": trouble,
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def known_machine(home: Path) -> None:
    """Leave word of what this machine is, so that no run has to ask torch."""
    key = machine.describe.__globals__  # the cache's key, as it is made there
    said = f"{key['sys'].executable} {key['_torch_version']()} {key['os'].environ.get('CUDA_VISIBLE_DEVICES')} {key['_boot']()}"
    disk.write_json(home / "machine.json", {"key": said, "machine": asdict(CPU)})


def base_model(folder: Path, family: str = "sd1") -> Path:
    """A published model without its numbers."""
    return headers.single_file(folder / f"{family}.safetensors", headers.published(family))


def pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (512, 500 + i), (i, 0, 0)).save(folder / f"p{i}.png")
        (folder / f"p{i}.txt").write_text(f"picture {i}", encoding="utf-8")
    return folder


def config(folder: Path, trouble: str = "", **sections: dict[str, Any]) -> Config:
    """A configuration that trains with a fake checkout in `folder`, which is made if it is not there, and trusted."""
    checkout = folder / "sd-scripts"
    settings.write(runs.home(), settings.Settings(programs=(folder,)))
    if not checkout.exists():
        make(checkout, trouble)
        base_model(folder)
        pictures(folder / "pictures")
    given: dict[str, Any] = {
        "model": {"base": str(folder / "sd1.safetensors")},
        "data": {"path": str(folder / "pictures"), "resolution": 512},
        "train": {"steps": 20},
        "output": {"name": "cat", "save_every_steps": 5},
        "optimizer": {"schedule": "cosine"},
        "launch": {"trainer": "sd-scripts", "sd_scripts": str(checkout), "device": "cpu"},
    }
    for name, values in sections.items():
        given[name] = {**given.get(name, {}), **values}
    return files.build(given, {})


def seen(checkout: Path) -> dict[str, Any]:
    """What the script was told last."""
    return json.loads((checkout / "seen.json").read_text(encoding="utf-8"))
