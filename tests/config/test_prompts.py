"""kohya's prompt grammar, and what is refused (reliability.md G12)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from limner.config import files
from limner.config.prompts import SOLVERS, Prompt, all_prompts, from_table, parse, read_file
from limner.errors import UserError

DEFAULT = Prompt(text="", negative="bad", width=512, height=512, steps=20, guidance=7.0, seed=3, solver="ddim", where="f")


def test_every_flag_of_a_full_line() -> None:
    line = "a cat, on a mat --w 768 --h 640 --d 42 --s 28 --l 7.5 --n blurry, low-res --ss k_euler --g 3.5 --fs 1.15"
    expected = Prompt("a cat, on a mat", "blurry, low-res", 768, 640, 28, 7.5, 42, "euler", 3.5, 1.15)
    assert parse(line, DEFAULT) == expected
    table = {
        "prompt": " a cat, on a mat", "negative_prompt": "blurry, low-res", "width": 768, "height": 640, "seed": 42,
        "sample_steps": 28, "scale": 7.5, "sample_sampler": "k_euler", "guidance_scale": 3.5, "flow_shift": 1.15,
    }  # fmt: skip
    assert from_table(table, DEFAULT) == expected


@pytest.mark.parametrize("name", ["k_euler_a", "EULER_A", "euler_a", "dpmsolver++", "dpmpp_2m", "k_euler", "ddim"])
def test_kohyas_samplers_that_there_are(name: str) -> None:
    solver = {"dpmsolver++": "dpmpp_2m"}.get(name, name.lower().removeprefix("k_"))
    assert solver in SOLVERS
    assert parse(f"a --ss {name}", DEFAULT).solver == from_table({"sample_sampler": name}, DEFAULT).solver == solver
    assert files.build({}, {"sample.solver": name}).sample.solver == solver


@pytest.mark.parametrize("name", ["pndm", "lms", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsingle", "k_lms", "k_dpm_2_a"])
def test_kohyas_samplers_that_there_are_not(name: str) -> None:
    calls = (
        lambda: parse(f"a --ss {name}", DEFAULT),
        lambda: from_table({"sample_sampler": name}, DEFAULT),
        lambda: files.build({}, {"sample.solver": name}),
    )
    for call in calls:
        with pytest.raises(UserError) as caught:
            call()
        assert name in str(caught.value) and all(solver in str(caught.value) for solver in SOLVERS)


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("a cat", {"text": "a cat"}),
        ("  a cat  ", {"text": "a cat"}),
        ("", {}),
        ("--w 64", {"width": 64}),
        ("n foo --W 64", {"text": "n foo", "width": 64}),
        ("a cat --n", {"text": "a cat", "negative": ""}),
        ("a -- b --n c -- d --- e", {"text": "a -- b", "negative": "c -- d --- e"}),
        ("a well-known--w cat", {"text": "a well-known--w cat"}),
        ("a\t--w  64 ", {"text": "a", "width": 64}),
        ("a --w 64 --w 128", {"text": "a", "width": 128}),
        ("a --d 9223372036854775807", {"text": "a", "seed": 2**63 - 1}),
        ("a --l 0", {"text": "a", "guidance": 0.0}),
        ("a --g 0 --fs 0.001", {"text": "a", "told_guidance": 0.0, "shift": 0.001}),
        ("a --s 1000 --ss DDIM", {"text": "a", "steps": 1000, "solver": "ddim"}),
        ("猫 🐈 --n ü", {"text": "猫 🐈", "negative": "ü"}),
    ],
)
def test_lines(line: str, changed: dict) -> None:
    assert parse(line, DEFAULT) == replace(DEFAULT, **changed)


REFUSED = [
    "w 99999999",
    "h 99999999",
    "w 15",
    "w",
    "w -64",
    "w 6e2",
    "w 64.0",
    "w 64 64",
    "w \u0663\u0663",
    "s 1000000000",
    "s 0",
    "s 10^9",
]
REFUSED += [
    "d " + "9" * 101,
    "d -1",
    "d 9223372036854775808",
    "l 1.2.3",
    "l nan",
    "l inf",
    "l -1",
    "l 101",
    "l",
    "cn /etc/passwd",
]
REFUSED += [
    "ss os.system",
    "ss",
    "w64",
    "help",
    "n x --cn y",
    "fs 0",
    "fs -1",
    "fs 101",
    "fs nan",
    "g -1",
    "g x",
    "g inf",
    "ctr 1",
    "rcfg 1",
]


@pytest.mark.parametrize("flag", REFUSED)
def test_refusals_name_the_flag_and_do_not_repeat_a_novel(flag: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(f"a cat --{flag}", replace(DEFAULT, where="sample.prompts[0]"))
    [finding] = caught.value.findings
    assert finding.field == "sample.prompts[0]"
    assert f"--{flag.split(' --')[-1].split()[0]}" in finding.message
    assert finding.remedy and len(str(finding)) <= 700


def test_all_prompts_fill_in_and_round_down() -> None:
    raw = {
        "sample": {
            "prompts": ["a --w 100 --h 99", "b", "c --d 5 --s 3 --w 16"],
            "seed": 2**63 - 1,
            "negative": "x",
            "height": 96,
        }
    }
    assert all_prompts(files.build(raw, {}), resolution=70, size_step=16) == [
        Prompt("a", "x", 96, 96, 20, None, 2**63 - 1, None),
        Prompt("b", "x", 64, 96, 20, None, 0, None),
        Prompt("c", "x", 16, 96, 3, None, 5, None),
    ]


def test_all_prompts_name_every_fault_at_once(tmp_path: Path) -> None:
    (path := tmp_path / "p.txt").write_text("fine\n# not a prompt\n\nb --s 0\n", encoding="utf-8")
    raw = {"sample": {"prompts": ["a --w 1", "b", "c --w 8192 --h 8192"], "prompt_file": str(path)}}
    with pytest.raises(UserError) as caught:
        all_prompts(files.build(raw, {}), 512, 64)
    assert [f.field for f in caught.value.findings] == ["sample.prompts[0]", "sample.prompts[2]", "p.txt, prompt 2"]


def test_guidance_of_the_options_is_not_put_on_top_of_what_is_told() -> None:
    raw = {"sample": {"prompts": ["a", "b --g 2", "c --g 2 --l 4", "d --l 1"], "guidance": 3.0}}
    found = all_prompts(files.build(raw, {}), 512, 64)
    assert [(p.guidance, p.told_guidance) for p in found] == [(3.0, None), (None, 2.0), (4.0, 2.0), (1.0, None)]
    assert [p.guidances(True, 3.5) for p in found] == [(3.0, 1.0), (2.0, 1.0), (2.0, 4.0), (1.0, 1.0)]
    assert [p.guidances(False, 7.0)[1] for p in (found[0], found[3], replace(found[0], guidance=None))] == [3.0, 1.0, 7.0]


# --- files ------------------------------------------------------------------------------------------------------------


def painted(path: Path) -> list[Prompt]:
    return all_prompts(files.build({"sample": {"prompts": ["first"], "prompt_file": str(path)}}, {}), 512, 64)[1:]


def refused(path: Path) -> tuple[str, str]:
    """(field, message) of the one finding."""
    with pytest.raises(UserError) as caught:
        painted(path)
    [finding] = caught.value.findings
    assert finding.remedy and len(str(finding)) <= 760
    return finding.field, finding.message


def test_a_prompt_file_may_have_bom_crlf_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "p.TXT"
    path.write_bytes("\ufeffa cat\r\n\r\n# comment\r\n  # a prompt with a hash \r\nb\rc".encode())
    assert read_file(path) == ["a cat", "# a prompt with a hash", "b", "c"]


TOML = """
[prompt]
prompt = "a cat"
width = 256
scale = 3

