"""Random texts by grammar for the targets of tests/fuzz_targets.py, and, with atheris, along the branches of the code.

`python tests/fuzzing.py TARGET [libFuzzer's options] [FOLDER]` is atheris; it has to be installed (pip install atheris).
"""

from __future__ import annotations

import struct
import sys

if __name__ == "__main__":
    import atheris  # pyright: ignore[reportMissingImports]

    looked_at = ["limner", "tomllib", "json", "tarfile", "zipfile", "pickletools"]
    for name in [name for name in sys.modules if name.partition(".")[0] in looked_at]:
        del sys.modules[name]  # to be imported again, looked at
    with atheris.instrument_imports(include=looked_at):
        import json

    # of C nothing is seen: the scanners of JSON that are written in Python guide it
    json.decoder.scanstring = json.decoder.py_scanstring  # type: ignore[attr-defined]
    json.scanner.make_scanner = json.scanner.py_make_scanner  # type: ignore[attr-defined]
    json._default_decoder = json.JSONDecoder()  # type: ignore[attr-defined]
    with atheris.instrument_imports(include=looked_at):
        import fuzz_targets
    target = fuzz_targets.TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


def run(name: str, examples: int, *, seed: int | None, seconds: float | None = None) -> int:
    """Try a target with so many random inputs, or for so long; returns how many were tried. Raises what the target raises."""
    import time

    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    import fuzz_targets

    target, tried, begun = fuzz_targets.TARGETS[name], 0, time.monotonic()
    phases = (Phase.generate, Phase.shrink)

    @settings(
        max_examples=examples, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck),
        derandomize=seed is None,
    )  # fmt: skip
    @given(content=strategies()[name])
    def trial(content: bytes) -> None:
        nonlocal tried
        tried += 1
        target(content)

    if seed is None:
        trial()
        return tried
    while seconds is None or time.monotonic() - begun < seconds:
        seeded(seed)(trial)()
        seed += 1
        if seconds is None:
            break
    return tried


