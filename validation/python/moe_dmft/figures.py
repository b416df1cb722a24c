"""Every figure as a function that takes and returns matplotlib axes.

`results` is what load(), solve() or train() returned, or a list of such files of one configuration (a limit file and a network
file); without `ax` a figure of a column's width is made. Errors are standard errors over replicas (limit) and seeds (networks).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from . import draw, style
from .cases import Case, case_of
from .fit import PowerLaw, Smooth, power_law, with_error
from .results import Array, Curve, Floats, Group, ResultError, Results, stored_name

Source = Results | Iterable[Results] | Case
Colors = Mapping[int, Any]  #: of widths

#: terms that a coordinate check follows: the parts of the aggregation (T26), and what the weights have learned
COORDINATES = ("rms_y_init", "rms_y_propagating", "rms_y_effective", "rms_r_effective", "rms_u_effective", "rms_zeta_init")


def _missing(case: Case, what: str, remedy: str) -> ResultError:
    return ResultError(f"{', '.join(case.files) or 'no file'}: there is no {what}. {remedy}")


def _legend(ax: Axes, **options: Any) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(**options)


def default_loss(case: Case) -> str:
    """Mini-batches: the loss of each step's own batch, which every step has; else that of the training set."""
    return "batch_loss" if case.has("batch_loss") else "loss"


# --- against step -------------------------------------------------------------------------------------------------------


def _per_expert(case: Case, width: int | None, curve: Curve) -> Curve:
    """Effective numbers of experts as shares of all of them, which networks and limit have in common."""
    experts = case.experts(width) or np.nan
    return Curve(curve.x, curve.mean / experts, curve.error / experts, curve.runs)


def _against_step(case: Case, name: str, ax: Axes, legend: bool, colors: Colors | None) -> Axes:
    networks = case.network_curves(name)
    limit = case.curve(name)
    if limit is None and not networks:
        folder = "observables/" in name
        raise _missing(case, name, "Set output.observables" if folder else "It is recorded with a test set or mini-batches only")
    leaf = name.rpartition("/")[2]
    draw.name(ax, leaf)
    if leaf.startswith("ess_"):
        networks = {width: _per_expert(case, width, curve) for width, curve in networks.items()}
        limit = _per_expert(case, None, limit) if limit is not None else None
    colors = colors or style.width_colors(networks)
    for width, curve in networks.items():
        draw.band(ax, curve, label=f"N = {width}", color=colors[width], y=leaf)
    if limit is not None:
        draw.limit(ax, limit, y=leaf)
    ax.set_xlabel("step t")
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    ax.set_ylabel(style.symbol(leaf).replace(", block", "\nblock"))  # long ones fit a panel in two lines
    ax.margins(x=0.02)
    if legend:
        _legend(ax)
    return ax


def loss(
    results: Source, ax: Axes | None = None, quantity: str | None = None, legend: bool = True, colors: Colors | None = None
) -> Axes:
    """Loss against step: networks with error bands, the limit as a dashed black line.

    `quantity`: loss, batch_loss, test_loss, accuracy, test_accuracy; by default batch_loss where there is one, else loss.
    """
    case = case_of(results)
    with style.style():
        return _against_step(case, quantity or default_loss(case), style.axes_or_new(ax), legend, colors)


def observable(
    results: Source, name: str, ax: Axes | None = None, legend: bool = True, colors: Colors | None = None
) -> Axes:
    """An observable of support/observable.hpp, `rms_h`, against step."""
    with style.style():
        return _against_step(case_of(results), f"observables/{name}", style.axes_or_new(ax), legend, colors)


# --- against width ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaling:
    """An observable at one step against width: networks, the limit, and the fitted power of N."""

    widths: Floats
    mean: Floats
    error: Floats
    limit: tuple[float, float] | None
    fitted: PowerLaw | None


def scaling(results: Source, name: str, step: float) -> Scaling:
    """`rms_y_init` or `loss` at the recorded step nearest to `step`, for every width."""
    case = case_of(results)
    path = name if name in case.names() else f"observables/{name}"
    curves = case.network_curves(path)
    at = [curve.at(step) for curve in curves.values()]
    widths = np.array(list(curves), dtype=float)
    mean, error = np.array([m for m, _ in at]), np.array([e for _, e in at])
    limit = case.curve(path)
    return Scaling(widths, mean, error, limit.at(step) if limit is not None else None, power_law(widths, mean, error))


