"""Marks on axes, and the numbers behind them: whatever is drawn here can be written as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import style
from .results import Curve, Floats


@dataclass(frozen=True)
class Series:
    """What one mark shows: columns of equal length by name."""

    series: str
    columns: dict[str, Floats]


_drawn: WeakKeyDictionary[Axes, list[Series]] = WeakKeyDictionary()
_names: WeakKeyDictionary[Axes, list[str]] = WeakKeyDictionary()


def name(ax: Axes, *words: str) -> None:
    """What a panel shows, in plain words, for its rows of the CSV; repeated calls add to it."""
    known = _names.setdefault(ax, [])
    known += [word for word in words if word and word not in known]


def record(ax: Axes, series: str, **columns: Any) -> None:
    """Remembers the numbers of a mark."""
    values = {name: np.atleast_1d(np.asarray(v, dtype=float)) for name, v in columns.items()}
    _drawn.setdefault(ax, []).append(Series(series, values))


def drawn(ax: Axes) -> list[Series]:
    """The numbers behind everything that this package drew on the axes."""
    return list(_drawn.get(ax, []))


def write_csv(figure: Figure, path: Path) -> None:
    """One row a point: panel, series, then the columns of any series (empty where a series lacks them)."""
    rows = [(", ".join(_names.get(ax, [])), s) for ax in figure.axes for s in drawn(ax)]
    names = list(dict.fromkeys(name for _, s in rows for name in s.columns))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["panel", "series", *names])
        for panel, s in rows:
            for k in range(max((len(v) for v in s.columns.values()), default=0)):
                writer.writerow([panel, s.series, *(f"{s.columns[n][k]:.9g}" if n in s.columns else "" for n in names)])


def _alone(curve: Curve) -> dict[str, Any]:
    """How a curve with a single value is seen, of which there is no line."""
    return {"marker": "o", "markersize": 3} if np.isfinite(curve.mean).sum() == 1 else {}


def band(
    ax: Axes, curve: Curve, *, label: str, color: Any, x: str = "step", y: str = "value", linestyle: Any = "-", width: float = 1.0
) -> None:
    """A line of means with a band of one standard error."""
    ax.plot(curve.x, curve.mean, color=color, label=label, linestyle=linestyle, linewidth=width, **_alone(curve))
    if np.isfinite(curve.error).any():
        ax.fill_between(curve.x, curve.mean - curve.error, curve.mean + curve.error, color=color, alpha=0.25, linewidth=0)
    record(ax, label, **{x: curve.x, y: curve.mean, "standard_error": curve.error})


def limit(ax: Axes, curve: Curve, *, x: str = "step", y: str = "value", label: str = "limit") -> None:
    """The limit: a black line with its band, above the networks."""
    ax.plot(curve.x, curve.mean, color=style.LIMIT, label=label, linewidth=1.2, linestyle=style.DASHES[1], zorder=5, **_alone(curve))
    if np.isfinite(curve.error).any():
        ax.fill_between(
            curve.x, curve.mean - curve.error, curve.mean + curve.error, color=style.LIMIT, alpha=0.2, linewidth=0, zorder=4
        )
    record(ax, label, **{x: curve.x, y: curve.mean, "standard_error": curve.error})


def bars(
    ax: Axes, xs: Any, means: Any, errors: Any, *, label: str, color: Any, marker: str = "o", x: str = "N", y: str = "value",
    linestyle: Any = "none", series: str | None = None,
) -> None:  # fmt: skip
    """Points with bars of one standard error; `series` is their name in the CSV where it is not the label."""
    errors = np.asarray(errors, dtype=float)
    ax.errorbar(
        xs, means, np.where(np.isfinite(errors), errors, 0.0), color=color, label=label, marker=marker, linestyle=linestyle,
        elinewidth=0.8, linewidth=0.8,
    )  # fmt: skip
    record(ax, series or label.lstrip("_"), **{x: xs, y: means, "standard_error": errors})


def shared_legend(figure: Figure, axes: Iterable[Axes], columns: int = 4) -> None:
    """One legend below all panels instead of one in each, widths in order and the limit last; the layout makes room for it."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
        if (own := ax.get_legend()) is not None:
            own.remove()
    if not found:
        return

    def rank(label: str) -> float:
        return np.inf if label == "limit" else float(label[4:]) if label.startswith("N = ") else 0.0

    found = {label: found[label] for label in sorted(found, key=rank)}
    columns = min(columns, len(found))
    rows = -(-len(found) // columns)
    room = (0.6 + 3.3 * rows) * style.MM / figure.get_size_inches()[1]
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, room, 1, 1 - room))
    figure.legend(list(found.values()), list(found), loc="lower center", ncol=columns)


def panels(axes: Iterable[Axes]) -> list[Axes]:
    """All axes of an array of them, in reading order."""
    return list(np.atleast_1d(np.asarray(axes, dtype=object)).ravel())
