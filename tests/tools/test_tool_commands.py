"""`limner tools`: what there is, its options, what it says to mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.config.fields import section_types, walk
from limner.config.tools import Tools
from limner.config.tools.base import ToolSection
from limner.errors import UserError
from limner.tools import using


def test_every_tool_is_whole():
    for name, tag, kind in section_types(Tools):
        assert tag is None and issubclass(kind, ToolSection), name
        assert kind.title and kind.__doc__, name
        module = using.module_of(kind.model_construct())
        assert callable(module.look) and callable(module.run), name
    for option in walk(Tools):
        assert option.help.endswith((".", ")")), option.path


def test_every_tool_is_listed_with_its_options():
    listed = using.listed()
    assert [line.split()[0] for line in listed] == list(Tools.model_fields)
    for name in Tools.model_fields:
        said = "\n".join(using.described(name))
        assert all(f"--{option.name}" in said for option in walk(Tools) if option.section == name)


@pytest.mark.parametrize(
    ("name", "texts", "field"),
    [
        ("nonsense", {}, "nonsense"),
        ("resize", {}, "resize.lora"),
        ("resize", {"lora": ["a"], "output": ["b"], "rank": ["many"]}, "resize.rank"),
        ("resize", {"lora": ["a", "b"]}, "resize.lora"),
        ("resize", {"loras": ["a"]}, "resize.loras"),
    ],
)
def test_a_mistake_names_its_option(name: str, texts: dict[str, list[str]], field: str):
    with pytest.raises(UserError) as caught:
        using.section(name, texts)
    assert field in [f.field for f in caught.value.findings]


def test_names_may_be_typed_in_any_usual_way(tmp_path: Path):
    texts = {"lora": ["a.safetensors"], "output": ["b.safetensors"], "conv-rank": ["4"], "resize.rank": ["8"]}
    section = using.section("resize", texts)
    assert (section.conv_rank, section.rank) == (4, 8)  # type: ignore[attr-defined]