[[prompt.subset]]
seed = 7

[[prompt.subset]]
prompt = "a dog -- not --w 128"
width = 128
negative_prompt = "猫"
"""
PROMPTS = [
    Prompt("a cat", "", 256, 512, 20, 3.0, 7, None),
    Prompt("a dog -- not --w 128", "猫", 128, 512, 20, 3.0, 2, None),
]


def test_kohyas_toml(tmp_path: Path) -> None:
    """A subset's key takes precedence over a common one; a prompt's text is taken as it is."""
    (path := tmp_path / "p.toml").write_text(TOML, encoding="utf-8")
    assert painted(path) == PROMPTS
    path.write_text(TOML.partition("[[")[0], encoding="utf-8")
    assert painted(path) == [replace(PROMPTS[0], seed=1)]


def test_kohyas_json(tmp_path: Path) -> None:
    """Lines and tables, side by side."""
    table = {"prompt": "a dog -- not --w 128", "width": 128, "negative_prompt": "猫", "scale": 3}
    (path := tmp_path / "p.JSON").write_text(json.dumps(["a cat --w 256 --l 3 --d 7", table]), encoding="utf-8-sig")
    assert painted(path) == PROMPTS
    path.write_text("[]")
    assert painted(path) == []


VALUES: list[tuple[str, object, str]] = [
    ("width", "512", "is not a whole number"),
    ("width", 512.0, "is not a whole number"),
    ("width", True, "is not a whole number"),
    ("width", None, "is not a whole number"),
    ("width", 8, "is not a whole number from 16 to 8192"),
    ("seed", -1, "is not a whole number from 0"),
    ("seed", 10**100, "is not a whole number from 0"),
    ("scale", "7", "is not a number"),
    ("scale", [7], "is not a number"),
    ("scale", float("nan"), "is not a number from 0 to 100"),
    ("guidance_scale", float("inf"), "is not a number from 0 to 100"),
    ("flow_shift", 0, "is not a number above 0, at most 100"),
    ("prompt", 7, "is not text"),
    ("negative_prompt", {"a": "b" * 1000}, "is not text"),
    ("sample_sampler", "heun", "is not known"),
]


@pytest.mark.parametrize(("key", "value", "said"), VALUES, ids=[f"{k}-{str(v)[:9]}" for k, v, _ in VALUES])
def test_values_that_are_refused_name_file_prompt_key_and_value(tmp_path: Path, key: str, value: object, said: str) -> None:
    (path := tmp_path / "p.json").write_text(json.dumps(["a", {"prompt": "b", key: value}]))
    field, message = refused(path)
    assert field == "p.json, prompt 2" and message.startswith(f"{key} ") and said in message
    assert str(value)[:9] in message


@pytest.mark.parametrize("key", ["controlnet_image", "cfg_trunc_ratio", "renorm_cfg", "enum", "Prompt", "w", "text\x1b"])
def test_keys_that_are_refused_by_name(tmp_path: Path, key: str) -> None:
    (path := tmp_path / "p.json").write_text(json.dumps([{key: 1}]))
    field, message = refused(path)
    assert field == "p.json, prompt 1" and repr(key) in message and "is not a key" in message


def test_every_fault_of_a_file_is_named(tmp_path: Path) -> None:
    (path := tmp_path / "p.toml").write_text(
        '[prompt]\n[[prompt.subset]]\nseed = ""\n[[prompt.subset]]\n[[prompt.subset]]\nx = 1'
    )
    with pytest.raises(UserError) as caught:
        painted(path)
    assert [f.field for f in caught.value.findings] == ["p.toml, prompt 1", "p.toml, prompt 3"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.yaml", b"", "not a .txt, .toml or .json file"),
        ("prompts", b"", "not a .txt, .toml or .json file"),
        ("p.txt", b"\xff\xfea\x00", "not UTF-8"),
        ("p.json", b"\xff", "not UTF-8"),
        ("p.txt", b"x" * ((1 << 20) + 1), "1 MiB"),
        ("p.json", b"", "is not valid JSON"),
        ("p.json", b"[" * 100_000, "is not valid JSON"),
        ("p.json", b"[" + b"1" * 10_000 + b"]", "is not valid JSON"),
        ("p.json", b'{"prompt": "a"}', "a list of texts or tables"),
        ("p.json", b"[1]", "a list of texts or tables"),
        ("p.json", b'[["a"]]', "a list of texts or tables"),
        ("p.json", b"null", "a list of texts or tables"),
        ("p.toml", b"[prompt", "is not valid TOML"),
        ("p.toml", b"a = " + b"[" * 100_000, "is not valid TOML"),
        ("p.toml", b"[prompt]\nseed = 0x" + b"f" * 100_000, "thousands of digits"),
        ("p.toml", b"", "a table [prompt]"),
        ("p.toml", b"[[prompt]]", "a table [prompt]"),
        ("p.toml", b"[prompt]\n[other]", "and nothing else"),
        ("p.toml", b"[prompt]\nsubset = 1", "a table [prompt]"),
        ("p.toml", b"[prompt]\nsubset = [1]", "a table [prompt]"),
    ],
)
def test_prompt_files_that_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    field, message = refused(tmp_path / name)
    assert field == "sample.prompt_file" and said in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", b"a\x1b[2Jb", "U+001B"),
        ("p.txt", b"a\x00b", "U+0000"),
        ("p.json", b'["a\\u001b"]', "U+001B"),
        ("p.json", b'[{"prompt": "\\ud800"}]', "U+D800"),
        ("p.json", b'[{"negative_prompt": "\\u0000"}]', "U+0000"),
        ("p.toml", b"[prompt]\nseed = 2026-01-01", "datetime.date(2026, 1, 1)"),
    ],
)
def test_contents_that_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    field, message = refused(tmp_path / name)
    assert field == f"{name}, prompt 1" and said in message


def test_a_missing_prompt_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "dir.txt").mkdir()
    for name in ("none.txt", "dir.txt"):
        assert "not a file" in refused(tmp_path / name)[1]
