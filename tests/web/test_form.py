"""The form is the schema: nothing of it is written down a second time."""

from __future__ import annotations

import json
from pathlib import Path

import limner.web.form
from limner.config import Config, files
from limner.config.base import Section, Texts, option
from limner.config.fields import walk
from limner.web.form import form_schema
from limner.web.words import Words

WEB = Path(limner.web.form.__file__).parent
QUICK = {"data.path", "data.trigger", "model.base", "output.name"}


class Glitter(Section):
    """What shines."""

    names: Texts = option(("a", "b"), when="train.steps")
    """Names of what shines."""

    shine: bool = option(True, advanced=True, kohya="no_shine", inverted=True)
    """Whether it shines."""


class Shining(Config):
    glitter: Glitter = Glitter()


def test_the_form_has_every_option_in_the_schemas_order() -> None:
    drawn = [(o["path"], o.get("tags", ())) for section in form_schema(Words()) for o in section["options"]]
    assert drawn == [(o.path, o.tags) for o in walk()]
    assert len(json.dumps(form_schema(Words()))) < 70_000


def test_a_section_added_to_the_schema_is_drawn() -> None:
    assert form_schema(Words(), Shining)[-1] == {
        "name": "glitter",
        "help": "What shines.",
        "options": [
            {
                "path": "glitter.names",
                "input": "list",
                "help": "Names of what shines.",
                "default": '["a","b"]',
                "expects": "list of texts",
                "when": "train.steps",
            },
            {
                "path": "glitter.shine",
                "input": "switch",
                "help": "Whether it shines.",
                "default": "true",
                "expects": "true or false",
                "kohya": "no_shine",
                "inverted": True,
                "advanced": True,
            },
        ],
    }


def test_each_option_gets_its_kind_of_input_and_a_default_that_reads_back() -> None:
    drawn = {(o["path"], o.get("tags", ())): o for section in form_schema(Words()) for o in section["options"]}
    inputs = {path: o["input"] for (path, _), o in drawn.items()}
    assert inputs["adapter.kind"] == inputs["launch.device"] == "choice"
    assert inputs["train.clip_norm"] == inputs["optimizer.lr"] == inputs["train.seed"] == "number"
    assert (inputs["data.path"], inputs["sample.prompts"], inputs["data.buckets"]) == ("path", "list", "switch")
    assert inputs["output.author"] == inputs["model.base"] == "text"
    assert drawn["train.clip_norm", ()]["choices"] == ("off",)
    assert "default" not in drawn["output.author", ()] and drawn["sample.negative", ()]["default"] == ""
    for o in walk():
        if o.default is not None and (not o.tags or "lora" in o.tags):
            assert files.build({}, {o.path: drawn[o.path, o.tags]["default"]}) == Config()


def test_the_page_names_no_option_but_the_quick_fields() -> None:
    sources = {p: p.read_text(encoding="utf-8") for p in (*WEB.glob("*.py"), *WEB.glob("static/*.js"))}
    found = {(p.name, o.path) for p, text in sources.items() for o in walk() if f'"{o.path}"' in text}
    # how pictures are cut is what the Dataset page shows; where results go is one of the settings; the dialog of a running run
    # has what is changed most; and the gate looks at every path, also where one stands in a text
    shown = {"data.resolution", "data.bucket_step_px", "output.path"}
    changed = {"optimizer.lr", "train.steps", "sample.every_steps", "sample.prompts"}
    assert {path for _, path in found} <= QUICK | shown | changed | {"model.merge"}, found


def test_texts_are_said_in_the_pages_language() -> None:
    words = Words("xx", {"Optimiser updates.": "?", "Length, batch, seed and precision.": "Länge"})
    assert next(s for s in form_schema(words) if s["name"] == "train")["help"] == "Länge"
