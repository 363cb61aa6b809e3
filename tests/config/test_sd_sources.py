"""Config files, dataset files and pasted command lines are told apart and read; broken ones are said to be so."""

from __future__ import annotations

import contextlib
import json
import random
import time
from pathlib import Path

import pytest

from limner.config import Config, files
from limner.config.kohya import Imported, Report, read_text
from limner.config.kohya.command_line import read
from limner.data.subsets import read as read_subsets
from limner.errors import UserError


def _config(imported: Imported) -> Config:
    return files.build(imported.values, {})


FLAT = 'network_module = "networks.lora"\nnetwork_dim = 8\nlearning_rate = 1e-4\nmax_train_steps = 200\nflip_aug = true\n'


def test_a_config_file_with_or_without_sections() -> None:
    flat = read_text(FLAT, "a.toml")
    lines = FLAT.splitlines()
    sections = "\n".join(["[anything]", *lines[:2], "[more]", *lines[2:]])
    assert _config(flat) == _config(read_text(sections, "b.toml"))
    assert _config(flat).adapter.rank == 8  # type: ignore[union-attr]
    assert _config(flat).data.flip


def test_of_an_argument_in_two_sections_the_last_holds() -> None:
    found = read_text("[a]\nlearning_rate = 1e-3\nseed = 1\n[b]\nlearning_rate = 1e-4\n", "x.toml")
    assert _config(found).optimizer.lr == 1e-4
    assert found.report.lines["learning_rate (before)"].outcome == "idle"


COMMAND = [
    "accelerate", "launch", "--num_cpu_threads_per_process=2", "--mixed_precision", "bf16", "--multi_gpu",
    "C:\\kohya ss\\sd-scripts\\sdxl_train_network.py", "--network_module", "networks.lora", "--network_args", "conv_dim=4",
    "conv_alpha=1", "--learning_rate=1e-4", "--cache_latents", "--output_name", "it's a \"cat\"", "--max_train_steps",
    "100",     "--train_data_dir", "D:\\pictures\\my cat", "--no-such-flag", "3",
]  # fmt: skip


def _quoted(word: str, style: str) -> str:
    if style == "posix":
        return "'" + word.replace("'", "'\"'\"'") + "'" if any(c in word for c in " '\"\\") else word
    return f'"{word.replace(chr(34), chr(92) + chr(34))}"' if any(c in word for c in " '\"") else word


@pytest.mark.parametrize(("style", "line_end"), [("posix", " \\\n  "), ("cmd", " ^\r\n "), ("cmd", " `\r\n "), ("posix", " ")])
def test_a_command_line_of_any_shell(style: str, line_end: str) -> None:
    report = Report()
    found = read(line_end.join(_quoted(word, style) for word in COMMAND), report)
    assert found == {
        "_script": "sdxl_train_network.py", "num_cpu_threads_per_process": "2", "network_module": "networks.lora",
        "network_args": ["conv_dim=4", "conv_alpha=1"], "learning_rate": "1e-4", "cache_latents": True,
        "output_name": "it's a \"cat\"", "max_train_steps": "100",
        "train_data_dir": "D:\\pictures\\my cat", "no_such_flag": "3",
    }  # fmt: skip
    assert set(report.lines) == {"accelerate.mixed_precision", "accelerate.multi_gpu"}


def test_a_pasted_command_becomes_a_configuration() -> None:
    found = read_text(" \\\n".join(_quoted(w, "posix") for w in COMMAND), "pasted")
    config = _config(found)
    assert (config.model.family, config.launch.num_threads, config.optimizer.lr) == ("sdxl", 2, 1e-4)
    assert config.output.name == 'it\'s a "cat"'
    assert str(config.data.path) == "D:\\pictures\\my cat"
    assert found.report.lines["no_such_flag"].outcome == "unknown"


def test_words_of_random_characters_come_back_through_quotes() -> None:
    rng = random.Random(3)
    for _ in range(300):
        words = ["".join(rng.choice("ab \"'\\$;|&()<>*é=-\t") for _ in range(rng.randrange(1, 12))) for _ in range(3)]
        text = "--network_args " + " ".join("'" + w.replace("'", "'\"'\"'") + "'" for w in words)
        expected = [w for w in words]
        flags = [w for w in expected if w.startswith("--") and len(w) > 2]
        if not flags:
            assert read(text, Report()).get("network_args") == expected


def test_a_windows_folder_in_quotes_may_end_in_a_backslash() -> None:
    assert read('--output_dir "C:\\out dir\\" --seed 3', Report()) == {"output_dir": "C:\\out dir\\", "seed": "3"}


