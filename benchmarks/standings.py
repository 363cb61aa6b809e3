"""What rivals.py's runs come to: figures of each program, Limner's as a share of theirs, as a table and as a drawing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_LIMNER, _BARE = "Limner", "bare loop"

Spread = list[float]
"""[least, median, most]"""


def spread(values: Iterable[float], digits: int = 3) -> Spread | None:
    found = sorted(values)
    return [round(v, digits) for v in (found[0], statistics.median(found), found[-1])] if found else None


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By precision: by program its figures, and how far Limner's losses are from the bare loop's."""
    out = dict[str, Any]()
    for precision in dict.fromkeys(r["precision"] for r in runs):
        rows = [r for r in runs if r["precision"] == precision]
        names = dict.fromkeys(r["program"] for r in rows)
        out[precision] = {"programs": {n: _figures(n, rows) for n in names}, "losses": _losses(rows)}
    return out


def _figures(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mine = [r for r in rows if r["program"] == name]
    well = [r for r in mine if "failed" not in r]
    rounds = [r for r in well if r["round"] != "curve"]
    out: dict[str, Any] = {"failed": [f"round {r['round']}: {r['failed']}" for r in mine if "failed" in r]}
    out |= {
        "steps": sum(len(r["step_seconds"]) for r in rounds),
        "step_seconds": spread(s for r in rounds for s in r["step_seconds"]),
        "first_step_cold_seconds": spread((r["first_step_seconds"] for r in rounds if r["is_cold"]), 1),
        "first_step_warm_seconds": spread((r["first_step_seconds"] for r in rounds if not r["is_cold"]), 1),
        "processor_step_seconds": spread(r["processor_step_seconds"] for r in rounds if r["processor_step_seconds"]),
        "processor_first_step_warm_seconds": spread((r["processor_first_step_seconds"] for r in rounds if not r["is_cold"]), 1),
        "peak_mib": max((r["peak_mib"] for r in rounds), default=None),
        "file_mb": next((r["file_mb"] for r in well if "file_mb" in r), None),
        "layers": next((r["layers"] for r in well if "layers" in r), None),
    }
    if name != _LIMNER:
        out["limner_share"] = _shares(rows, rounds)
    return out


def _shares(rows: Sequence[dict[str, Any]], rounds: Sequence[dict[str, Any]]) -> dict[str, Spread | None]:
    """Limner's figures divided by another's, each pair from the same round."""
    limner = {r["round"]: r for r in rows if r["program"] == _LIMNER and "failed" not in r}
    pairs = [(limner[r["round"]], r) for r in rounds if r["round"] in limner]
    cold, warm = [p for p in pairs if p[1]["is_cold"]], [p for p in pairs if not p[1]["is_cold"]]

    def share(key: str, among: Iterable[tuple[dict[str, Any], dict[str, Any]]] = pairs) -> Spread | None:
        both = [(a[key], b[key]) for a, b in among if a[key] and b[key]]
        return spread(_middle(a) / _middle(b) for a, b in both)

    return {
        "step": share("step_seconds"),
        "processor_step": share("processor_step_seconds"),
        "first_step_cold": share("first_step_seconds", cold),
        "first_step_warm": share("first_step_seconds", warm),
        "processor_first_step_warm": share("processor_first_step_seconds", warm),
        "peak": share("peak_mib"),
    }


def _middle(value: float | list[float]) -> float:
    return statistics.median(value) if isinstance(value, list) else value


def _losses(rows: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """How Limner's losses differ from the bare loop's, relative to these, in the longest pair of runs; and for comparison how
    the bare loop's last ones differ from what they are without the LoRA. None where there is no pair."""
    by_place = {(r["round"], r["program"]): r for r in rows if "failed" not in r}
    pairs = [
        (r, by_place[number, _BARE]) for (number, n), r in by_place.items() if n == _LIMNER and (number, _BARE) in by_place
    ]
    if not pairs:
        return None
    mine, bare = max(pairs, key=lambda p: p[1]["steps"])
    apart = [abs(a - b) / b for a, b in zip(mine["losses"], bare["losses"], strict=True)]
    without = {int(k): v for k, v in bare["losses_without"].items()}
    learnt = [abs(bare["losses"][step - 1] - v) / v for step, v in without.items()]
    return {"steps": len(apart), "largest_difference": max(apart), "learnt": statistics.median(learnt)}


# --- shown ------------------------------------------------------------------------------------------------------------


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    settings, versions = report["settings"], report["versions"]
    lines = [
        "# Limner and others, side by side", "",
        f"{report['date']}. {report['machine']}; {report['system']}; Python {report['python']}; OMP_NUM_THREADS "
        f"{report['threads']}.", "",
        f"SD 1.5's architecture, {settings['side_px']} px, batch 1, LoRA of rank 16 on the same layers, "
        f"{settings['pictures']} pictures; {settings['rounds']} rounds, {settings['steps']} steps a process, the first two of "
        "which are not counted. Seconds and shares: least / median / most; of processors: "
        "seconds that they worked for it.", "",
        *(f"- {name}: {words}" for name, words in versions.items()),
        *(f"- {name}: **not measured**, no checkout was given" for name in report["absent"]), "",
    ]  # fmt: skip
    for precision, standing in report["standings"].items():
        programs = standing["programs"]
        lines += [
            f"## {precision}", "",
            "| | steps | s a step | of processors | first step, cold | warm | of processors | peak MiB | file MB | layers |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(_row(n, f) for n, f in programs.items()), "",
            "| Limner's share of | step | of processors | first step, cold | warm | of processors | peak |",
            "|---|---|---|---|---|---|---|",
            *(_share_row(n, f["limner_share"]) for n, f in programs.items() if n != _LIMNER), "",
        ]  # fmt: skip
        lines += [f"**{n} failed**, {words}\n" for n, f in programs.items() for words in f["failed"]]
        if losses := standing["losses"]:
            apart, learnt = losses["largest_difference"], losses["learnt"]
            said = f"Losses of {losses['steps']} steps, Limner's against the bare loop's: at most {apart:.1e} apart"
            lines += [f"{said}; what was learnt changes the last ones by {learnt:.1e}.", ""]
    return "\n".join(lines)


def _row(name: str, figures: dict[str, Any]) -> str:
    times = ("step", "processor_step", "first_step_cold", "first_step_warm", "processor_first_step_warm")
    cells = [figures["steps"], *(_cell(figures[f"{k}_seconds"]) for k in times)]
    cells += [figures[k] or "-" for k in ("peak_mib", "file_mb", "layers")]
    return f"| {name} | {' | '.join(map(str, cells))} |"


def _share_row(name: str, shares: dict[str, Spread | None]) -> str:
    return f"| {name} | {' | '.join(_cell(share, 2) for share in shares.values())} |"


def _cell(values: Spread | None, digits: int | None = None) -> str:
    if values is None:
        return "-"
    shown = [f"{v:.{digits}f}" if digits is not None else f"{v:g}" for v in values]
    return shown[0] if len(set(shown)) == 1 else f"{shown[0]} / **{shown[1]}** / {shown[2]}"


_BAR, _GAP, _LEFT, _WIDTH = 16, 8, 130, 420


def drawn(report: dict[str, Any]) -> str:
    """Bars of the median step, the first step with warm caches and the peak, in SVG; a line from the least step to the most."""
    parts, y = list[str](), 20
    for precision, standing in report["standings"].items():
        well = {n: f for n, f in standing["programs"].items() if f["step_seconds"]}
        for key, title in (
            ("step_seconds", "seconds a step"), ("first_step_warm_seconds", "seconds to the first step, warm"),
            ("peak_mib", "peak MiB"),
        ):  # fmt: skip
            values = {n: f[key] if isinstance(f[key], list) else [f[key]] * 3 for n, f in well.items() if f[key]}
            if not values:
                continue
            parts.append(f'<text x="4" y="{y}" font-weight="bold">{precision}: {title}</text>')
            scale, y = _WIDTH / max(v[2] for v in values.values()), y + 10
            for name, (least, median, most) in values.items():
                colour = "#2f6f8f" if name == _LIMNER else "#b9c4cb"
                middle = y + _BAR / 2
                parts += [
                    f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
                    f'<rect x="{_LEFT}" y="{y}" width="{median * scale:.1f}" height="{_BAR}" fill="{colour}"/>',
                    f'<path d="M{_LEFT + least * scale:.1f} {middle}H{_LEFT + most * scale:.1f}" stroke="#333"/>',
                    f'<text x="{_LEFT + most * scale + 6:.1f}" y="{y + 13}">{median:g}</text>',
                ]
                y += _BAR + _GAP
            y += 20
    size = f'width="{_LEFT + _WIDTH + 70}" height="{y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" fill="#1a1a1a">'
    return "\n".join([head, f'<rect width="100%" height="{y}" fill="white"/>', *parts, "</svg>", ""])
