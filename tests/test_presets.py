"""Presets: each suits its family and leaves nothing idle, and what a memory preset estimates follows from files' headers."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import pytest

import tiny
from headers import parts_beside, published, single_file
from limner import disk
from limner.cli import config as config_commands
from limner.cli import words
from limner.config import Config, files, presets
from limner.errors import UserError
from limner.formats.base import recognise
from limner.formats.footprint import footprint
from limner.machine import Device, Machine
from limner.preflight import examine

SHIPPED = {file.stem: file for file in presets.SHIPPED.glob("*.toml")}
MEMORY = {name: match for name in SHIPPED if (match := re.fullmatch(r"memory-(.+)-(lora|full)-(\d+)gb", name))}
Shapes = dict[str, tuple[int, ...]]
GIB = 2**30

# --- what is allowed for beside weights, GiB ---

PER_PICTURE = {
    "sd1": (2.5, 0.4), "sd2": (5.6, 0.9), "sdxl": (7.9, 1.0), "sd3": (7.0, 1.0), "sd3-large": (13.0, 1.5), "flux": (25.5, 2.5),
}  # fmt: skip
"""Of a picture at the family's resolution: all activations, and with checkpointing. SDXL's are measured
(benchmarks/results/full_size.json); of the transformers it is 34 bytes a token, channel and block (arXiv:2205.05198,
equation 2, without scores); SD 1's are OneTrainer's and SimpleTuner's totals less the weights, SD 2's those for 2.25 times the
area."""
SHARE_LOST, CONTEXT = 1.1, 1.0
"""Lost between the tensors; taken by CUDA and a desktop."""
VAE_WORK, VAE_TILE_WORK, VAE_WEIGHTS = 3.5, 1.0, 0.31
"""Of the VAE in fp32: for 1024 x 1024 px, for one tile, its weights."""
TEXT = {"sd3": 123_060_480 + 694_659_840 + 4_762_310_656, "flux": 123_060_480 + 4_762_310_656}
"""Numbers of CLIP-L, bigG and T5-XXL, whose files the tests stand in for by one tensor."""


def sd2(shapes: Shapes) -> Shapes:
    """SD 2 of SD 1: wider captions, another text encoder."""
    unet = {n: tuple(1024 if s == 768 else s for s in shape) for n, shape in shapes.items() if "cond_stage" not in n}
    text = {f"cond_stage_model.model.filler.{i}": (1,) for i in range(280)}
    return unet | text | {"cond_stage_model.model.token_embedding.weight": (49408, 6888)}  # 340 million in all


def medium(shapes: Shapes) -> Shapes:
    """SD 3.5 medium of SD 3 medium: a second attention in 13 blocks, more places."""
    out = dict(shapes)
    prefix = next(n for n in shapes if n.endswith("pos_embed")).removesuffix("pos_embed")
    for i in range(13):
        block = f"{prefix}joint_blocks.{i}.x_block."
        out |= {f"{block}attn2.qkv.weight": (4608, 1536), f"{block}attn2.proj.weight": (1536, 1536)}
        out[f"{block}adaLN_modulation.1.weight"] = (13824, 1536)
    return out | {f"{prefix}pos_embed": (1, 384**2, 1536)}


def large(shapes: Shapes) -> Shapes:
    """SD 3.5 large of SD 3 medium: 38 blocks of 2432 channels."""
    widths = {1536 * times: 2432 * times for times in (1, 2, 3, 4, 6)}
    wide = {n: tuple(widths.get(s, s) for s in shape) for n, shape in shapes.items()}
    out = {n.replace("joint_blocks.23.", "joint_blocks.37."): shape for n, shape in wide.items()}
    for n, shape in wide.items():
        if "joint_blocks.1." in n:
            out |= {n.replace("joint_blocks.1.", f"joint_blocks.{i}."): shape for i in range(23, 37)}
    return out


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of full size for each family and size, without its weight."""
    root, sd3 = tmp_path_factory.mktemp("bases"), published("sd3")
    shapes = {f: published(f) for f in ("sd1", "sdxl", "flux")}
    shapes |= {"sd2": sd2(shapes["sd1"]), "sd3": medium(sd3), "sd3-large": large(sd3)}
    out = {}
    for name, tensors in shapes.items():
        (root / name).mkdir()
        if name in ("sd3", "sd3-large", "flux"):
            parts_beside(root / name, 16)
        out[name] = single_file(root / name / "model.safetensors", tensors)
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pictures(tmp_path_factory.mktemp("presets") / "pics")