def test_what_stands_behind_no_flag_is_said() -> None:
    report = Report()
    assert read("train_network.py stray --seed 3 4 --cache_latents false", report) == {
        "_script": "train_network.py", "seed": "3", "cache_latents": True,
    }  # fmt: skip
    assert [line.value for line in report.lines.values()] == ["stray", "4", "false"]


DATASET = """
[general]
shuffle_caption = true
[[datasets]]
resolution = 768
batch_size = 4
[[datasets.subsets]]
image_dir = "/pictures/cat"
num_repeats = 3
class_tokens = "a cat"
"""


def test_a_dataset_file_goes_on_beside_the_configuration(tmp_path: Path) -> None:
    found = read_text(DATASET, "d.toml")
    assert set(found.report.lines) == {
        "general.shuffle_caption", "datasets[0].resolution", "datasets[0].batch_size", "datasets[0].subsets[0].image_dir",
        "datasets[0].subsets[0].num_repeats", "datasets[0].subsets[0].class_tokens",
    }  # fmt: skip
    assert found.values == {"train": {"batch_size": 4}}
    path = tmp_path / "d.json"
    path.write_text(found.subsets, "utf-8")
    subsets, _ = read_subsets(path, Config().data)
    assert (subsets[0].data.repeats, subsets[0].data.resolution, subsets[0].data.shuffle_tags) == (3, 768, True)
    assert found.subsets == read_text(json.dumps(json.loads(found.subsets)), "d.json").subsets


def test_a_form_is_read_as_one_though_it_has_arguments_names() -> None:
    said = read_text('{"LoRA_type": "Standard", "max_resolution": "512,512", "epoch": 3, "max_train_steps": 0}', "x.json")
    assert said.values["train"]["epochs"] == 3 and said.report.lines["epoch"].outcome == "taken"


BROKEN = [
    "", " ", "{", "[", "[]", "{}", "a = ", "a = 1\na = 2", '{"learning_rate": 1, "learning_rate": 2}', '{"seed": NaN}',
    '{"a": -Infinity}',
    '{"seed": 1' + "0" * 5000 + "}", "seed = 1" + "0" * 5000, "[" * 100_000, '{"a":' * 100_000, "a = " + "[" * 100_000,
    '{"seed": ' + "[" * 30 + "]" * 30 + "}", "x" * (1 << 20) + "y", "hello = 1", "--output_name 'x", "\x00", "\ud800 = 1",
    "null", '{"datasets": 3}',
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_what_is_broken_is_said_and_nothing_else(text: str) -> None:
    with pytest.raises(UserError) as error:
        read_text(text, "given.txt")
    assert error.value.findings[0].message
    assert len(str(error.value)) < 1000


def test_numbers_beyond_all_are_no_numbers() -> None:
    found = read_text('{"seed": 1e400, "learning_rate": ' + "1" + "0" * 400 + "}", "x.json")
    assert {found.report.lines[k].outcome for k in ("seed", "learning_rate")} == {"unsupported"}
    files.build(found.values, {})


def test_random_texts_never_crash() -> None:
    rng = random.Random(11)
    pieces = [
        "--",
        "seed",
        "=",
        "1",
        '"',
        "'",
        "\\",
        "\n",
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        "train_network.py",
        " ",
        "^",
        "`",
        "é",
        "#",
    ]
    for _ in range(800):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 25)))
        try:
            files.build(read_text(text, "x").values, {})
        except UserError:
            continue


@pytest.mark.parametrize("text", ["\\", "^", "`", "a", "'a'", "a ", "\\ ", "--a "], ids=repr)
def test_a_megabyte_of_anything_is_looked_at_in_time(text: str) -> None:
    before = time.monotonic()
    with contextlib.suppress(UserError):
        read_text("--output_name " + text * ((1 << 20) // len(text) - 20), "x")
    assert time.monotonic() - before < 10


def test_thousands_of_parts_are_refused() -> None:
    found = read_text("--optimizer_type Prodigy --optimizer_args " + "a=1 " * 15_000, "x")
    assert found.report.lines["optimizer_args"].outcome == "unsupported"


def test_a_file_that_speaks_of_a_command_is_still_a_file() -> None:
    found = read_text("# accelerate launch train_network.py --config_file this\n" + FLAT, "a.toml")
    assert _config(found).train.steps == 200


def test_variables_before_a_command_are_said() -> None:
    report = Report()
    assert read("CUDA_VISIBLE_DEVICES=1 python train_db.py --seed 2", report) == {"_script": "train_db.py", "seed": "2"}
    assert list(report.lines) == ["CUDA_VISIBLE_DEVICES=1"]
