"""One self-contained HTML page of a result: verdicts, figures, tables, configuration. It loads nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from . import style
from .cases import Case, cases_of, describe
from .fit import with_error
from .gallery import GALLERY, NothingToDraw, draw_figure
from .results import Array, Curve, Group, Results

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; }
p.sub { color: #555; margin-top: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #e5e5e5; }
th:first-child, td:first-child, .text { text-align: left; } td:not(.text) { white-space: nowrap; } th { border-bottom: 1px solid #999; font-weight: 600; }
.scroll { overflow-x: auto; }
.figures { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: flex-end; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .85rem; }
.verdict { display: inline-block; white-space: nowrap; padding: .1rem .6rem; border-radius: .3rem; font-weight: 600; }
.yes { background: #d5eee6; color: #00543c; } .no { background: #fbdccb; color: #7a3400; }
.open { background: #e8e8e8; color: #444; }
.warning { background: #fff3d6; border-left: 4px solid #E69F00; padding: .3rem .8rem; white-space: pre-wrap; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; }
summary { cursor: pointer; font-weight: 600; }
"""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; cells are text, or HTML where they begin with "<". The column "why" holds sentences, others numbers."""

    def cell(text: str) -> str:
        return text if text.startswith("<") else escape(text)

    kinds = [' class="text"' if h == "why" else "" for h in header]
    head = "".join(f"<th{kind}>{escape(h)}</th>" for kind, h in zip(kinds, header, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell(c)}</td>" for kind, c in zip(kinds, row, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def image(figure: Figure, name: str, caption: str) -> str:
    """A figure inline, as SVG; one of a column takes half the page."""
    buffer = io.BytesIO()
    with style.style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = round(figure.get_size_inches()[0] * 96 * 1.45)
    return (
        f'<figure id="{name}"><img alt="{escape(caption)}" width="{width}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _loss_table(case: Case) -> str:
    names = [n for n in ("loss", "accuracy", "test_loss", "test_accuracy") if case.has(n)]
    rows = []

    def row(label: str, sizes: Sequence[str], curves: Sequence[Curve | None], runs: str) -> None:
        cells = [with_error(float(c.mean[-1]), float(c.error[-1])) if c is not None else "" for c in curves]
        rows.append([label, *sizes, *cells, runs])

    for width, results in case.networks.items():
        attributes = results.networks[width].attributes
        curves = [results.network_curve(width, n) for n in names]
        row(
            f"N = {width}",
            [str(attributes.get(a, "")) for a in ("M", "N_e", "K")],
            curves,
            f"{max((c.runs for c in curves if c), default=0)} seeds",
        )
    if case.limit is not None and case.limit.limit is not None:
        attributes = case.limit.limit.attributes
        curves = [case.limit.limit_curve(n) for n in names]
        row("limit", ["", "", ""], curves, f"{attributes.get('replicas', '')} replicas of {attributes.get('neurons', '')} neurons")
    return table(["", "M", "Nₑ", "K", *(n.replace("_", " ") for n in names), "means over"], rows)


def _warnings(case: Case) -> str:
    if case.limit is None or case.limit.limit is None:
        return ""
    attributes = case.limit.limit.attributes
    texts = [str(attributes.get("warnings", "")).strip()]
    if attributes.get("status", "complete") != "complete":
        texts.insert(0, f"The solve of the limit is not complete: {attributes['status']}")
    return "".join(f'<p class="warning">{escape(t)}</p>' for t in texts if t)


_BADGES = {"agrees": "yes", "positive": "yes", "deviates": "no", "negative": "no"}


def badge(verdict: str) -> str:
    """A verdict in its colour."""
    return f'<span class="verdict {_BADGES.get(verdict, "open")}">{escape(verdict)}</span>'


def _number(value: object, form: str = ".3g") -> str:
    return f"{float(value):{form}}" if isinstance(value, (int, float)) and np.isfinite(value) else ""  # noqa: UP038


def _scalar(group: Group, name: str, at: Any = ()) -> float:
    found = group.get(name)
    return float(found.values[at]) if isinstance(found, Array) else float("nan")


def _comparison(group: Group) -> str:
    """Verdict, table of observables and table of exponents of a group laid out as /comparison."""
    attributes = group.attributes
    parts = [f"<p>{badge(str(attributes.get('verdict', 'unknown')))} {escape(str(attributes.get('reason', '')))}</p>"]
    if attributes.get("notes"):
        parts.append(f'<p class="warning">{escape(str(attributes["notes"]).strip())}</p>')
    rows = []
    for name, one in (group.group("observables") or {}).items():
        if isinstance(one, Group):
            a = one.attributes
            judged = float(a.get("worst_step", -1)) >= 0
            words = [badge(str(a.get("verdict", "")))]
            words += [_number(a.get("worst_z"), ".2f"), _number(a.get("worst_step"), "g")] if judged else ["", ""]
            rows.append([name, *words, str(a.get("reason", ""))])
    if rows:
        parts.append(table(["observable", "verdict", "largest z", "at step", "why"], rows))
    rows = []
    for name, stages in (group.group("exponents") or {}).items():
        for stage, one in stages.items() if isinstance(stages, Group) else ():
            if not isinstance(one, Group):
                continue
            a = one.attributes
            fitted, error, predicted = _scalar(one, "fitted"), _scalar(one, "error"), _scalar(one, "predicted")
            of = name + (f" / {a['divided_by']}" if a.get("divided_by") else "")
            rows.append([
                of, stage.replace("_", " "), with_error(fitted, error) if np.isfinite(fitted) else "",
                f"{predicted:g}" if np.isfinite(predicted) else "-" if a.get("verdict") == "not judged" else "zero", badge(str(a.get("verdict", ""))), str(a.get("reason", "")),
            ])  # fmt: skip
    if rows:
        head = ["size", "when", "fitted power of N", "predicted", "verdict", "why"]
        parts.append("<details><summary>Powers of N</summary>" + table(head, rows) + "</details>")
    return "".join(parts)


def _sweep(sweep: Group) -> str:
    """Table of optimal learning rates: where, how far they drift, what carrying them over costs."""

    def cells(prefix: str, at: Any) -> list[str]:
        low, high, best = (_scalar(sweep, prefix + n, at) for n in ("optimum_low", "optimum_high", "optimum"))
        loss = with_error(_scalar(sweep, prefix + "optimum_loss", at), _scalar(sweep, prefix + "optimum_loss_error", at))
        edge = " (edge of the sweep)" if _scalar(sweep, prefix + "optimum_at_edge", at) == 1 else ""
        return [f"{best:.3g} ({low:.3g} .. {high:.3g}){edge}", loss]

    def interval(name: str, k: int, digits: int) -> str:
        value, low, high = (f"{_scalar(sweep, name + end, k):.{digits}f}" for end in ("", "_low", "_high"))
        return f"{value} ({low} .. {high})"

    widths = [int(n) for n in sweep.array("widths").values] if "widths" in sweep else []
    rows = []
    for k, width in enumerate(widths):
        rows.append([f"N = {width}", *cells("", k), interval("drift", k, 2), interval("lost_largest", k, 4),
                     interval("lost_limit", k, 4)])  # fmt: skip
    if "limit_optimum" in sweep:
        rows.append(["limit", *cells("limit_", ()), "", "", ""])
    head = ["", "best η", "loss there", "octaves from the limit's", f"lost at N = {widths[-1]}" if widths else "lost", "lost in the limit"]
    return (
        f"<p>Loss: {escape(str(sweep.attributes.get('criterion_text', '')))}. In parentheses the middle 68 % of resampled runs. "
        "Lost: what the best η of a width costs elsewhere.</p>" + table(head, rows)
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}\n" if body else ""


def html(results: Sequence[Results]) -> str:
    """The page of one file, or of several files that belong together."""
    cases = cases_of(results)
    parts: list[str] = []
    for results_of in results:
        of = f" of {results_of.file.rpartition('/')[2]}" if len(results) > 1 else ""
        if results_of.comparison is not None:
            parts.append(_section("Verdict" + of, _comparison(results_of.comparison)))
        for name, check in (results_of.root.group("coordinate_check") or {}).items():
            if isinstance(check, Group):
                parts.append(_section(f"Coordinate check of {style.value_label('model.param', name)}{of}", _comparison(check)))
        if results_of.lr_sweep is not None:
            parts.append(_section("Learning rate" + of, _sweep(results_of.lr_sweep)))
    for case in cases:
        if case.limit is None and not case.networks:
            continue
        title = case.label if len(cases) > 1 else "Results"
        parts.append(_section(title, _warnings(case) + f"<p>Values at the last step, t = {case.config.get('training.steps', '?')}; "
                              "standard errors of the last digits in parentheses.</p>" + _loss_table(case)))  # fmt: skip
    drawn = []
    for name, entry in GALLERY.items():
        try:
            for stem, figure in draw_figure(name, cases).items():
                drawn.append(image(figure, stem, entry.help[0].upper() + entry.help[1:] + "."))
        except NothingToDraw:
            continue
    parts.append(_section("Figures", f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""))
    configurations = "".join(
        f"<details{' open' if len(results) == 1 else ''}><summary>{escape(r.file.rpartition('/')[2])}</summary>"
        f"<pre>{escape(r.config_text)}</pre></details>"
        for r in results
    )
    parts.append(_section("Configuration", configurations))
    rows = [
        [r.file.rpartition("/")[2], r.kind, *(str(r.root.attributes.get(a, "")) for a in ("program", "version", "created"))]
        for r in results
    ]
    parts.append(_section("Files", table(["file", "kind", "program", "version", "created"], rows)))
    heading = describe(cases[0].config) if len(cases) == 1 else f"{len(cases)} configurations"
    if len(cases) == 1 and (checked := list(cases[0].compared("coordinate_check"))):  # the configuration holds the last of them
        tables = [style.value_label("model.param", name) for name in checked]
        heading = style.join([*tables, describe({k: v for k, v in cases[0].config.items() if k != "model.param"})])
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(heading)}</title><style>{_CSS}</style></head><body>\n"
        f'<h1>Infinite-size limit and finite networks</h1><p class="sub">{escape(heading)}</p>\n{"".join(parts)}</body></html>\n'
    )