@pytest.fixture(autouse=True)
def _a_large_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1 << 42)


def card(gib: int) -> Machine:
    devices = (Device("cpu", "x86", 64_000, True), Device("cuda", f"a card of {gib} GB", gib * 1024, True))
    return Machine("2.13.0", "13.0", devices, 16, 64_000, "")


def of_family(name: str) -> str:
    return {"sd3-large": "sd3"}.get(name, name)


def kinds(name: str, kind: str) -> list[dict[str, str]]:
    """What a preset is for: options that it is laid over."""
    if kind == "full":
        return [{}]
    embedding = {"adapter.kind": "embedding", "embedding.token": "picture"}
    return [{}, *([embedding] if name in ("sd1", "sd2", "sdxl") else [])]


def config_of(name: str, base: Path, under: dict[str, str], **more: str) -> Config:
    return files.build({}, presets.lay(under | {"model.base": str(base), **more}, presets.stated(SHIPPED[name])))


# --- memory ---


def swapped_gib(config: Config, name: str, shapes: Shapes) -> float:
    """What lies in the computer's memory of the blocks that are swapped, less the three that are on the card at a time."""
    stored = {"off": 2.0, "fp8": 1.0, "int8": 1.0, "nf4": 0.5625}[config.memory.quantize]
    sizes = dict[str, int]()
    unet = r".*(?:(?:in|out)put_blocks\.\d+|middle_block)\.(?:[02]|1\.transformer_blocks\.\d+)\."
    pattern = unet + r"|(?:double|single|joint)_blocks\.\d+\."
    for tensor, shape in shapes.items():
        if block := re.match(pattern, tensor):
            sizes[block[0]] = sizes.get(block[0], 0) + prod(shape)
    last = sorted(sizes, key=lambda n: [int(d) if d.isdigit() else d for d in re.split(r"(\d+)", n)])
    count = config.memory.swap_blocks
    assert count == 0 or count < len(last)
    return max(0, sum(sizes[n] for n in last[len(last) - count + 3 :])) * stored / GIB if count else 0.0


def estimate(config: Config, name: str, base: Path, shapes: Shapes) -> float:
    """GiB that a card must have: while captions are encoded, while it trains, and while it paints."""
    weighed, memory = footprint(config, recognise(str(base)), "bf16"), config.memory
    text = max(weighed.text_mib / 1024, TEXT.get(of_family(name), 0) * 2 / GIB)
    whole, again = PER_PICTURE[name]
    picture = again + (whole - again) * (1 - 1 / memory.checkpoint_every) if memory.checkpointing else whole
    # autocast keeps a copy in bf16 of what is trained in fp32
    copies = sum(map(prod, shapes_of_denoiser(name, shapes).values())) * 2 / GIB if config.adapter.trains_in_fp32 else 0.0
    resident = (weighed.denoiser_mib + weighed.trained_mib + weighed.staying_mib) / 1024 - swapped_gib(config, name, shapes)
    area = {"sd1": 0.25, "sd2": 0.5625}.get(name, 1.0)
    painting = resident + VAE_WEIGHTS + (VAE_TILE_WORK if memory.vae_tiling else VAE_WORK * area)
    training = (resident + copies + picture * config.train.batch_size) * SHARE_LOST
    return max(text, painting, training) + CONTEXT


def shapes_of_denoiser(name: str, shapes: Shapes) -> Shapes:
    parts = ("first_stage_model.", "cond_stage_model.", "conditioner.", "vae.", "text_encoders.")
    return {n: s for n, s in shapes.items() if not n.startswith(parts)}


def shapes_in(base: Path) -> Shapes:
    from limner.formats.header import read_header

    return {n: info.shape for n, info in read_header(base).tensors.items()}


def test_the_models_have_the_published_numbers(bases: dict[str, Path]) -> None:
    numbers = {"sd1": 0.86, "sd2": 0.866, "sdxl": 2.57, "sd3": 2.47, "sd3-large": 8.15, "flux": 11.9}
    for name, count in numbers.items():
        found = sum(map(prod, shapes_of_denoiser(name, shapes_in(bases[name])).values()))
        assert found / 1e9 == pytest.approx(count, rel=0.01), name


