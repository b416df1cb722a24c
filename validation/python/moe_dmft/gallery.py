"""The figures that dmft_plot and the page draw: panels for all cases at once, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import draw, figures, style
from .cases import Case, labels_of
from .results import Array, Group, ResultError

MM = style.MM


class NothingToDraw(ResultError):
    """The files do not hold what a figure shows. The message names what lacks and how to record it."""


GROUPS: dict[str, tuple[str, ...]] = {
    "forward": ("rms_h", "rms_phi", "rms_r", "rms_u", "rms_v", "rms_y", "rms_f"),
    "aggregation": ("rms_y_init", "rms_y_propagating", "rms_y_effective", "rms_r_init", "rms_r_effective", "rms_u_init",
                    "rms_u_effective"),
    "backward": ("rms_D", "rms_zeta", "rms_zeta_init", "rms_zeta_effective", "rms_rho", "rms_xi", "rms_xi_A_init",
                 "rms_xi_A_effective", "rms_xi_Q_init", "rms_xi_Q_effective"),
    "routing": ("router_entropy", "load_q99", "load_max", "ess_forward", "ess_backward"),
}  # fmt: skip


def _group_of(name: str) -> str:
    if name.startswith("change_"):
        return "change"
    return next((group for group, names in GROUPS.items() if name in names), "other")


def _grid(n: int, columns: int, each: float = 40 * MM, per_case: bool = False) -> tuple[Figure, list[Axes]]:
    """n panels, row by row; one panel has a column's width, more of them share it up to two, else the page."""
    columns = min(columns, n)
    rows = -(-n // columns)
    width = style.COLUMN if columns <= 2 else style.PAGE
    figure, axes = style.new_figure(rows, columns, width=width, height=rows * each + 8 * MM, sharey="row" if per_case else False)
    panels = draw.panels(axes)
    for unused in panels[n:]:
        unused.remove()
    return figure, panels[:n]


def _one_per_case(cases: Sequence[Case], paint: Callable[[Case, Axes, figures.Colors], object], lacking: str) -> Figure:
    """A panel for each case that has the data, titled by what sets it apart, with one legend and one y axis."""
    if not cases:
        raise NothingToDraw(lacking)
    figure, panels = _grid(len(cases), 2 if len(cases) in (1, 2, 4) else 3, each=52 * MM, per_case=True)
    colors = style.width_colors(n for case in cases for n in case.networks)
    for case, ax in zip(cases, panels, strict=True):
        draw.name(ax, case.label)
        paint(case, ax, colors)
        if len(cases) > 1:
            ax.set_title(case.label)
        if not style.first_column(ax):
            ax.set_ylabel("")
    if len(cases) > 1:
        draw.shared_legend(figure, panels, 4 if len(cases) <= 2 else 6)
    return figure


def _of_one_case(figure: Figure, axes: Iterable[Axes], case: Case, cases: Sequence[Case]) -> None:
    """Says above a figure, and in its CSV, which of several cases it shows."""
    for ax in axes:
        draw.name(ax, case.label)
    if len(cases) > 1:
        figure.suptitle(case.label, fontsize=7.5)


def _loss_figure(quantity: str | None) -> Callable[[Sequence[Case]], Figure]:
    def make(cases: Sequence[Case]) -> Figure:
        having = [c for c in cases if c.has(quantity or figures.default_loss(c))]
        test = quantity is not None and quantity.startswith("test_")
        lacking = f"no file holds {quantity or 'loss'}: " + ("run with data.test" if test else "give one that records it")
        return _one_per_case(having, lambda case, ax, colors: figures.loss(case, ax, quantity, colors=colors), lacking)

    return make


def _trivial(case: Case, name: str) -> bool:
    """Loads where every expert is active."""
    return name.startswith("load_") and case.config.get("model.routing") == "soft"


def _first_and_last(case: Case, names: Iterable[str]) -> list[str]:
    """Observables that a figure shows: of what every block of a stack has those of the first and of the last, "rms_r.1" and "rms_r.4", side
    by side; behind them what there is only one of."""
    names, last = list(names), int(case.config.get("model.depth", 1))
    of_blocks = [n for n in names if last > 1 and case.has(f"observables/{n}.{last}")]
    return [f"{n}.{block}" for n in of_blocks for block in (1, last)] + [n for n in names if n not in of_blocks]


def _columns(names: Sequence[str]) -> int:
    """Of the panels of so many observables: an even number where blocks come in pairs."""
    return 2 if len(names) <= 4 else 4 if any("." in n for n in names) else 3


def _observables(group: str) -> Callable[[Sequence[Case]], dict[str, Figure]]:
    def make(cases: Sequence[Case]) -> dict[str, Figure]:
        made: dict[str, Figure] = {}
        for k, case in enumerate(cases):
            names = [n for n in case.names("observables") if _group_of(n) == group and not _trivial(case, n)]
            if not names:
                continue
            names = _first_and_last(case, names)
            figure, panels = _grid(len(names), _columns(names), each=34 * MM)
            _of_one_case(figure, panels, case, cases)
            for name, ax in zip(names, panels, strict=True):
                figures.observable(case, name, ax, legend=False)
            draw.shared_legend(figure, panels, 6)
            made[f"_{k + 1}" if len(cases) > 1 else ""] = figure
        if not made:
            raise NothingToDraw(f"no file holds observables of the group '{group}': set output.observables")
        return made

    return make


def _predicted(case: Case, name: str, step: float) -> float | None:
    """Exponent of N that dmft_validate predicted for an observable at a step, where its file says so."""
    for results in case.validations:
        times = results.limit.get("times") if results.limit is not None else None  # of a flow, whose steps are intervals
        stages = results.root.group(f"comparison/exponents/{name}")
        for stage in stages.values() if stages else ():
            if not isinstance(stage, Group) or stage.attributes.get("divided_by"):
                continue
            at = int(stage.attributes.get("step", -1))
            if isinstance(times, Array) and at >= 0:
                at = times.values[at]
            if at == step:
                predicted = stage.get("predicted")
                return float(predicted.values) if isinstance(predicted, Array) else None
    return None


def _widths(cases: Sequence[Case]) -> dict[str, Figure]:
    made: dict[str, Figure] = {}
    for k, case in enumerate(cases):
        if len(case.networks) < 2:
            continue
        names = [n for n in case.names("observables") if n in figures.COORDINATES or n in ("rms_h", "rms_y", "rms_f")]
        shown = [figures.default_loss(case), *_first_and_last(case, names)]
        figure, panels = _grid(len(shown), 2 if len(shown) <= 4 else 3, each=40 * MM)
        _of_one_case(figure, panels, case, cases)
        for name, ax in zip(shown, panels, strict=True):
            step = figures.last_step(case, name if name == shown[0] else f"observables/{name}")
            figures.against_width(case, name, step, ax, _predicted(case, name, step))
        made[f"_{k + 1}" if len(cases) > 1 else ""] = figure
    if not made:
        raise NothingToDraw("no configuration has networks of two widths or more: run moe_train --widths 64,128,256")
    return made


def _coordinate_check(cases: Sequence[Case]) -> Figure:
    checks: list[Case] = [check for case in cases for check in case.compared("coordinate_check").values()]
    having = checks or [c for c in cases if c.networks]
    shown = []  # a column each: a case, or the first and the last block of a stack
    for case in having:
        names = _first_and_last(case, figures.COORDINATES)
        for block in dict.fromkeys(n.partition(".")[2] for n in names):
            of_block = [n for n in names if n.partition(".")[2] == block and case.has(f"observables/{n}")]
            if of_block:
                shown.append((case, block, of_block))
    if not shown:
        raise NothingToDraw('no networks with observables: run moe_train with output.observables = "standard"')
    steps = sorted({s for s in (1.0, min(figures.last_step(c, f"observables/{n[0]}") for c, _, n in shown)) if s >= 1})
    columns, several = len(shown), len({id(case) for case, _, _ in shown}) > 1
    figure: Figure
    figure, axes = style.new_figure(
        len(steps), columns, width=style.COLUMN if columns <= 2 else style.PAGE, height=(44 * len(steps) + 12) * MM,
        sharey="row",
    )  # fmt: skip
    for row, step in zip(axes, steps, strict=True):
        for k, ((case, block, names), ax) in enumerate(zip(shown, row, strict=True)):
            figures.coordinate_check(case, names, step, ax, legend=False)
            if columns > 1:
                ax.set_title("" if step != steps[0] else style.join([case.label if several else "", f"block {block}" if block else ""]))
            if k:
                ax.set_ylabel("")
            if step != steps[-1]:
                ax.set_xlabel("")
    draw.shared_legend(figure, draw.panels(axes), 3 if columns <= 2 else 6)
    return figure


def _criterion(case: Case, sweep: Group) -> str:
    """Label of the loss that was to be small."""
    batches = "batch loss" if case.config.get("training.batch") else "loss"
    of = {"tail": f"{batches}, last tenth of steps", "final": "loss at the end", "test": "test loss at the end"}
    return of.get(str(sweep.attributes.get("criterion")), "loss")


@dataclass(frozen=True)
class _Sweep:
    """Learning-rate curves of one configuration."""

    config: dict[str, Any]
    curves: list[figures.LearningRateCurve]
    quantity: str


def _sweeps(cases: Sequence[Case]) -> list[_Sweep]:
    """Of files of dmft_validate --lr-sweep, and of three or more files that differ in optimizer.lr only."""
    groups: dict[str, tuple[dict[str, Any], list[Case]]] = {}
    for case in cases:
        rest = {k: v for k, v in case.config.items() if k != "optimizer.lr"}
        groups.setdefault(repr(sorted(rest.items())), (rest, []))[1].append(case)
    sweeps = [_Sweep(rest, figures.learning_rate_curves(group), "loss") for rest, group in groups.values() if len(group) > 2]
    for case in cases:
        rest = {k: v for k, v in case.config.items() if k != "optimizer.lr"}
        for s in (r.lr_sweep for r in case.validations if r.lr_sweep is not None):
            sweeps.append(_Sweep(rest, figures.swept_curves(s), _criterion(case, s)))
    if not sweeps:
        raise NothingToDraw(
            "no learning-rate curve: run dmft_validate CONFIG --lr-sweep 0.03:3:9, or give files of three or more optimizer.lr"
        )
    return sweeps


def _one_label(quantities: Iterable[str], panels: Sequence[Axes]) -> None:
    """Panels of a row that share their axis have one label."""
    for quantity, ax in zip(quantities, panels, strict=True):
        if not style.first_column(ax) and len(set(quantities)) == 1:
            ax.set_ylabel("")


def _learning_rate(cases: Sequence[Case]) -> Figure:
    sweeps = _sweeps(cases)
    figure, panels = _grid(len(sweeps), 2, each=52 * MM, per_case=True)
    colors = style.width_colors(c.width for s in sweeps for c in s.curves if c.width is not None)
    spans = []
    for sweep, label, ax in zip(sweeps, labels_of([s.config for s in sweeps]), panels, strict=True):
        draw.name(ax, label)
        figures.learning_rate(sweep.curves, ax, sweep.quantity, colors=colors)
        spans.append(ax.get_ylim())
        if len(sweeps) > 1:
            ax.set_title(label)
    for k in range(0, len(panels), 2):  # a row shares its axis, which each panel has set for itself
        row = spans[k : k + 2]
        panels[k].set_ylim(min(low for low, _ in row), max(high for _, high in row))
    _one_label([s.quantity for s in sweeps], panels)
    if len(sweeps) > 1:
        draw.shared_legend(figure, panels)
    return figure


def _best_loss(cases: Sequence[Case]) -> Figure:
    """A panel for all parameterizations of a configuration."""
    groups: dict[str, list[_Sweep]] = {}
    for sweep in _sweeps(cases):
        rest = {k: v for k, v in sweep.config.items() if k != "model.param"}
        groups.setdefault(repr(sorted(rest.items())), []).append(sweep)
    of_panels = list(groups.values())
    figure, panels = _grid(len(of_panels), 2, each=52 * MM)
    rests = [{k: v for k, v in sweeps[0].config.items() if k != "model.param"} for sweeps in of_panels]
    for sweeps, label, ax in zip(of_panels, labels_of(rests), panels, strict=True):
        draw.name(ax, label)
        curves = {style.value_label("model.param", s.config.get("model.param", "")): s.curves for s in sweeps}
        figures.best_loss(curves, ax, sweeps[0].quantity)
        if len(of_panels) > 1:
            ax.set_title(label)
    _one_label([sweeps[0].quantity for sweeps in of_panels], panels)
    draw.shared_legend(figure, panels)
    return figure


def _of_blocks(group: Group, folder: str, names: Iterable[str]) -> list[str]:
    """Names of what a figure shows: of a stack "Phi.1" and "Phi.4", the first and the last of four blocks."""
    found: list[str] = []
    for name in names:
        array = group.array(f"{folder}/{name}")
        blocks = array.shape[array.axis("block")] if "block" in array.dims else 0
        found += [f"{name}.{block}" for block in sorted({1, blocks})] if blocks > 1 else [name]
    return found


def _kernels(cases: Sequence[Case]) -> dict[str, Figure]:
    made: dict[str, Figure] = {}
    having = [c for c in cases if c.limit is not None and c.limit.limit is not None and "kernels" in c.limit.limit]
    for k, case in enumerate(having):
        assert case.limit is not None and case.limit.limit is not None
        names = _of_blocks(case.limit.limit, "kernels", [n for n in case.limit.limit.group("kernels") or () if n != "steps"])
        recorded = [int(s) for s in case.limit.limit.array("kernels/steps").values]
        steps = sorted({recorded[0], recorded[-1]})
        both = any("kernels" in r.networks[n] for n, r in case.networks.items())
        each = 2 if both else 1  # panels of a step
        width = style.PAGE if both and len(steps) > 1 else style.COLUMN if both or len(steps) > 1 else 0.6 * style.COLUMN
        figure, axes = style.new_figure(len(names), each * len(steps), width=width, height=(34 * len(names) + 8) * MM)
        _of_one_case(figure, draw.panels(axes), case, having)
        for row, name in zip(axes, names, strict=True):
            for j, step in enumerate(steps):
                if both:
                    figures.kernel_comparison(case, name, step, axes=row[2 * j : 2 * j + 2])
                else:
                    figures.kernel(case, name, step=step, ax=row[j])
            for j, ax in enumerate(row):
                if name != names[0]:
                    ax.set_title("")
                if name != names[-1]:
                    ax.set_xlabel("")
                    ax.tick_params(labelbottom=False)
                if j:
                    ax.set_ylabel("")
                    ax.tick_params(labelleft=False)
        made[f"_{k + 1}" if len(having) > 1 else ""] = figure
    if not made:
        raise NothingToDraw("no file holds /limit/kernels: run dmft_solve with output.kernels_at, e.g. --kernels-at 0,40")
    return made


def _distributions(cases: Sequence[Case]) -> dict[str, Figure]:
    made: dict[str, Figure] = {}
    having = [c for c in cases if c.has("distributions")]
    for k, case in enumerate(having):
        groups = [r.networks[n] for n, r in case.networks.items()] + ([case.limit.limit] if case.limit else [])
        group = next(g for g in groups if g is not None and "distributions" in g)
        steps = [int(s) for s in group.array("distributions/steps").values]
        names = _of_blocks(group, "distributions", [n for n in ("h", "u", "r") if f"distributions/{n}" in group])
        figure, axes = style.new_figure(len(names), len(steps), width=style.COLUMN if len(steps) <= 2 else style.PAGE,
                                        height=36 * MM * len(names) + 8 * MM)  # fmt: skip
        _of_one_case(figure, draw.panels(axes), case, having)
        for row, name in zip(axes, names, strict=True):
            for j, (step, ax) in enumerate(zip(steps, row, strict=True)):
                figures.distribution(case, name, step, ax, legend=False)
                if j:
                    ax.set_ylabel("")
        draw.shared_legend(figure, draw.panels(axes))
        made[f"_{k + 1}" if len(having) > 1 else ""] = figure
    if not made:
        raise NothingToDraw("no file holds distributions: run with output.distributions_at, e.g. --distributions-at 0,40")
    return made


@dataclass(frozen=True)
class Entry:
    """A figure by name. `make` returns one figure, or several by the ending of their file names; NothingToDraw otherwise."""

    help: str
    make: Callable[[Sequence[Case]], Figure | dict[str, Figure]]


GALLERY: dict[str, Entry] = {
    "loss": Entry("loss against step, the limit as a line", _loss_figure(None)),
    "test_loss": Entry("test loss against step", _loss_figure("test_loss")),
    "accuracy": Entry("accuracy against step", _loss_figure("accuracy")),
    "test_accuracy": Entry("test accuracy against step", _loss_figure("test_accuracy")),
    "forward": Entry("forward fields against step", _observables("forward")),
    "aggregation": Entry("initial and learned parts against step", _observables("aggregation")),
    "backward": Entry("backward fields against step", _observables("backward")),
    "routing": Entry("router entropy, loads, effective experts against step", _observables("routing")),
    "change": Entry("changes since initialisation against step", _observables("change")),
    "widths": Entry("loss and observables against width, fitted and predicted exponents", _widths),
    "coordinate_check": Entry("sizes of terms against width, limit drawn in, configurations side by side", _coordinate_check),
    "learning_rate": Entry("final loss against learning rate, optima marked", _learning_rate),
    "best_loss": Entry("loss at the best learning rate against width, limit drawn in, parameterizations together", _best_loss),
    "kernels": Entry("kernels as heat maps, theory beside experiment", _kernels),
    "distributions": Entry("distributions of h, u and r, theory and networks", _distributions),
}


def draw_figure(name: str, cases: Sequence[Case]) -> dict[str, Figure]:
    """The figure(s) of a name by file name without suffix."""
    with style.style():
        made = GALLERY[name].make(cases)
        drawn = made if isinstance(made, dict) else {"": made}
        for figure in drawn.values():  # the layout once and for all, so that one format does not depend on those before
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
    return {name + ending: figure for ending, figure in drawn.items()}
