"""How figures look, in one place: sizes, fonts, colours, and the symbols of docs/notation.md on axes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MM = 1 / 25.4
COLUMN = 85 * MM  #: width of a paper's column in inches
PAGE = 174 * MM  #: two columns

# Okabe and Ito's colours, distinct under the common colour deficiencies; black is kept for the limit.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
CYCLE = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
LIMIT = "#000000"
MARKERS = "osD^vP"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))

RC: Any = {  # keys are literals to matplotlib 3.11, strings to 3.6
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "mathtext.fontset": "dejavusans",
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=CYCLE),
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "errorbar.capsize": 1.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.labelspacing": 0.25,
    "legend.columnspacing": 1.0,
    "legend.borderaxespad": 0.3,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # TrueType embedded: text stays text
    "svg.fonttype": "path",  # glyphs embedded as outlines: looks the same everywhere
    "svg.hashsalt": "moe-dmft",  # equal figures give equal files
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib settings of all figures; the user's own come back afterwards."""
    with matplotlib.rc_context(RC):
        yield


def first_column(ax: Axes) -> bool:
    """Is it the leftmost panel of its row?"""
    place = ax.get_subplotspec()
    return place is None or place.is_first_col()


def new_figure(rows: int = 1, columns: int = 1, width: float = COLUMN, height: float = 60 * MM, **options: Any) -> Any:
    """(figure, array of axes [row, column]) that belongs to no window system; call within style().

    A notebook shows the picture where the figure, or any of its axes, is the last value of a cell."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for shown in (figure, *axes.flat):
        setattr(shown, "_repr_png_", partial(_png, figure))  # noqa: B010 - what IPython looks for
    return figure, axes


def _png(figure: Figure) -> bytes:
    picture = BytesIO()
    with style():
        figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def save(figure: Figure, path: Any, **options: Any) -> None:
    """Writes a figure as its suffix says (pdf, svg, png), fonts embedded, the same bytes for the same figure."""
    suffix = str(path).rpartition(".")[2]
    undated: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with style():
        figure.savefig(path, metadata=undated.get(suffix), **options)


def axes_or_new(axes: Axes | None, width: float = COLUMN, height: float = 60 * MM) -> Axes:
    """The axes given, or those of a new figure of a column's width."""
    if axes is not None:
        return axes
    _, made = new_figure(width=width, height=height)
    new: Axes = made[0, 0]
    return new


def shades(n: int) -> list[Any]:
    """n colours of an ordered quantity such as width: light to dark, readable in grey and under colour deficiencies."""
    colours = matplotlib.colormaps["viridis_r"]
    return [colours(0.18 + 0.72 * (k / max(1, n - 1))) for k in range(n)] if n > 1 else [colours(0.6)] * n


def width_colors(widths: Iterable[int]) -> dict[int, Any]:
    """A colour for each width, light to dark. Panels that share a legend take theirs from the widths of all of them."""
    ordered = sorted(set(widths))
    return dict(zip(ordered, shades(len(ordered)), strict=True))


# --- symbols ------------------------------------------------------------------------------------------------------------

_FIELD = {
    "h": "h", "phi": r"\phi", "r": "r", "u": "u", "v": "v", "y": "y", "f": "f", "D": "D",
    "zeta": r"\zeta", "rho": r"\rho", "xi": r"\xi",
}  # fmt: skip
_PART = {
    "init": r"\mathrm{init}",
    "effective": r"\mathrm{eff}",
    "propagating": r"\mathrm{prop}",
    "all": r"\mathrm{all}",
}
_OTHER = {
    "loss": r"loss $\mathcal{L}$",
    "batch_loss": r"batch loss $\mathcal{L}$",
    "test_loss": r"test loss $\mathcal{L}$",
    "accuracy": "accuracy",
    "test_accuracy": "test accuracy",
    "router_entropy": r"router entropy $e^{H}/K$",
    "load_q99": "load, 99 %",
    "load_max": "load, largest",
    "ess_forward": r"$M_\mathrm{eff}/M$ forward",
    "ess_backward": r"$M_\mathrm{eff}/M$ backward",
    "Phi": r"$\langle\phi\,\phi\rangle$",
    "GvGv": r"$\langle Gv\,Gv\rangle$",
    "DD": r"$\langle D\,D\rangle$",
    "ghatghat": r"$\langle\hat g\,\hat g\rangle$",
}


def symbol(name: str) -> str:
    """Axis label of a recorded quantity: `rms_y_init` is rms(y_init). Names that are not known stay as they are."""
    name = name.removeprefix("observables/")
    base, _, block = name.partition(".")
    if block.isdigit():
        return f"{symbol(base)}, block {block}"
    if name in _OTHER:
        return _OTHER[name]
    kind, _, rest = name.partition("_")
    parts = rest.split("_")
    if kind not in ("rms", "change") or parts[0] not in _FIELD:
        return name.replace("_", " ")
    field = _FIELD[parts[0]]
    if kind == "change":
        return rf"$\mathrm{{rms}}({field}_t-{field}_0)$"
    matrix = rf"^{{{parts[1]}}}" if len(parts) > 1 and parts[1] in ("A", "Q", "B") else ""
    part = f"_{{{_PART[parts[-1]]}}}" if parts[-1] in _PART else ""
    return rf"$\mathrm{{rms}}({field}{matrix}{part})$"


_VALUE = {
    "mup": "μP", "mssp": "MSSP", "sp": "SP", "ntp": "NTP", "mup_moe": "μP-MoE", "jiang": "Jiang et al.",
    "sgd": "SGD", "momentum": "momentum", "adam": "Adam", "adamw": "AdamW", "signsgd": "signSGD",
    "digits": "digits", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "topk": "top-K", "soft": "soft routing",
}  # fmt: skip
_KEY = {
    "optimizer.lr": "η",
    "training.steps": "T",
    "training.batch": "batch",
    "model.regime": "regime",
    "model.expert_width": "Nₑ",
    "model.active_fraction": "κ",
}
_NO_KEY = ("model.param", "optimizer.name", "data.source", "model.routing", "model.activation", "training.loss")


def value_label(key: str, value: Any) -> str:
    """`optimizer.lr`, 0.5 is "η = 0.5"; names of tables, optimizers and data sets stand for themselves."""
    text = _VALUE.get(value, value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    if key in _NO_KEY:
        return str(text)
    if key == "model.regime":
        return f"regime {text}"
    return f"{_KEY.get(key, key.rpartition('.')[2].replace('_', ' '))} = {text}"


def join(words: Sequence[str]) -> str:
    return ", ".join(word for word in words if word)