def test_of_sdxl_the_estimates_lie_above_what_was_measured(bases: dict[str, Path]) -> None:
    """GiB on an H200 (docs/models.md): 13.4, and 6.2 with checkpointing, 2.8 with 60 swapped blocks as well."""
    shapes = shapes_in(bases["sdxl"])
    measured = {13.4: {}, 6.2: {"memory.checkpointing": "true"}}
    measured[2.8] = measured[6.2] | {"memory.swap_blocks": "60"}
    for gib, options in measured.items():
        config = files.build({"model": {"base": str(bases["sdxl"])}}, {"memory.vae_tiling": "true", **options})
        assert gib + CONTEXT < estimate(config, "sdxl", bases["sdxl"], shapes) < 1.25 * gib + 2 * CONTEXT, gib


@pytest.mark.parametrize("name", MEMORY)
def test_a_memory_preset_fits_by_the_estimate_that_it_states(name: str, bases: dict[str, Path]) -> None:
    family, kind, gib = MEMORY[name].groups()
    about = presets.about(SHIPPED[name])
    said = re.search(r"Estimate: (\d+\.\d) GiB", about)
    base = bases[family]
    most = max(estimate(config_of(name, base, under), family, base, shapes_in(base)) for under in kinds(family, kind))
    assert said and float(said[1]) == pytest.approx(most, abs=0.06), most
    assert most <= int(gib)
    assert f"{gib} GB" in about


@pytest.mark.parametrize("name", MEMORY)
def test_preflight_has_nothing_against_a_memory_preset(name: str, bases: dict[str, Path], pictures: Path) -> None:
    family, kind, gib = MEMORY[name].groups()
    for under in kinds(family, kind):
        prediction = {"objective.prediction": "v_prediction"} if family == "sd2" else {}
        config = config_of(name, bases[family], under, **{"data.path": str(pictures), **prediction})
        found = [f for f in examine(config, card(int(gib)))[0] if f.severity != "note"]
        # the pictures of the test are small, and fewer than a batch
        assert [str(f) for f in found if not f.field.startswith("data.")] == []


def test_every_family_and_kind_is_there_with_each_class_that_is_of_use() -> None:
    found = {(m[1], m[2]): sorted(int(n[3]) for n in MEMORY.values() if n[1] == m[1] and n[2] == m[2]) for m in MEMORY.values()}
    assert found == {
        ("sd1", "lora"): [8, 12, 16], ("sd1", "full"): [8, 12, 16, 24, 48],
        ("sd2", "lora"): [8, 12, 16, 48], ("sd2", "full"): [8, 12, 16, 24, 48],
        ("sdxl", "lora"): [8, 12, 16, 24, 48], ("sdxl", "full"): [12, 16, 24, 48],
        ("sd3", "lora"): [12, 16, 24], ("sd3", "full"): [12, 16, 24, 48],
        ("sd3-large", "lora"): [12, 16, 24, 48], ("sd3-large", "full"): [24, 48],
        ("flux", "lora"): [12, 16, 24, 48], ("flux", "full"): [48],
    }  # fmt: skip


def test_one_memory_preset_takes_another_back() -> None:
    """All of a kind state the same options, of memory alone; a step of a LoRA has as many pictures on every card."""
    stated = {name: presets.stated(SHIPPED[name]) for name in MEMORY}
    options = {kind: {frozenset(stated[n]) for n in MEMORY if MEMORY[n][2] == kind} for kind in ("lora", "full")}
    assert len(options["lora"]) == len(options["full"]) == 1
    assert set().union(*options["lora"]) < set().union(*options["full"])
    more = {"adapter.kind", "adapter.weights", "optimizer.kind", "train.precision", "train.clip_norm"}
    assert set().union(*options["full"]) - set().union(*options["lora"]) == more
    steps = {MEMORY[n][1]: set[int]() for n in MEMORY if MEMORY[n][2] == "lora"}
    for name in MEMORY:
        if MEMORY[name][2] == "lora":
            steps[MEMORY[name][1]].add(int(stated[name]["train.batch_size"]) * int(stated[name]["train.accumulation"]))
    assert steps == {"sd1": {4}, "sd2": {4}, "sdxl": {2}, "sd3": {2}, "sd3-large": {2}, "flux": {2}}


