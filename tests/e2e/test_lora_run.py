"""One whole LoRA run as a real command: what it writes, says and claims, and that diffusers paints with its file."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
from limner import disk, jobs, progress, queue
from limner.config.prompts import Prompt
from limner.engine import paint, sampling
from limner.engine.runtime import Runtime
from limner.formats.header import read_header
from limner.models.text import clip_tokenizer
from trainer import config, kinds

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory, machine_file):
    """(run, config) of a finished run of 12 steps, started by the very command that users start."""
    folder = tmp_path_factory.mktemp("lora")
    data = tiny.pictures(folder / "pictures" / "3_cat")
    (data / "p0.txt").write_text("a cat, sitting, red", encoding="utf-8")
    (prompt_file := folder / "dogs.toml").write_text(
        '[prompt]\nprompt = "a dog"\n[[prompt.subset]]\nnegative_prompt = "blurry"\nseed = 9\nsample_steps = 2\n'
        'sample_sampler = "k_euler_a"\n'
    )
    chosen = config(
        tiny_model,
        data.parent,
        adapter={"rank": 4, "alpha": 2.0, "text_encoder": True},
        optimizer={"text_encoder_lr": 4e-3},
        sample={
            "prompts": ["a cat --s 3 --w 24 --h 16"],
            "prompt_file": str(prompt_file),
            "every_steps": 5,
            "at_start": True,
        },
        output={"save_every_steps": 4, "keep_last": 1, "author": "Test Er", "tags": ["a", "b"]},
        data={"trigger": "catx"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_HOME", str(folder / "home"))
        disk.write_bytes(folder / "home" / "machine.json", machine_file.read_bytes())
        run = jobs.prepare(chosen)
        prompt_file.unlink()  # its copy is what is read
        queue.enqueue(run)
        code = progress.follow(run)
        until = time.monotonic() + 60
        while not (run.path / "exit.json").exists() and time.monotonic() < until:
            time.sleep(0.1)  # the runner's note comes a moment after the trainer's last word
    assert code == 0, run.tail()
    return run, chosen


def test_the_files(finished):
    run, _ = finished
    # 4 was pruned, 12 is the end and has no number
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["cat-step00000008.safetensors", "cat.safetensors"]
    names = sorted(p.name for p in run.samples.iterdir())
    assert names == [f"step-{s:08d}_{i:02d}.png" for s in (0, 5, 10, 12) for i in (0, 1)]
    sizes = [Image.open(run.samples / n).size for n in names]
    assert sizes == [(24, 16), (32, 32)] * 4
    assert sorted(p.name for p in run.states.iterdir()) == ["step-00000009", "step-00000012"]
    assert all(not disk.manifest_faults(p) for p in run.states.iterdir())
    left = {p.name for p in run.path.iterdir()}
    known = {"config.toml", "plan.json", "state.json", "exit.json", "command.json", "events.jsonl", "log.txt", "prompts.toml"}
    assert left - {"lock", "heartbeat"} == known | {"samples", "checkpoints", "states", "control", "tensorboard"}
    assert not [p for p in run.path.rglob(f"{disk.TEMPORARY}*")]


def test_the_state_and_the_plan(finished):
    run, chosen = finished
    state = run.state()
    assert (state.status, state.step, state.steps, state.phase, state.error) == ("done", 12, 12, "", "")
    assert disk.read_json(run.path / "exit.json")["code"] == 0
    plan = run.plan()
    assert plan["total_steps"] == 12 and plan["num_pictures"] == 4 and plan["lr"] == 1e-2 and plan["precision"] == "fp32"
    assert sum(plan["buckets"].values()) == 12  # four pictures, three times
    assert run.config() == chosen


def test_the_events(finished):
    run, _ = finished
    assert kinds(run) == [
        "cached", "start", "sample", "step", "state", "step", "checkpoint", "state", "step", "sample", "step", "state",
        "step", "checkpoint", "state", "step", "state", "step", "sample", "step", "checkpoint", "state", "sample", "stop",
    ]  # fmt: skip
    events = run.history()
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, 13))
    assert [e["step"] for e in events if e["event"] == "state"] == [3, 4, 6, 8, 9, 12]
    assert [e["step"] for e in events if e["event"] == "checkpoint"] == [4, 8, 12]
    first, second = [e["lr"] for e in events if e["event"] == "step"][:2]
    assert first == {"denoiser": 0.0, "text_encoder": 0.0} and second == {"denoiser": 5e-3, "text_encoder": 2e-3}
    cached = next(e for e in events if e["event"] == "cached")
    assert (cached["latents"], cached["captions"]) == (4, 0)  # a text encoder that is trained is not cached
    prompts = [(e["prompt"], e["seed"]) for e in events if e["event"] == "sample" and e["step"] == 5]
    assert prompts == [("a cat", 0), ("a dog", 9)]
    assert events[-1]["event"] == "stop" and events[-1]["status"] == "done"
    times = [e["time"] for e in events]
    assert times == sorted(times)


def test_the_metadata_are_true(finished, tiny_model):
    run, _ = finished
    for name, step in (("cat.safetensors", 12), ("cat-step00000008.safetensors", 8)):
        meta = read_header(run.checkpoints / name).metadata
        expected = {
            "ss_steps": str(step), "ss_max_train_steps": "12", "ss_network_dim": "4", "ss_network_alpha": "2.0",
            "ss_network_module": "networks.lora", "ss_learning_rate": "0.01", "ss_unet_lr": "0.01",
            "ss_text_encoder_lr": "0.004", "ss_seed": "3", "ss_batch_size_per_device": "2",
            "ss_gradient_accumulation_steps": "1", "ss_output_name": "cat",
            "ss_num_train_images": "12", "ss_num_batches_per_epoch": str(run.plan()["num_batches_per_epoch"]),
            "ss_lr_scheduler": "cosine", "ss_lr_warmup_steps": "2", "ss_mixed_precision": "no", "ss_v2": "False",
            "ss_base_model_version": "sd_v1", "ss_resolution": "(32, 32)", "ss_max_grad_norm": "1.0",
            "modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.author": "Test Er", "modelspec.tags": "a, b",
            "modelspec.title": "cat", "modelspec.trigger_phrase": "catx", "modelspec.resolution": "32x32",
        }  # fmt: skip
        assert {k: meta.get(k) for k in expected} == expected
        assert json.loads(meta["ss_dataset_dirs"]) == {"3_cat": {"n_repeats": 3, "img_count": 4}}
        tags = json.loads(meta["ss_tag_frequency"])["3_cat"]
        assert tags["a cat"] == tags["sitting"] == tags["red"] == 1 and tags["picture number 1"] == 1
        buckets = json.loads(meta["ss_bucket_info"])["buckets"].values()
        assert {f"{w}x{h}": b["count"] for b in buckets for w, h in [b["resolution"]]} == run.plan()["buckets"]
        base = tiny_model / "unet" / "diffusion_pytorch_model.safetensors"
        assert meta["ss_new_sd_model_hash"] == hashlib.sha256(base.read_bytes()).hexdigest()


def test_the_hashes_are_those_of_the_file_with_kohyas_keys(finished, tmp_path):
    run, _ = finished
    file = run.checkpoints / "cat.safetensors"
    meta = read_header(file).metadata
    save_file(load_file(file), tmp_path / "bare.safetensors", {k: v for k, v in meta.items() if k.startswith("ss_")})
    content = (tmp_path / "bare.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert meta["sshs_model_hash"] == hashlib.sha256(content[8 + length :]).hexdigest()
    assert meta["sshs_legacy_hash"] == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


# --- diffusers --------------------------------------------------------------------------------------------------------


def pipeline(folder: Path) -> StableDiffusionPipeline:
    parts = {"tokenizer": clip_tokenizer(), "safety_checker": None}
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def consumed(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p for n, p in module.named_parameters() if ".lora_" in n}


def test_diffusers_consumes_every_key(finished, tiny_model):
    run, _ = finished
    state = load_file(run.checkpoints / "cat.safetensors")
    pipe = pipeline(tiny_model)
    pipe.load_lora_weights(str(run.checkpoints), weight_name="cat.safetensors")
    unet, text = consumed(pipe.unet), consumed(pipe.text_encoder)
    assert len(unet) == 2 * 48 and len(text) == 2 * 12
    assert 3 * (len(unet) + len(text)) // 2 == len(state)
    down = next(v for n, v in unet.items() if n.startswith("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A"))
    assert torch.equal(down, state["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"])


def test_diffusers_paints_the_same_picture(finished, tiny_model):
    run, chosen = finished
    family, runtime = sampling.load_whole(chosen, Runtime(CPU, "fp32")), Runtime(CPU, "fp32")
    prompt = Prompt("a cat, sitting", "blurry", 32, 24, 6, 7.0, 4, "ddim")

    def ours() -> torch.Tensor:
        return next(paint.paint(family, runtime, [prompt], paint.encode_prompts(family, runtime, [prompt]))) / 2 + 0.5

    base = ours()
    sampling.load_lora(family, run.checkpoints / "cat.safetensors")
    with_lora = ours()
    pipe = pipeline(tiny_model)
    pipe.load_lora_weights(str(run.checkpoints), weight_name="cat.safetensors")
    theirs = pipe(
        prompt.text, negative_prompt=prompt.negative, width=32, height=24, num_inference_steps=6, guidance_scale=7.0,
        generator=torch.Generator().manual_seed(4), output_type="pt",
    ).images[0]  # fmt: skip
    assert (with_lora - theirs).abs().max() < 1e-3
    assert (with_lora - base).abs().max() > 1e-2, "the LoRA changes nothing; the test would pass without it"
