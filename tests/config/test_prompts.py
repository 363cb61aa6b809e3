"""kohya's prompt grammar, and what is refused (reliability.md G12)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from limner.config import files
from limner.config.prompts import Prompt, all_prompts, parse, read_lines
from limner.errors import UserError

DEFAULT = Prompt(text="", negative="bad", width=512, height=512, steps=20, guidance=7.0, seed=3, solver="ddim")


def test_every_flag_of_a_full_line() -> None:
    line = "a cat, on a mat --w 768 --h 640 --d 42 --s 28 --l 7.5 --n blurry, low-res --ss k_euler"
    assert parse(line, DEFAULT, "f") == Prompt("a cat, on a mat", "blurry, low-res", 768, 640, 28, 7.5, 42, "euler")


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
        ("a --s 1000 --ss DDIM", {"text": "a", "steps": 1000, "solver": "ddim"}),
        ("猫 🐈 --n ü", {"text": "猫 🐈", "negative": "ü"}),
    ],
)
def test_lines(line: str, changed: dict) -> None:
    assert parse(line, DEFAULT, "f") == replace(DEFAULT, **changed)


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
REFUSED += ["ss os.system", "ss", "w64", "help", "n x --cn y", "fs 3", "g 3.5"]


@pytest.mark.parametrize("flag", REFUSED)
def test_refusals_name_the_flag_and_do_not_repeat_a_novel(flag: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(f"a cat --{flag}", DEFAULT, "sample.prompts[0]")
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


def test_a_prompt_file_may_have_bom_crlf_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "p.TXT"
    path.write_bytes("\ufeffa cat\r\n\r\n# comment\r\n  # a prompt with a hash \r\nb\rc".encode())
    assert read_lines(path) == ["a cat", "# a prompt with a hash", "b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.json", b"[]", "not a .txt file"),
        ("p.toml", b"", "not a .txt file"),
        ("p.txt", b"\xff\xfea\x00", "not UTF-8"),
        ("p.txt", b"x" * ((1 << 20) + 1), "1 MiB"),
        ("p.txt", b"a\x1b[2Jb", "U+001B"),
        ("p.txt", b"a\x00b", "U+0000"),
    ],
)
def test_prompt_files_that_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"sample\.prompt_file") as caught:
        read_lines(tmp_path / name)
    assert said in str(caught.value)


def test_a_missing_prompt_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "dir.txt").mkdir()
    for name in ("none.txt", "dir.txt"):
        with pytest.raises(UserError, match=r"not a file"):
            read_lines(tmp_path / name)