# --- all of them ---


@pytest.mark.parametrize("name", sorted(SHIPPED.keys() - MEMORY.keys()))
def test_preflight_has_nothing_against_the_others(name: str, bases: dict[str, Path], pictures: Path) -> None:
    families = presets.families_of(name)
    assert families
    for family in families:
        config = config_of(name, bases[family], {}, **{"data.path": str(pictures)})
        found = [f for f in examine(config, card(80))[0] if f.severity != "note"]
        assert [str(f) for f in found if not f.field.startswith("data.")] == []


def test_the_family_is_in_the_name() -> None:
    assert presets.families_of("sd3-flux-lora") == ("sd3", "flux")
    assert presets.families_of("memory-sd3-large-lora-12gb") == ("sd3",)
    assert presets.families_of("mine") == ()


# --- in the terminal ---


def test_a_preset_counts_more_than_the_file_and_less_than_options(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[memory]\ncheckpointing = false\nswap_blocks = 3\n[train]\nbatch_size = 9\nsteps = 7\n")
    given = (str(file), "--preset", "memory-sdxl-lora-8gb", "--preset=memory-sdxl-lora-12gb", "--train.accumulation", "5")
    config = words.load(given)
    stated = presets.stated(SHIPPED["memory-sdxl-lora-12gb"])
    assert config.memory.checkpointing and config.memory.swap_blocks == 0 != 3
    assert str(config.train.batch_size) == stated["train.batch_size"] and config.train.accumulation == 5
    assert config.train.steps == 7
    assert words.load(("--preset", "sd1-lora-style")).adapter.rank == 32


def test_a_preset_of_another_kind_takes_the_kinds_options_back() -> None:
    config = words.load(("--preset", "sdxl-lora", "--preset", "memory-sdxl-full-24gb"))
    assert config.adapter.kind == "none" and config.optimizer.warmup_steps == 50
    # of one kind they stay
    assert presets.lay({"adapter.kind": "lokr", "adapter.rank": "3"}, {"adapter.kind": "lokr"})["adapter.rank"] == "3"
    assert "adapter.rank" not in presets.lay({"adapter.rank": "3"}, {"adapter.kind": "lokr"})
    assert presets.lay({"adapter.rank": "3"}, {"adapter.kind": "lora"})["adapter.rank"] == "3"


def test_own_presets_go_by_their_names_and_first(home: Path) -> None:
    (home / "presets").mkdir(parents=True)
    (home / "presets" / "mine v1.toml").write_text('# Mine\n[data]\ntrigger = "2"\n')
    (home / "presets" / "sd1-lora-style.toml").write_text("# Mine too\n[adapter]\nrank = 3\n")
    assert words.load(("--preset", "mine v1")).data.trigger == "2"
    assert words.load(("--preset", "sd1-lora-style")).adapter.rank == 3
    (home / "presets" / "bad.toml").write_text("[adapter]\nrank = 0\n")
    with pytest.raises(UserError, match=r"adapter\.rank"):
        words.load(("--preset", "bad"))


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc/passwd", "memory-sdxl-lora-8", "a\nb", "x" * 5000, "a\x00b", "true"])
def test_a_preset_that_is_not_there(name: str, home: Path) -> None:
    with pytest.raises(UserError) as caught:
        words.load(("--preset", name))
    [found] = caught.value.findings
    assert found.field == "preset" and str(found).isprintable()
    assert ("memory-sdxl-lora-8gb" in found.remedy) == (name == "memory-sdxl-lora-8")


def test_a_new_configuration_from_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert config_commands.config_new(tmp_path / "a.toml", preset=["memory-flux-lora-12gb"]) == 0
    config = files.read(tmp_path / "a.toml")
    assert (config.model.family, config.memory.quantize, config.adapter.kind) == ("flux", "nf4", "lora")
    assert config_commands.config_new(tmp_path / "b.toml", family="sdxl", preset=["sd1-fine-tune"]) == 0
    config = files.read(tmp_path / "b.toml")
    assert (config.model.family, config.adapter.kind) == ("sdxl", "none")
    assert config_commands.config_presets() == 0
    said = capsys.readouterr().out
    assert all(name in said for name in SHIPPED)