def last_step(case: Case, name: str) -> float:
    """The last recorded step that limit and networks of all widths have: a run may end at a loss, or early."""
    curves = [*case.network_curves(name).values(), *([c] if (c := case.curve(name)) is not None else [])]
    ends = [known[-1] for curve in curves if len(known := curve.x[np.isfinite(curve.mean)])]
    return float(min(ends)) if ends else 0.0


def _width_axis(ax: Axes, widths: Sequence[float] | Floats, infinity: float | None = None) -> None:
    """Logarithmic, with ticks at the widths themselves and, where asked, one at infinity."""
    ticks = list(widths) + ([infinity] if infinity else [])
    labels = [f"{w:g}" for w in widths] + ([r"$\infty$"] if infinity else [])
    ax.set_xscale("log")
    ax.set_xticks(ticks, labels)
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.set_xlabel("width N")


def _log_y(ax: Axes, least: float = 1.5) -> None:
    """Logarithmic y over a factor `least` or more, so that level is seen to be level, with labels even below a decade."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if low > 0 and high / low < least:
        widen = np.sqrt(least * low / high)
        low, high = low / widen, high * widen
        ax.set_ylim(low, high)
    # Powers of ten alone label an axis where two of them or more stand on it.
    few = low > 0 and (np.log10(high / low) < 1.2 or np.floor(np.log10(high)) <= np.ceil(np.log10(low)))
    ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5) if few else (1,)))
    ax.yaxis.set_major_formatter(
        matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}") if few else matplotlib.ticker.LogFormatterSciNotation()
    )
    ax.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def against_width(
    results: Source, name: str, step: float | None = None, ax: Axes | None = None, predicted: float | None = None
) -> Axes:
    """An observable against N on logarithmic axes, with the fitted exponent, the predicted one as a slope, and the limit.

    Losses and accuracies, which have no power of their own, are drawn on a linear axis without a fit.
    """
    case = case_of(results)
    power = name not in case.names()
    path = f"observables/{name}" if power else name
    at = last_step(case, path) if step is None else step
    s = scaling(case, name, at)
    if not len(s.widths):
        raise _missing(case, f"{path} of networks", "Give the file that moe_train wrote, with output.observables")
    with style.style():
        ax = style.axes_or_new(ax)
        draw.name(ax, name, f"t = {at:g}")
        positive = s.mean > 0
        draw.bars(ax, s.widths, s.mean, s.error, label="_networks", color=style.BLUE, y=name)
        if power and s.fitted is not None and positive.any():
            label = rf"$N^{{{with_error(s.fitted.exponent, s.fitted.error)}}}$ fit"
            ax.plot(s.widths, s.fitted(s.widths), color=style.BLUE, label=label)
            draw.record(ax, "fit", N=s.widths, **{name: s.fitted(s.widths)})
        if predicted is not None and positive.any():
            centre = np.exp(np.log(s.widths[positive]).mean()), np.exp(np.log(s.mean[positive]).mean())
            line = centre[1] * (s.widths / centre[0]) ** predicted
            ax.plot(s.widths, line, color=style.RED, linestyle=style.DASHES[2], label=rf"$N^{{{predicted:g}}}$ predicted")
            draw.record(ax, "predicted", N=s.widths, **{name: line})
        if s.limit is not None and (s.limit[0] > 0 or not positive.any()):
            ax.axhline(s.limit[0], color=style.LIMIT, linestyle=style.DASHES[1], label="limit")
            if np.isfinite(s.limit[1]):
                ax.axhspan(s.limit[0] - s.limit[1], s.limit[0] + s.limit[1], color=style.LIMIT, alpha=0.15, linewidth=0)
        elif s.limit is not None:
            ax.plot([], [], color=style.LIMIT, linestyle=style.DASHES[1], label=f"limit: {s.limit[0]:g}")  # below a logarithmic axis
        if s.limit is not None:
            draw.record(ax, "limit", N=np.inf, **{name: s.limit[0], "standard_error": s.limit[1]})
        _width_axis(ax, s.widths)
        if power and positive.any():
            _log_y(ax)
        ax.set_ylabel(style.symbol(name) + ("\n" if stored_name(name)[1] else " ") + f"at t = {at:g}")
        # Above the panel: lines cross all of it.
        _legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3, handlelength=0.9, handletextpad=0.3,
                columnspacing=0.6, borderaxespad=0.1)  # fmt: skip
    return ax


def coordinate_check(
    results: Source, names: Sequence[str] = COORDINATES, step: float | None = None, ax: Axes | None = None, legend: bool = True
) -> Axes:
    """Sizes of several terms at one step against N, with the limit drawn in at infinity: level lines mean a stable limit.

    Put one panel for muP and one for MSSP side by side. Terms that vanish with size run down, and a limit of zero is a mark at the
    bottom. Names such as "rms_y_init.2" are those of block 2; of one block alone the title says which.
    """
    case = case_of(results)
    names = [n for n in names if case.has(f"observables/{n}")]
    if not names:
        raise _missing(case, "observable of a coordinate check", f"Set output.observables to a list with {COORDINATES[0]}")
    at = last_step(case, f"observables/{names[0]}") if step is None else step
    with style.style():
        ax = style.axes_or_new(ax)
        draw.name(ax, case.label, f"t = {at:g}")
        found = {name: scaling(case, name, at) for name in names}
        blocks = {stored_name(name)[1] for name in names}
        symbols = {name: style.symbol(stored_name(name)[0] if len(blocks) == 1 else name) for name in names}
        if len(blocks) == 1 and None not in blocks:
            ax.set_title(f"block {blocks.pop()}")
        widths = next(iter(found.values())).widths
        # Below this a size is rounding: zero at initialisation.
        scale = max((float(s.mean[np.isfinite(s.mean)].max(initial=0.0)) for s in found.values()), default=1.0)
        floor = 1e-9 * scale
        infinity = float(widths[-1]) * 3 if len(widths) else 1.0
        vanishing: list[tuple[Any, str]] = []
        for k, (name, s) in enumerate(found.items()):
            color, marker = style.CYCLE[k % len(style.CYCLE)], style.MARKERS[k % len(style.MARKERS)]
            shown = s.mean > floor
            if shown.any():
                draw.bars(ax, s.widths[shown], s.mean[shown], s.error[shown], label=symbols[name], series=name, color=color,
                          marker=marker, linestyle="-", y="rms")  # fmt: skip
            if s.limit is not None and s.limit[0] > floor:
                label = "_limit" if shown.any() else symbols[name]
                ax.plot([infinity], [s.limit[0]], color=color, marker=marker, markersize=4.5, markerfacecolor="white", label=label)
                if shown.any():
                    ax.plot([s.widths[shown][-1], infinity], [s.mean[shown][-1], s.limit[0]], color=color, linewidth=0.7,
                            linestyle=style.DASHES[2])  # fmt: skip
            elif s.limit is not None and shown.any():
                vanishing.append((color, marker))
            if s.limit is not None:
                draw.record(ax, f"{name} limit", N=np.inf, rms=s.limit[0], standard_error=s.limit[1])
        apart = (2 * infinity / float(widths[0])) ** 0.06 if len(widths) else 1.0
        for k, (color, marker) in enumerate(vanishing):
            ax.plot([infinity * apart ** (k - (len(vanishing) - 1) / 2)], [0.03], transform=ax.get_xaxis_transform(), color=color,
                    marker=marker, markersize=4, markerfacecolor="white", clip_on=False)  # fmt: skip
        if any(s.limit is not None for s in found.values()):
            _width_axis(ax, widths, infinity)
            ax.set_xlim(widths[0] / 1.2, infinity * apart**2.6)
        else:
            _width_axis(ax, widths)
        _log_y(ax)
        ax.set_ylabel(f"rms at t = {at:g}")
        if legend:
            _legend(ax)
    return ax


# --- learning rate ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LearningRateCurve:
    """Final loss against learning rate of one width, or of the limit (width None)."""

    width: int | None
    lr: Floats
    loss: Floats
    error: Floats
    best: tuple[float, float, float] | None = None  #: optimum of eta, low and high end of its error
    best_loss: float = np.nan  #: there; NaN without an optimum
    best_error: float = np.nan  #: its standard error; NaN where only means are known
    at_edge: bool = False  #: the best rate is the first or the last that did not diverge: the optimum may lie beyond


def optimum(lr: Floats, values: Floats) -> tuple[float, float] | None:
    """(eta, loss) at the lowest point of the smooth curve in log eta through all losses; None if nothing is finite."""
    lowest = Smooth(np.log(lr), values).lowest()
    return (float(np.exp(lowest[0])), lowest[1]) if lowest is not None else None


def _beside_the_edge(values: Floats) -> bool:
    """Is the lowest value the first or the last, or beside one that diverged?"""
    k = int(np.nanargmin(np.where(np.isfinite(values), values, np.inf)))
    return k in (0, len(values) - 1) or not np.isfinite(values[[k - 1, k + 1]]).all()


def learning_rate_curves(cases: Sequence[Case], quantity: str | None = None) -> list[LearningRateCurve]:
    """Learning-rate curves out of runs that differ in optimizer.lr only, the loss at their last step."""
    tables: dict[int | None, list[tuple[float, float, float]]] = {}
    for case in cases:
        eta, name = float(case.config["optimizer.lr"]), quantity or "loss"
        every: list[tuple[int | None, Curve | None]] = [*case.network_curves(name).items(), (None, case.curve(name))]
        for width, curve in every:
            if curve is not None:
                tables.setdefault(width, []).append((eta, float(curve.mean[-1]), float(curve.error[-1])))
    curves = []
    for width in sorted(tables, key=lambda w: np.inf if w is None else w):
        lr, values, error = (np.array(column) for column in zip(*sorted(tables[width]), strict=True))
        best = optimum(lr, values)
        if best is None:
            curves.append(LearningRateCurve(width, lr, values, error))
            continue
        eta, lowest = best
        curves.append(LearningRateCurve(width, lr, values, error, (eta, eta, eta), lowest, at_edge=_beside_the_edge(values)))
    return curves


def swept_curves(sweep: Group) -> list[LearningRateCurve]:
    """The curves of /lr_sweep, as dmft_validate --lr-sweep wrote them: widths first, the limit last."""
    eta = sweep.array("eta").values

    def curve(width: int | None, at: Any, prefix: str) -> LearningRateCurve:
        def read(name: str) -> Any:
            found = sweep.get(prefix + name)
            return found.values[at] if isinstance(found, Array) else None

        def number(name: str) -> float:
            value = read(name)
            return float(value) if value is not None else np.nan

        best = number("optimum"), number("optimum_low"), number("optimum_high")
        return LearningRateCurve(
            width, eta, read("loss"), read("loss_error"), best if np.isfinite(best).all() else None, number("optimum_loss"),
            number("optimum_loss_error"), number("optimum_at_edge") == 1,
        )  # fmt: skip

    curves = [curve(int(n), k, "") for k, n in enumerate(sweep.array("widths").values)] if "widths" in sweep else []
    return curves + ([curve(None, ..., "limit_")] if "limit_loss" in sweep else [])


def learning_rate(
    curves: Sequence[LearningRateCurve], ax: Axes | None = None, quantity: str = "loss", legend: bool = True,
    colors: Colors | None = None,
) -> Axes:  # fmt: skip
    """Loss against eta for several widths and the limit, optima marked by a star and a bar of their error.

    `quantity` is the label of the loss. Where a run diverged there is no point. Lines are the smooth curves whose lowest points the
    optima are (Smooth)."""
    if not curves:
        raise ResultError("there are no learning-rate curves: sweep with dmft_validate CONFIG --lr-sweep 0.03:3:9")
    finite = [float(np.fmin(np.nanmin(c.loss), c.best_loss)) for c in curves if np.isfinite(c.loss).any()]
    worst = max(float(c.loss[0]) if np.isfinite(c.loss[0]) else 0.0 for c in curves)
    with style.style():
        ax = style.axes_or_new(ax)
        colors = colors or style.width_colors(c.width for c in curves if c.width is not None)
        for curve in curves:
            color = style.LIMIT if curve.width is None else colors[curve.width]
            label = "limit" if curve.width is None else f"N = {curve.width}"
            good = np.isfinite(curve.loss)
            draw.bars(ax, curve.lr[good], curve.loss[good], curve.error[good], label=label, color=color, x="eta", y="loss",
                      marker="o" if curve.width is not None else "D")  # fmt: skip
            dashes = style.DASHES[1] if curve.width is None else "-"
            x, y = Smooth(np.log(curve.lr), curve.loss).points()
            ax.plot(np.exp(x), y, color=color, linewidth=0.8, linestyle=dashes)
            if curve.best is not None:
                at, low, high = curve.best
                ax.plot([at], [curve.best_loss], marker="*", markersize=7, color=color, markeredgecolor="white",
                        markeredgewidth=0.5, zorder=6)  # fmt: skip
                if high > low:
                    ax.plot([low, high], [curve.best_loss] * 2, color=color, linewidth=1.6, solid_capstyle="butt", zorder=5)
                draw.record(ax, f"{label} optimum", eta=at, eta_low=low, eta_high=high, loss=curve.best_loss,
                            standard_error=curve.best_error)  # fmt: skip
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        if finite and worst > min(finite):  # losses of runs that blow up would flatten everything else
            span = worst - min(finite)
            ax.set_ylim(min(finite) - 0.08 * span, worst + 0.25 * span)
        ax.set_xlabel("learning rate η")
        ax.set_ylabel(style.symbol(quantity))
        if legend:
            _legend(ax)
    return ax


def best_loss(
    curves: Mapping[str, Sequence[LearningRateCurve]], ax: Axes | None = None, quantity: str = "loss", legend: bool = True
) -> Axes:
    """Loss at the best learning rate of every width against N, the limit's at infinity (open marks): does size help?

    `curves` by label, for instance {"muP": ..., "MSSP": ...}. Crossed out: the best rate was at the edge of the sweep, so that a
    better one may lie beyond.
    """
    widths = sorted({float(c.width) for of_label in curves.values() for c in of_label if c.width is not None})
    if not widths:
        raise ResultError("there are no learning-rate curves of networks: sweep with dmft_validate CONFIG --lr-sweep 0.03:3:9")
    infinity = widths[-1] * 3
    with style.style():
        ax = style.axes_or_new(ax)
        limited = False
        for k, (label, of_label) in enumerate(curves.items()):
            color, marker = style.CYCLE[k % len(style.CYCLE)], style.MARKERS[k % len(style.MARKERS)]
            networks = [c for c in of_label if c.width is not None and c.best is not None]
            n, low, error = [float(c.width or 0) for c in networks], [c.best_loss for c in networks], [c.best_error for c in networks]
            draw.bars(ax, n, low, error, label=label, color=color, marker=marker, linestyle="-", y="loss")
            for c in of_label:
                if c.best is None:
                    continue
                if c.width is None:
                    limited = True
                    ax.errorbar([infinity], [c.best_loss], [np.nan_to_num(c.best_error)], color=color, marker=marker, markersize=4.5,
                                markerfacecolor="white", elinewidth=0.8)  # fmt: skip
                    ax.plot([*n[-1:], infinity], [*low[-1:], c.best_loss], color=color, linewidth=0.7, linestyle=style.DASHES[2])
                    draw.record(ax, f"{label} limit", N=np.inf, loss=c.best_loss, standard_error=c.best_error)
                if c.at_edge:
                    ax.plot([c.width or infinity], [c.best_loss], marker="x", color=style.LIMIT, markersize=5, zorder=6)
        _width_axis(ax, widths, infinity if limited else None)
        ax.set_xlabel("width N, each at its best η")
        ax.set_ylabel(style.symbol(quantity))
        if legend:
            _legend(ax)
    return ax


# --- kernels ------------------------------------------------------------------------------------------------------------


def _at_step(group: Any, folder: str, name: str, step: int | None) -> tuple[Array, int]:
    """FOLDER/NAME at the recorded step nearest to `step` (None: the last). Of a stack of blocks their mean, or with NAME.2 block 2."""
    base, block = stored_name(name)
    array: Array = group.array(f"{folder}/{base}")
    steps = group.array(f"{folder}/steps").values
    k = -1 if step is None else int(np.abs(steps - step).argmin())
    at = array.select(step=k)
    if block is not None:
        if "block" not in at.dims or not 1 <= block <= at.shape[at.axis("block")]:
            raise ResultError(f"{group.file}: {array.path} has no block {block}")
        at = at.select(block=block - 1)
    return at.mean("block") if "block" in at.dims else at, int(steps[k])


def _by_class(case: Case) -> Floats | None:
    """Order of the samples by label, so that kernels show blocks; None where targets are not stored or are not one-hot."""
    for results in [case.limit, *case.networks.values()]:
        if results is not None and results.data is not None and "y" in results.data:
            y = results.data.array("y").values
            labels = y.argmax(1) if y.shape[1] > 1 else y[:, 0]
            return np.argsort(labels, kind="stable").astype(float)
    return None


def _colour_bar(ax: Axes, beside: Sequence[Axes], image: Any, name: str) -> None:
    numbers = matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}")
    ax.figure.colorbar(image, ax=beside, label=style.symbol(name), format=numbers, ticks=matplotlib.ticker.MaxNLocator(4))


def kernel_values(results: Source, name: str, width: int | None = None, step: int | None = None) -> tuple[Floats, int]:
    """(P, P) kernel, samples ordered by class, and its step; of the limit, or of networks of a width (mean over seeds). Of a stack of
    blocks the mean over them, or with "Phi.2" that of block 2."""
    case = case_of(results)
    if width is None:
        if case.limit is None or case.limit.limit is None or "kernels" not in case.limit.limit:
            raise _missing(case, "/limit/kernels", "Run dmft_solve with output.kernels_at, e.g. --kernels-at 0,40")
        array, at = _at_step(case.limit.limit, "kernels", name, step)
        values = array.values
    else:
        group = case.networks[width].networks[width] if width in case.networks else None
        if group is None or "kernels" not in group:
            raise _missing(case, f"/network/N{width}/kernels", "Run moe_train with output.kernels_at, e.g. --kernels-at 0,40")
        array, at = _at_step(group, "kernels", name, step)
        values = np.nanmean(array.values, array.axis("seed"))
    order = _by_class(case)
    if order is not None and len(order) == len(values):
        index = order.astype(int)
        values = values[np.ix_(index, index)]
    return values, at


def kernel(
    results: Source, name: str, width: int | None = None, step: int | None = None, ax: Axes | None = None,
    scale: tuple[float, float] | None = None, bar: bool = True,
) -> Axes:  # fmt: skip
    """A kernel as a heat map, samples ordered by class: of the limit, or with `width` of networks."""
    values, at = kernel_values(results, name, width, step)
    low, high = scale if scale is not None else (float(np.nanmin(values)), float(np.nanmax(values)))
    with style.style():
        ax = style.axes_or_new(ax, width=0.6 * style.COLUMN, height=0.5 * style.COLUMN)
        reach = max(-low, high)  # zero is white
        image = ax.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
        ax.set_title(("limit" if width is None else f"N = {width}") + f", t = {at}")
        ax.set_xlabel("sample ν")
        ax.set_ylabel("sample μ")
        for spine in ax.spines.values():
            spine.set_visible(False)
        if bar:
            _colour_bar(ax, [ax], image, name)
        draw.name(ax, name, "limit" if width is None else f"N = {width}", f"t = {at}")
        rows, columns = np.indices(values.shape)
        draw.record(ax, name, sample=rows.ravel(), sample_2=columns.ravel(), value=values.ravel())
    return ax


def kernel_comparison(results: Source, name: str, step: int | None = None, axes: Any = None) -> list[Axes]:
    """Theory beside experiment: the kernel of the limit and of the widest networks on one scale. Two axes in, two out."""
    case = case_of(results)
    widths = [n for n, r in case.networks.items() if "kernels" in r.networks[n]]
    if not widths:
        raise _missing(case, "/network/N.../kernels", "Run moe_train with output.kernels_at, e.g. --kernels-at 0,40")
    shown: list[int | None] = [None, widths[-1]]
    values = [kernel_values(case, name, width, step)[0] for width in shown]
    scale = float(min(np.nanmin(v) for v in values)), float(max(np.nanmax(v) for v in values))
    with style.style():
        if axes is None:
            _, axes = style.new_figure(1, 2, height=38 / 25.4)
        two = draw.panels(axes)
        for width, ax in zip(shown, two, strict=True):
            kernel(case, name, width, step, ax, scale, bar=False)
        two[1].set_ylabel("")
        two[1].tick_params(labelleft=False)
        _colour_bar(two[0], two, two[1].images[0], name)
    return two


# --- distributions ------------------------------------------------------------------------------------------------------


def merged(edges: Floats, shares: Floats, bins: int = 48, reach: float = 4.0) -> tuple[Floats, Floats]:
    """Fixed fine bins joined to about `bins` equal ones over `reach` standard deviations either side: (edges, density)."""
    centre = (edges[1:] + edges[:-1]) / 2
    deviation = float(np.sqrt((shares * centre**2).sum() / max(shares.sum(), 1e-300)))
    if deviation == 0:
        deviation = float(edges[-1])
    wanted = np.linspace(-reach * deviation, reach * deviation, bins + 1)
    at = np.unique(np.abs(edges[None, :] - wanted[:, None]).argmin(1))
    cumulative = np.concatenate([[0.0], np.cumsum(shares)])
    return edges[at], np.diff(cumulative[at]) / np.diff(edges[at])


def distribution(
    results: Source, name: str, step: int | None = None, ax: Axes | None = None, legend: bool = True, colors: Colors | None = None
) -> Axes:
    """Distribution of h, r or u over population and samples: networks as steps, the limit as a filled outline.

    Of a stack of blocks r and u are those of all, or with "r.2" those of block 2."""
    case = case_of(results)
    places: list[tuple[int | None, Any]] = [(n, r.networks[n]) for n, r in case.networks.items()]
    if case.limit is not None:
        places.append((None, case.limit.limit))
    places = [(n, group) for n, group in places if f"distributions/{stored_name(name)[0]}" in group]
    if not places:
        raise _missing(case, f"distributions/{name}", "Run with output.distributions_at, e.g. --distributions-at 0,40")
    found: list[tuple[int | None, Floats, Floats, int]] = []
    for width, group in places:
        array, at = _at_step(group, "distributions", name, step)
        shares = array.values if width is None else np.nanmean(array.values, array.axis("seed"))
        found.append((width, group.array("distributions/edges").values, shares, at))
    _, edges, shares, at = found[-1]  # the limit, or the widest networks, choose the bins
    bins = merged(edges, shares)[0]
    colors = colors or style.width_colors(n for n, *_ in found if n is not None)
    with style.style():
        ax = style.axes_or_new(ax)
        for width, fine, values, _ in found:
            cumulative = np.concatenate([[0.0], np.cumsum(values)])
            density = np.diff(np.interp(bins, fine, cumulative)) / np.diff(bins)
            label = "limit" if width is None else f"N = {width}"
            if width is None:
                ax.stairs(density, bins, color=style.LIMIT, alpha=0.15, fill=True)
                ax.stairs(density, bins, color=style.LIMIT, label=label, linewidth=1.0, linestyle=style.DASHES[1], zorder=5)
            else:
                ax.stairs(density, bins, color=colors[width], label=label, linewidth=0.9)
            draw.record(ax, label, low=bins[:-1], high=bins[1:], density=density)
        draw.name(ax, name, f"t = {at}")
        base, block = stored_name(name)
        ax.set_xlabel(f"${base}$" + (f" of block {block}" if block else "") + f" at t = {at}")
        ax.set_ylabel("density")
        ax.set_ylim(bottom=0)
        if legend:
            _legend(ax)
    return ax