def strategies():
    """For each target: texts of its grammar, some of them damaged."""
    from hypothesis import strategies as st

    import fuzz_targets

    character = st.characters(codec="utf-8")
    word = st.one_of(
        st.text(character, max_size=8), st.sampled_from(["", "a", "__class__", "../x", "\x1b[2J", "\u202e", "NaN", "1e999", "9" * 4301]),
    )  # fmt: skip
    number = st.one_of(
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.sampled_from([0, -1, 2**63, 10**400, 1e308, -0.0]),
        st.booleans(),
        st.none(),
    )
    value = st.recursive(
        st.one_of(number, word),
        lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(word, v, max_size=3)),
        max_leaves=6,
    )

    def damaged(texts):
        def change(args):
            text, at, size, new, is_damaged = args
            at %= len(text) + 1
            return text[:at] + new + text[at + size :] if is_damaged else text

        return st.tuples(texts, st.integers(0, 5000), st.integers(0, 4), st.binary(max_size=4), st.booleans()).map(change)

    def joined(parts, least=0, most=12, by=""):
        return st.lists(parts, min_size=least, max_size=most).map(lambda p: by.join(p).encode("utf-8", "replace"))

    def as_json(values):
        import json

        return values.map(lambda v: json.dumps(v, ensure_ascii=bool(len(str(v)) % 2)).encode("utf-8", "surrogatepass"))

    def toml_value(v) -> str:
        import json

        if isinstance(v, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {toml_value(x)}" for k, x in v.items()) + "}"
        if isinstance(v, list):
            return "[" + ", ".join(map(toml_value, v)) + "]"
        return "''" if v is None else json.dumps(v).replace("NaN", "nan").replace("Infinity", "inf")

    def tables(names, sections):
        pairs = st.tuples(names, value).map(lambda p: f"{p[0]} = {toml_value(p[1])}")
        head = sections.map(lambda s: f"[{s}]")
        return joined(st.one_of(pairs, pairs, pairs, head), most=10, by="\n")

    from limner.config.fields import walk
    from limner.config.kohya.scripts import arguments
    from limner.data.subsets import _KNOWN as KEYS

    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "I64", "U8", "BOOL", "F4", "X", 3]),
            "shape": st.one_of(st.lists(st.integers(-1, 5), max_size=4), value),
        },
        optional={"data_offsets": st.one_of(st.lists(st.integers(-1, 40), min_size=2, max_size=2), value), "x": value},
    )
    one_tensor = st.integers(0, 5).map(lambda n: {"a": {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}})
    head = st.one_of(
        st.dictionaries(st.one_of(word, st.just("__metadata__")), st.one_of(entry, entry, value), max_size=4), one_tensor
    )
    flags = st.sampled_from(["w", "h", "d", "s", "l", "g", "fs", "n", "ss", "cn", "x", "W", ""])
    part = st.tuples(
        st.sampled_from([" --", " -- ", "--", "\t--"]),
        flags,
        st.sampled_from([" ", "  ", "=", ""]),
        st.one_of(word, number.map(str)),
    ).map("".join)
    signs = st.one_of(word, st.sampled_from([*"(){}[]|,:;\\\n\r\u2028\0", "{{", "}}", "|||", ":1.2)", "{a|b}"]))
    kohya = sorted(arguments())
    ours = sorted({o.path for o in walk()})
    argument = st.one_of(st.sampled_from(kohya), word)
    form = st.dictionaries(
        st.one_of(argument, st.sampled_from(["LoRA_type", "optimizer", "additional_parameters", "model_list"])),
        value,
        max_size=8,
    )
    line = joined(
        st.one_of(
            st.tuples(st.just("--"), argument, st.sampled_from([" ", "="]), st.one_of(word, number.map(str))).map("".join),
            st.sampled_from(["train_network.py", '"', "'", "\\\n", "accelerate launch"]),
        ),
        by=" ",
    )
    sections = st.sampled_from(sorted({p.partition(".")[0] for p in ours}))
    pickle_codes = st.one_of(
        st.binary(max_size=3), st.sampled_from([b"\x80\x02", b"}", b"(", b"]", b"q\x00", b"h\x00", b"0", b"t", b"R", b"Q", b"u", b"s", b".", b"K\x01",
            b"X\x01\0\0\0a", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n", b")", b"\x85", b"\x86", b"\x87", b"b", b"\x93",
            b"\x81", b"\x94", b"e", b"a", b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f"]),
    )  # fmt: skip
    seeds = {name: st.sampled_from(found) if found else st.just(b"") for name, found in fuzz_targets.SEEDS.items()}
    grammar = {
        "header": st.tuples(st.sampled_from([0, 4, 8, 16, 40]), as_json(st.one_of(head, head, value))).map(lambda p: struct.pack("<H", p[0]) + p[1]),
        "prompt": joined(st.one_of(word, part)),
        "prompt_file": st.one_of(joined(st.one_of(word, part, st.just("\n"))), as_json(value), as_json(st.lists(st.dictionaries(st.one_of(word, st.sampled_from(["prompt", "width", "seed", "scale"])), value, max_size=4), max_size=3)), tables(st.sampled_from(["prompt", "width", "seed"]), st.sampled_from(["prompt", "[prompt.subset]"]))),
        "caption": st.one_of(joined(signs), st.binary(max_size=40)),
        "weights": joined(signs, most=30),
        "kohya": st.one_of(as_json(form), line, tables(argument, word.map(repr)), tables(st.sampled_from(sorted(KEYS)), st.sampled_from(["general", "[datasets]", "[datasets.subsets]"]))),
        "configuration": tables(st.sampled_from(sorted({p.partition(".")[2] for p in ours} | {"kind"})), sections),
        "subsets": st.one_of(tables(st.sampled_from(sorted(KEYS)), st.sampled_from(["general", "[datasets]", "[datasets.subsets]"])), as_json(value)),
        "metadata": st.one_of(as_json(st.dictionaries(word, st.dictionaries(st.sampled_from(["caption", "tags", "text", "x"]), value, max_size=3), max_size=3)), as_json(st.dictionaries(st.sampled_from(["file_name", "image", "text"]), value)), as_json(value)),
        "program": st.lists(pickle_codes, max_size=25).map(b"".join),
        "archive": st.one_of(st.binary(max_size=600), *archives(st, word)),
    }  # fmt: skip
    return {name: damaged(st.one_of(texts, texts, seeds[name])) for name, texts in grammar.items()}


def archives(st, word):
    """Zips and tars of a few entries."""
    import io
    import tarfile
    import warnings
    import zipfile

    name = st.one_of(word, st.sampled_from(["a.png", "../a.txt", "/a.txt", "a.txt", "a/b.png", "a", "a.json", ".x", "CON.txt"]))
    entries = st.lists(
        st.tuples(name, st.binary(max_size=20), st.sampled_from([b"0", b"1", b"2", b"5", b"6", b"L", b"x", b"S"])), max_size=4
    )

    def zipped(given) -> bytes:
        out = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
            warnings.simplefilter("ignore")
            for inner, said, kind in given:
                archive.writestr(inner or "x", said, zipfile.ZIP_DEFLATED if kind < b"3" else zipfile.ZIP_STORED)
        return out.getvalue()

    def tarred(given) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for inner, said, kind in given:
                info = tarfile.TarInfo(inner.replace("\0", ""))
                info.size, info.type, info.linkname = len(said), kind, "../x"
                archive.addfile(info, io.BytesIO(said))
        return out.getvalue()

    return entries.map(zipped), entries.map(tarred)
