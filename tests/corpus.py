"""Files that strangers made, each with the doors it comes in by and the kind of answer it must get.

The numbers are those of the corpus that was asked for: B values, C paths, D configurations, E models and LoRAs, G captions,
prompts and archives. (A is the page's own surface and F are pictures: tests of their own.) What other tests ask is in ELSEWHERE.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from headers import MALFORMED, file_of, published, single_file, tensor
from limner.config.fields import walk
from strangers import (
    Case,
    Place,
    content,
    filled,
    folder,
    folder_named,
    link,
    lora,
    model,
    named,
    npz,
    options,
    path_of,
    pickled,
    pipe,
    renamed,
    saying,
    socket_file,
    tarred,
    tensors,
    toml,
    transposed,
    without,
    zipped,
)  # fmt: skip

ELSEWHERE = {
    "B17": "config/test_faults.py", "B18": "config/test_faults.py", "B19": "config/test_faults.py", "B20": "config/test_faults.py",
    "B22": "web/test_hostile_values.py", "C03": "web/test_places.py", "C08": "web/test_places.py", "C20": "test_preflight.py",
    "C23": "test_disk.py", "C24": "test_disk.py", "D24": "config/test_files.py", "G18": "tools/test_captioning.py",
    "G21": "e2e/test_caches.py", "G23": "data/test_archives.py", "G24": "data/test_scan.py",
}  # fmt: skip
"""Number -> the file of tests that tries it."""

CONFIG = ("check", "train", "preset", "page")
IMPORT = ("import", "page")
BASE = ("model", "train model", "inspect", "convert")
LORA = ("start", "merge", "inspect", "merge_loras", "resize", "sample")
ALL = ("check", "import", "model", "start", "inspect", "prompts", "subsets", "metadata file")

INJECTIONS = {
    "B01": '"; touch CANARY; "', "B02": 'x"\ntouch CANARY\n"', "B03": '" && touch CANARY && "', "B04": "$(touch CANARY)",
    "B05": "`touch CANARY`", "B06": ".txt; touch CANARY;", "B07": ".txt|touch CANARY", "B08": ".txt & touch CANARY &",
    "B09": ".txt > CANARY", "B10": ".txt;touch${IFS}CANARY",
}  # fmt: skip
TEXTS = sorted(
    {
        o.path
        for o in walk()
        if {str, Path} & set(o.types) and not o.choices and (not o.tags or "lora" in o.tags) and not o.is_list
    }
)


def everywhere(text: str) -> Callable[[Place], Path]:
    """A configuration in which every option that takes text has this one."""

    def make(place: Place) -> Path:
        sections: dict[str, dict[str, str]] = {}
        for path in TEXTS:
            section, _, name = path.partition(".")
            sections.setdefault(section, {})[name] = text.replace("CANARY", str(place.canary))
        return options(**sections)(place)

    return make


def deep(opening: str, count: int, closing: str = "") -> str:
    return opening * count + closing * count


def written(**values: str) -> str:
    return json.dumps({"LoRA_type": "Standard", "model_list": "", "optimizer": "AdamW", **values})


def overlapping(place: Place) -> Path:
    """A zip whose entries are all the same bytes of the file."""
    path = zipped("x.zip", ("a.txt", b"x" * 1000), ("b.txt", b"x" * 1000))(place)
    raw = bytearray(path.read_bytes())
    second = raw.rindex(b"PK\1\2")
    raw[second + 42 : second + 46] = struct.pack("<L", 0)
    path.write_bytes(raw)
    return path


def bomb(place: Place) -> Path:
    """200 MB of zeros in 200 KB."""
    with (
        zipfile.ZipFile(place.folder / "x.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("a.png", "w") as entry,
    ):
        for _ in range(200):
            entry.write(bytes(1 << 20))
    return place.folder / "x.zip"


def symbolic(name: str, to: str) -> tuple[zipfile.ZipInfo, bytes]:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry, to.encode()


def encrypted(place: Place) -> Path:
    path = zipped("x.zip", ("a.txt", b"x"))(place)
    raw = bytearray(path.read_bytes())
    for sign, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        raw[raw.index(sign) + at] |= 1
    path.write_bytes(raw)
    return path


def sparse(place: Place) -> Path:
    """A LoRA of 4 TiB, all of it a hole."""
    path = place.folder / "x.safetensors"
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    header = file_of({f"{name}.lora_down.weight": tensor(0, 1 << 42, [1 << 20, 1 << 20])})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + (1 << 42))
    return path


def many_entries(place: Place) -> Path:
    entries = {f"{i:05}": {"caption": "a cat", "tags": "a, b"} for i in range(20_000)}
    return content(
        "m.json", json.dumps(entries | {picture.stem: {"caption": "x"} for picture in place.pictures.glob("*.png")})
    )(place)


def loops(place: Place) -> Path:
    root = folder()(place)
    (root / "again").symlink_to(root)
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    (root / "gone.png").symlink_to("nowhere.png")
    return root


def output_that_leads_out(place: Place) -> Path:
    (place.folder / "new").symlink_to(place.outside / "nothing")
    return tarred(("a.txt", b"x"))(place)


def strange_captions(place: Place) -> Path:
    """A caption that is a folder, one that is a pipe, one that leads outside: none is read."""
    root = folder()(place)
    stems = sorted(p.stem for p in root.glob("*.png"))
    for old in root.glob("*.txt"):
        old.unlink()
    (root / f"{stems[0]}.txt").mkdir()
    os.mkfifo(root / f"{stems[1]}.txt")
    return root


def kohya_folders(place: Place) -> Path:
    root = place.folder / "set"
    for name in ("0_x", "-1_x", "9999999999_x", "_x", "1_", "1e9_x", " 5_x", "٣_x"):
        (root / name).mkdir(parents=True)
        shutil.copy(next(place.pictures.glob("*.png")), root / name)
    return root


def twins(place: Place) -> Path:
    root = folder()(place)
    for name in ("e\u0301.png", "\u00e9.png"):
        shutil.copy(next(place.pictures.glob("*.png")), root / name)
    return root


def same_twice(place: Place) -> Path:
    root = folder()(place)
    (root / "second").symlink_to(place.pictures)
    return root


def unreadable(place: Place) -> Path:
    """As root reads anything, the file is a link to what nobody can open."""
    root = folder()(place)
    (root / "b0.png").symlink_to("/proc/1/mem")
    return root


def hard_link(place: Place) -> Path:
    """Its metadata are changed: what is written must be another file, and not the one outside."""
    path = lora()(place)
    os.replace(path, place.outside / "x.safetensors")
    os.link(place.outside / "x.safetensors", path)
    return path


def sd1_without_a_block(place: Place) -> Path:
    shapes = published("sd1")
    return single_file(place.folder / "x.safetensors", {n: s for n, s in shapes.items() if "input_blocks.4" not in n})


def lines_of(count: int) -> Callable[[Place], Path]:
    return content("p.txt", "a cat\n" * count)


def tar_of_lies(place: Place) -> Path:
    path = tarred(("a.txt", b"x"))(place)
    raw = bytearray(path.read_bytes())
    raw[124:136] = b"\x80" + bytes(2) + (1 << 60).to_bytes(9, "big")  # the first entry's size: 2^60
    checksum = sum(raw[:148]) + 8 * 32 + sum(raw[156:512])
    raw[148:156] = b"%06o\0 " % checksum
    path.write_bytes(raw)
    return path


CASES: dict[str, Case] = {
    # --- B. values
    **{f"{n} in every text": Case(everywhere(text), ("check", "page"), "either") for n, text in INJECTIONS.items()},
    "B11 an argument among kohya's": Case(content("a.json", written(additional_parameters="--output_dir=/etc")), IMPORT, "accepted"),
    "B12 a script among kohya's": Case(content("a.json", written(extra_accelerate_launch_args="./evil.py -m evil")), IMPORT, "accepted"),
    "B13 a file among kohya's": Case(content("a.json", written(additional_parameters="--config_file=./x.toml")), IMPORT, "accepted"),
    "B14 an optimiser by its path": Case(options(optimizer={"kind": "other", "class_path": "os.system"}), CONFIG, says="optimizer.class_path"),
    "B14 a module by its path": Case(content("a.toml", 'network_module = "evil_pkg"\noptimizer_type = "os.system"\nnetwork_dim = 4\n'), IMPORT, "accepted"),
    "B15 a call as an argument": Case(options(optimizer={"arguments": ["x=__import__('os').system('touch PWNED')"]}), CONFIG, says="optimizer.arguments"),
    "B15 a power as an argument": Case(options(optimizer={"arguments": ["x=9**9**9"]}), CONFIG, says="optimizer.arguments"),
    "B15 brackets as an argument": Case(options(optimizer={"arguments": ["x=" + deep("(", 9000, ")")]}), CONFIG, says="optimizer.arguments"),
    "B15 minus signs as an argument": Case(options(optimizer={"arguments": ["x=" + "-" * 19_000 + "1"]}), CONFIG, says="optimizer.arguments"),
    "B15 a pattern of stars": Case(options(adapter={"kind": "lora", "rules": ["*a" * 9000 + "b: off"]}), ("check", "page"), says="adapter.rules"),
    "B16 numbers that are none": Case(toml("[optimizer]\nlr = nan\nbeta1 = inf\n[train]\nsteps = 1e999\n"), CONFIG, says="optimizer.lr"),
    "B21 4301 digits": Case(toml(f"[train]\nsteps = {'1' * 4301}\n"), CONFIG, says="digits"),
    "B21 4000 digits": Case(toml(f"[train]\nsteps = {'1' * 4000}\n[optimizer]\nlr = {'1' * 4000}\n"), CONFIG, says="train.steps"),
    "B23 NUL": Case(options(output={"name": "a\0b"}), CONFIG, says="output.name"),
    "B24 a lone surrogate": Case(toml('[output]\nname = "\\ud800"\n'), CONFIG, says="TOML"),
    "B24 a lone surrogate in JSON": Case(content("a.json", '{"LoRA_type": "Standard", "output_name": "\\ud800"}'), IMPORT, "either"),
    "B25 a terminal's controls": Case(toml('[output]\nname = "\\u001b[2J\\u001b]52;c;eA\\u0007"\n'), CONFIG, says="output.name"),
    "B26 signs that turn text": Case(options(output={"name": "a\u202eb\u200bc"}), CONFIG, says="output.name"),
    # --- C. paths
    "C01 up": Case(options(output={"name": "../x"}), CONFIG, says="output.name"),
    "C02 absolute": Case(options(output={"name": "/etc/x"}), CONFIG, says="output.name"),
    "C04 a link outside": Case(link("a.toml", "OUTSIDE/secret.txt"), ("check", "import", "prompts", "subsets"), "refused"),
    "C05 links in a ring": Case(loops, ("pictures",), "either"),
    "C06 a link to nothing as output": Case(output_that_leads_out, ("unpack",), "either"),
    "C07 a hard link": Case(hard_link, ("inspect", "metadata"), "accepted"),
    "C09 a pipe": Case(pipe("x.safetensors"), ("check", "import", "model", "start", "merge", "inspect", "metadata", "metadata file")),
    "C09 a pipe as a checkpoint": Case(pipe("x.ckpt"), ("model", "inspect", "convert")),
    "C09 a pipe as an archive": Case(pipe("x.tar"), ("pictures", "unpack")),
    "C10 /dev/zero": Case(path_of("/dev/zero"), (*ALL, "pictures")),
    "C10 /dev/stdin": Case(path_of("/dev/stdin"), (*ALL, "pictures")),
    "C10 /proc/kcore": Case(path_of("/proc/kcore"), (*ALL, "pictures")),
    "C11 a socket": Case(socket_file("x.safetensors"), (*ALL, "metadata")),
    "C12 a folder": Case(folder_named("x.safetensors"), ("check", "import", "model", "start", "inspect", "metadata", "prompts", "subsets")),
    "C12 a folder named like a picture": Case(named("x.png"), ("pictures",), "accepted"),
    "C13 a name that is a flag": Case(named("--output.path=x"), ("pictures",), "accepted"),
    "C14 signs in a name": Case(named("a\nb\t'\"$(touch PWNED);x"), ("pictures",), "either"),
    "C14 signs in a picture's name": Case(named("ok", inside="a\nb\t'\"$(touch PWNED);x.png"), ("pictures",), "accepted"),
    "C15 255 bytes": Case(named("x" * 255), ("pictures",), "accepted"),
    "C15 255 bytes as a picture": Case(named("ok", inside="x" * 251 + ".png"), ("pictures",), "accepted"),
    "C15 256 bytes": Case(path_of("x" * 256), (*ALL, "pictures")),
    "C15 4096 bytes": Case(path_of("/x" * 2048), (*ALL, "pictures")),
    "C16 bytes that are no text": Case(named(b"\xff\xfe"), ("pictures",), "either"),
    "C16 a picture's name that is no text": Case(named("ok", inside=os.fsdecode(b"\xff.png")), ("pictures",), "accepted"),
    **{f"C17 {name!r}": Case(options(output={"name": name}), ("check", "page"), says="output.name") for name in (
        "CON", "com1.x", "x.", "x ", "a:stream", "\\\\?\\x", "\\\\host\\share", "C:rel", "..\\x")},
    "C18 two names of one look": Case(twins, ("pictures",), "accepted"),
    "C19 a home that is none": Case(path_of("~nobody-of-this-name/x"), (*ALL, "pictures")),
    "C19 variables": Case(path_of("$HOME/%APPDATA%/x"), (*ALL, "pictures")),
    "C21 an output that is a file": Case(lambda p: options(output={"path": str(content("a.png", "x")(p))})(p), ("check", "train"), says="output.path"),
    "C22 one folder for all": Case(folder(), ("output",), "either"),
    **{f"C25 {name!r}": Case(options(output={"name": name}), ("check", "page"), says="output.name") for name in (
        "../../x", "a/b", "", ".", "..", ".hidden")},
    "C26 one file for two things": Case(lora(), ("merge_loras",), "either"),
    # --- D. configurations
    "D01 nothing": Case(toml(""), ("check",), says="data.path"),
    "D01 nothing, imported": Case(content("a.json", ""), IMPORT),
    "D02 no text": Case(toml(os.urandom(3000).hex()), CONFIG),
    "D02 bytes": Case(content("run.toml", b"\x00\xff\xfe\x01" * 99), ("check", "train", "import", "preset", "prompts", "subsets")),
    "D03 UTF-16": Case(content("run.toml", "[train]\nsteps = 1\n".encode("utf-16")), ("check", "import", "preset", "subsets")),
    "D04 a BOM": Case(content("run.toml", "\ufeff[output]\nname = 'a/b'\n"), ("check",), says="output.name"),
    "D05 CRLF": Case(content("run.toml", "[output]\r\nname = 'a/b'\r\n"), ("check", "page"), says="output.name"),
    **{f"D06 {text}": Case(content("a.json", text), ("import", "page", "subsets", "metadata file")) for text in ("[]", "null", '"x"', "3")},
    "D07 lists in lists": Case(toml(f"a = {deep('[', 500, ']')}\n"), CONFIG),
    "D07 lists in lists, JSON": Case(content("a.json", '{"a": ' + deep("[", 5000, "]") + "}"), ("import", "page", "subsets", "prompts", "metadata file")),
    "D07 lists without end": Case(toml("a = " + "[" * 900_000), ("check", "page", "subsets"), says="nested too deeply"),
    "D08 a name of 5000 parts": Case(toml(".".join(["a"] * 5000) + " = 1\n"), (*CONFIG, "import", "subsets"), says="32 parts"),
    "D08 a name of 400,000 parts": Case(toml(".".join(["a"] * 400_000) + " = 1\n"), (*CONFIG, "import", "subsets"), says="32 parts"),
    "D08 a header of 150,000 parts": Case(toml("[" + " . ".join(['"a"'] * 150_000) + "]\n"), ("check", "page"), says="32 parts"),
    "D08 names in a deep table": Case(toml("[" + ".".join(["a"] * 30) + "]\n" + "".join(f"b.c{i}=1\n" for i in range(15_000))), ("check", "page")),
    "D09 tables in tables": Case(toml(f"a = {deep('{b = ', 1000)}1{'}' * 1000}\n"), CONFIG, says="nested too deeply"),
    "D10 4301 digits": Case(content("a.json", '{"LoRA_type": "Standard", "seed": ' + "1" * 4301 + "}"), IMPORT),
    "D10 4000 digits": Case(content("a.json", '{"LoRA_type": "Standard", "seed": ' + "1" * 4000 + "}"), IMPORT, "accepted"),
    "D10 sixteen times as many digits": Case(toml("a = 0x" + "f" * 100_000 + "\n"), (*CONFIG, "import", "subsets"), says="thousands of digits"),
    "D10 digits in a dataset file": Case(toml("[[datasets]]\nresolution = 0x" + "f" * 3900 + "\n[[datasets.subsets]]\nimage_dir = 'x'\n"), ("import", "page", "subsets"), "either"),
    "D11 2^64": Case(toml("[train]\nsteps = 18446744073709551616\n"), CONFIG, says="train.steps"),
    "D12 nan": Case(toml("[[datasets]]\nresolution = nan\n[[datasets.subsets]]\nimage_dir = 'x'\nnum_repeats = nan\n"), ("subsets",), says="data.subsets"),
    "D13 inf": Case(toml("[[datasets]]\nresolution = inf\n[[datasets.subsets]]\nimage_dir = 'x'\nkeep_tokens = -inf\n"), ("subsets",), says="data.subsets"),
    "D12 NaN in kohya's": Case(content("a.json", '{"LoRA_type": "Standard", "learning_rate": NaN}'), IMPORT, says="NaN"),
    "D14 1e999 in kohya's": Case(content("a.json", '{"LoRA_type": "Standard", "learning_rate": 1e999, "network_dim": -1e999}'), IMPORT, "accepted"),
    "D15 NUL": Case(toml('[sample]\nprompts = ["a\\u0000b"]\n'), CONFIG, says="sample.prompts"),
    "D16 ESC": Case(toml('[sample]\nnegative = "a\\u001b[31m"\n'), CONFIG, says="sample.negative"),
    "D17 a name twice": Case(toml("[train]\nsteps = 1\nsteps = 2\n"), CONFIG, says="TOML"),
    "D17 a name twice, JSON": Case(content("a.json", '{"LoRA_type": "Standard", "seed": 1, "seed": 2}'), IMPORT, says="given twice"),
    "D18 a slip": Case(toml("[optimizer]\nlearing_rate = 1\n"), CONFIG, says="optimizer.lr"),
    "D19 wrong kinds": Case(toml("[train]\nsteps = '3'\nbatch_size = [1]\nseed = true\nepochs = {a = 1}\n[model]\nbase = 1979-05-27\n"), CONFIG, says="train.steps"),
    "D20 strange names": Case(toml('"__class__" = 1\n"__proto__" = 2\n"" = 3\n[train]\n"__init__" = 4\n'), CONFIG, says="__class__"),
    "D20 strange names, JSON": Case(content("a.json", '{"LoRA_type": "Standard", "__class__": 1, "__proto__": {"x": 1}, "": 2}'), IMPORT, "accepted"),
    "D21 a text of 10 MB": Case(toml('[output]\nname = "' + "x" * 10_000_000 + '"\n'), ("check", "train", "import", "preset", "page", "subsets"), says="1048576"),
    "D21 a text of 1 MB": Case(toml('[output]\nname = "' + "x" * 1_000_000 + '"\n'), CONFIG, says="output.name"),
    "D22 50,000 names": Case(toml("".join(f"a{i}=1\n" for i in range(50_000))), CONFIG, says="more options"),
    "D22 20,000 names of kohya's": Case(content("a.json", json.dumps({"LoRA_type": "Standard"} | {f"a{i}": 1 for i in range(20_000)})), IMPORT, "accepted"),
    "D22 30,000 tables": Case(toml("[[datasets]]\n" * 30_000), ("import", "page", "subsets", "check"), "either"),
    "D23 a pattern that could run for ever": Case(toml('[output]\nname = """\n' + "[" * 500_000 + "\n" + "[" + " " * 400_000 + "x\n" + '"""\n[nope]\nb = 1\n'), CONFIG, says="nope"),
    "D25 kohya's of tomorrow": Case(content("a.json", written(a_key_of_next_year="x")), IMPORT, "accepted"),
    "D25 OneTrainer's": Case(content("a.json", json.dumps({"__version": 6, "training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE", "lora_rank": 16})), IMPORT),
    "D23 another such pattern": Case(content("a.json", written(additional_parameters="--wandb-a" * 100_000)), IMPORT, "either"),
    "D26 secrets": Case(content("a.json", written(huggingface_token="hf_" + "x" * 30, wandb_api_key="k" * 40)), IMPORT, "accepted"),
    # --- E. models, LoRAs
    **{name if name[0] == "E" else f"E07 {name}": Case(content("x.safetensors", raw), ("model", "start", "inspect", "metadata"), says="not a whole safetensors file")
       for name, raw in MALFORMED.items()},
    "E09 a list, to all": Case(content("x.safetensors", file_of([])), (*BASE, *LORA, "vae", "metadata", "import", "embedding", "merge_model")),
    "E21 a header of empty lists": Case(content("x.safetensors", b'{"a":[' + b"[]," * 5_000_000 + b"[]]}", ), ("inspect",)),
    "E22 nothing of a huge shape": Case(tensors({"a": tensor(0, 0, [0, 1 << 60])}), (*BASE, *LORA), "either"),
    "E23 a name of 1 MB": Case(tensors({"lora_unet_" + "a." * 500_000: tensor(0, 4)}, bytes(4)), (*BASE, *LORA), says="malformed"),
    "E23 names of tensors": Case(tensors({n: tensor(4 * i, 4 * i + 4) for i, n in enumerate(("\0", "../../x", "t.__class__.__base__.__getattribute__"))}, bytes(12)), (*BASE, "start", "resize"), "either"),
    "E23 names of layers": Case(lora(renamed("attn1_to_q", "__class__.__init__")), ("start", "sample", "resize", "merge_loras"), "either"),
    "E24 NaN": Case(lora(filled(float("nan"))), ("inspect",), "accepted"),
    "E24 NaN, merged": Case(lora(filled(float("nan"))), ("resize",), "either"),
    "E24 infinity": Case(lora(filled(float("inf"))), ("inspect",), "accepted"),
    "E25 8,000 names": Case(tensors({f"t{i}": tensor(4 * i, 4 * i + 4) for i in range(8000)}, bytes(32_000)), ("inspect", "model", "start"), "either"),
    "E26 metadata of 9 MB": Case(lora(saying(ss_tag_frequency=json.dumps({"a": {f"tag {i}": i for i in range(300_000)}}))), ("inspect", "metadata", "start", "import"), "either"),
    "E26 metadata of empty lists": Case(lora(saying(ss_tag_frequency="{" + '"a":[[],[],[]],' * 100_000 + '"b":0}', ss_dataset_dirs=deep("[", 100_000))), ("inspect", "import"), "either"),
    "E27 metadata for a page and a terminal": Case(lora(saying(**{"modelspec.title": "<img src=x onerror=alert(1)>\x1b[2J\u202e", "ss_output_name": "$(touch PWNED)"})), ("inspect", "metadata", "import"), "either"),
    **{f"E28 {layout}, {name}": Case(pickled(name, layout=layout), ("model", "train model", "inspect", "convert")) for layout, name in (
        ("zip", "x.ckpt"), ("zip", "x.pt"), ("bare", "x.pth"), ("legacy", "x.bin"), ("second", "x.ckpt"), ("flags", "x.ckpt"), ("nested", "x.pt"))},
    "E28 a pickle under another name": Case(pickled("x.safetensors", layout="bare"), (*BASE, *LORA, "vae", "metadata", "import", "embedding")),
    "E28 a zip under another name": Case(pickled("x.safetensors", layout="zip"), (*BASE, *LORA, "vae", "metadata", "import", "embedding")),
    "E28 objects of numpy": Case(npz, ("model", "start", "inspect", "metadata file")),
    "E29 of another architecture": Case(lora(renamed("lora_unet_", "lora_unet_double_blocks_0_")), ("sample", "resize"), "either"),
    "E29 turned": Case(lora(transposed), ("sample", "inspect", "merge_loras"), "either"),
    "E29 half": Case(lora(without("lora_up.weight")), ("sample", "inspect", "merge_loras", "resize"), "either"),
    "E29 all zero": Case(lora(filled(0.0)), ("inspect", "resize"), "either"),
    "E29 a base model without a block": Case(sd1_without_a_block, ("model", "train model"), says="missing"),
    "E29 a LoRA as a base model": Case(lora(), ("model", "train model", "vae")),
    "E30 4 TiB of nothing": Case(sparse, ("start", "inspect, looking", "model", "metadata"), "either"),
    # what lies in a model's folder beside its weights
    "E31 layers without end": Case(model({"text_encoder/config.json": {"num_hidden_layers": 10**9}}), ("model", "train model"), says="num_hidden_layers"),
    "E31 blocks without end": Case(model({"unet/config.json": {"layers_per_block": 10**12}}), ("model",), says="layers_per_block"),
    "E31 layers that are none": Case(model({"unet/config.json": {"layers_per_block": float("nan")}}), ("model",), says="layers_per_block"),
    "E31 timesteps without end": Case(model({"scheduler/scheduler_config.json": {"num_train_timesteps": 10**12}}), ("model", "paint"), says="num_train_timesteps"),
    "E31 a schedule of NaN": Case(model({"scheduler/scheduler_config.json": {"beta_start": float("nan")}}), ("model",), says="beta_start"),
    "E31 a schedule of texts": Case(model({"scheduler/scheduler_config.json": {"beta_end": "x", "prediction_type": [1]}}), ("model",), says="beta_end"),
    "E31 an index that is none": Case(model({"model_index.json": {"transformer": 3, "unet": {"a": 1}}}), ("model",), "either"),
    "E31 an index of objects": Case(model({"model_index.json": {"transformer": {"a": 1}, "_class_name": "\x1b[2J"}}), ("model",), "either"),
    "E31 a module": Case(model({"model_index.json": {"unet": ["os", "system"], "_diffusers_version": "../x"}}), ("model",), "either"),
    "E31 deep": Case(model({"unet/config.json": None}, text=b"[" * 200_000), ("model",), says="not JSON"),
    "E31 10^400": Case(model({"unet/config.json": {"sample_size": 10**400}}), ("model",), says="damaged"),
    # --- G. captions, prompts, archives
    "G01 an empty caption": Case(folder(a0="", a1="\n\n"), ("pictures",), "accepted"),
    "G02 captions of other encodings": Case(folder(p0=b"\xe9t\xe9", p1="caf\u00e9".encode("utf-16"), p2="\ufeffa cat"), ("pictures",), says="UTF-8"),
    "G02 the same, skipped": Case(folder(p0=b"\xe9t\xe9", p2="\ufeffa cat"), ("pictures, skipping",), "accepted"),
    "G03 a caption of 3 MB": Case(folder(p0="x" * 3_000_000), ("pictures", "train pictures"), says="too large"),
    "G04 a line of 1 MB": Case(folder(p0="x" * 1_000_000), ("pictures",), "accepted"),
    "G05 controls": Case(folder(p0="a\0b\x1b[2J\u202ec"), ("pictures",), "accepted"),
    "G06 ends of lines": Case(folder(p0="a cat\r\nx\u2028y\r"), ("pictures",), "accepted"),
    "G07 100,000 tags": Case(folder(p0=", ".join(f"tag{i}" for i in range(100_000))), ("pictures",), "accepted"),
    "G08 braces in braces": Case(folder(p0=deep("{a|", 300, "}"), p1="{" * 100_000, p2="{a|" * 100_000), ("wildcards",), "accepted"),
    "G09 captions that are no files": Case(strange_captions, ("pictures",), "accepted"),
    "G10 no captions": Case(folder(), ("wildcards",), "accepted"),
    "G11 kohya's folders": Case(kohya_folders, ("pictures",), "accepted"),
    **{f"G12 {line[:24]}": Case(content("p.txt", line), ("prompts",), says="p.txt, prompt 1") for line in (
        "a --w 99999999 --h 99999999", "a --s 1000000000", f"a --d 1{'0' * 100}", "a --l 1.2.3", "a --cn /etc/passwd", "a --l nan", f"a --w {'9' * 900_000}")},
    "G12 flags in a flag": Case(content("p.txt", "a --n b --  -- c"), ("prompts",), "accepted"),
    "G12 150,000 prompts": Case(lines_of(150_000), ("prompts",), says="150000 prompts"),
    "G12 faults without end": Case(content("p.txt", "a --w 1\n" * 10_000), ("prompts",)),
    "G13 an object": Case(content("p.json", "{}"), ("prompts",), says="p.json"),
    "G13 lists in lists": Case(content("p.json", deep("[", 50_000, "]")), ("prompts",), says="nested too deeply"),
    "G13 no prompt": Case(content("p.toml", "[[x]]\na = 1\n"), ("prompts",), says="p.toml"),
    "G13 a name of 300,000 parts": Case(content("p.toml", "prompt." + ".".join(["a"] * 300_000) + " = 1"), ("prompts",), says="32 parts"),
    "G14 a zip that leads out": Case(zipped("x.zip", ("../x.txt", b"x"), ("/x.txt", b"x"), ("C:\\x.txt", b"x"), ("a/../../x.txt", b"x")), ("upload",), "accepted"),
    "G14 a link": Case(zipped("x.zip", symbolic("a.txt", "/etc/passwd"), symbolic("b.png", "/etc/passwd")), ("upload",), "accepted"),
    "G14 names twice": Case(zipped("x.zip", ("a.txt", b"1"), ("a.txt", b"2"), ("A.txt", b"3")), ("upload",), "accepted"),
    "G14 a bomb": Case(bomb, ("upload",), "accepted"),
    "G14 a zip in a zip": Case(zipped("x.zip", ("a.zip", b"PK\3\4")), ("upload",), "accepted"),
    "G14 entries over one another": Case(overlapping, ("upload",), "either"),
    "G14 a password": Case(encrypted, ("upload",), "refused", says="password"),
    "G14 a name of 60,000 bytes": Case(zipped("x.zip", ("x" * 60_000 + ".txt", b"x")), ("upload",), "either"),
    "G14 names of systems": Case(zipped("x.zip", ("CON.txt", b"x"), ("a:b.txt", b"x"), (".htaccess", b"x"), ("x.html", b"<script>"), ("x.svg", b"<svg>")), ("upload",), "accepted"),
    "G14 no zip": Case(content("x.zip", b"PK\3\4" + bytes(100)), ("upload",)),
    "G15 a tar that leads out": Case(tarred(("../x.txt", b"x"), ("/tmp/x.txt", b"x"), ("a/../../x.png", b"x")), ("unpack",), "accepted"),
    "G15 links and devices": Case(tarred(("a.txt", "OUTSIDE/secret.txt"), ("b.png", "OUTSIDE/secret.txt"), ("c.png", ""), ("d.png", ""), n0=tarfile.SYMTYPE, n1=tarfile.LNKTYPE, n2=tarfile.CHRTYPE, n3=tarfile.FIFOTYPE), ("unpack",), "accepted"),
    "G15 a tar of lies": Case(tar_of_lies, ("unpack",)),
    "G15 JSON in a tar": Case(tarred(("good.json", deep("[", 100_000)), ("b.json", '{"caption": 1e999}')), ("unpack",), "accepted"),
    "G15 no tar": Case(content("x.tar", os.urandom(5000)), ("unpack", "pictures"), "either"),
    "G15 no parquet": Case(content("x.parquet", b"PAR1" + bytes(100) + b"PAR1"), ("unpack", "pictures"), "either"),
    "G16 a cache of kohya's": Case(npz, ("inspect", "metadata")),
    "G17 20,000 entries": Case(many_entries, ("metadata file",), "accepted"),
    "G17 entries outside": Case(content("m.json", json.dumps({"/etc/passwd": {"caption": "x"}, "../../x": {"caption": "y"}, "a\0b": {"caption": "z"}})), ("metadata file",)),
    "G17 an entry of empty lists": Case(content("m.json", '{"a": [' + "[]," * 1_000_000 + "[]]}"), ("metadata file",), says="not JSON"),
    "G17 lines of JSON": Case(content("m.jsonl", '{"file_name": "a.png", "text": ' + deep("[", 5000, "]") + "}\n"), ("metadata file",)),
    "G19 a link to everything": Case(lambda p: (folder()(p) / "all").symlink_to("/proc/self/fd") or p.folder / "pics", ("pictures",), "either"),
    "G20 one picture twice": Case(same_twice, ("pictures",), "either"),
    "G22 what cannot be read": Case(unreadable, ("pictures", "pictures, skipping"), "either"),
}  # fmt: skip
