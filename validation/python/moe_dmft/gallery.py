"""The figures that dmft_plot and the page draw: panels for all cases at once, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import draw, figures, style
from .cases import Case
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


def _one_per_case(cases: Sequence[Case], paint: Callable[[Case, Axes], object], lacking: str) -> Figure:
    """A panel for each case that has the data, titled by what sets it apart, with one legend and one y axis."""
    if not cases:
        raise NothingToDraw(lacking)
    figure, panels = _grid(len(cases), 2 if len(cases) in (1, 2, 4) else 3, each=52 * MM, per_case=True)
    for case, ax in zip(cases, panels, strict=True):
        paint(case, ax)
        if len(cases) > 1:
            ax.set_title(case.label)
        if not ax.get_subplotspec().is_first_col():
            ax.set_ylabel("")
    if len(cases) > 1:
        draw.shared_legend(figure, panels, 4 if len(cases) <= 2 else 6)
    return figure


def _loss_figure(quantity: str | None) -> Callable[[Sequence[Case]], Figure]:
    def make(cases: Sequence[Case]) -> Figure:
        having = [c for c in cases if c.has(quantity or figures.default_loss(c))]
        test = quantity is not None and quantity.startswith("test_")
        lacking = f"no file holds {quantity or 'loss'}: " + ("run with data.test" if test else "give one that records it")
        return _one_per_case(having, lambda case, ax: figures.loss(case, ax, quantity), lacking)

    return make


def _observables(group: str) -> Callable[[Sequence[Case]], dict[str, Figure]]:
    def make(cases: Sequence[Case]) -> dict[str, Figure]:
        made: dict[str, Figure] = {}
        for k, case in enumerate(cases):
            names = [n for n in case.names("observables") if _group_of(n) == group]
            if not names:
                continue
            figure, panels = _grid(len(names), 2 if len(names) <= 4 else 3, each=34 * MM)
            for name, ax in zip(names, panels, strict=True):
                figures.observable(case, name, ax, legend=False)
            draw.shared_legend(figure, panels, 6)
            if len(cases) > 1:
                figure.suptitle(case.label, fontsize=7.5)
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
        shown = [(figures.default_loss(case), None), *((f"observables/{n}", n) for n in names)]
        figure, panels = _grid(len(shown), 2 if len(shown) <= 4 else 3, each=40 * MM)
        for (path, name), ax in zip(shown, panels, strict=True):
            step = figures.last_step(case, path)
            figures.against_width(case, name or path, step, ax, _predicted(case, name or path, step))
        if len(cases) > 1:
            figure.suptitle(case.label, fontsize=7.5)
        made[f"_{k + 1}" if len(cases) > 1 else ""] = figure
    if not made:
        raise NothingToDraw("no configuration has networks of two widths or more: run moe_train --widths 64,128,256")
    return made


def _coordinate_check(cases: Sequence[Case]) -> Figure:
    checks: list[Case] = [check for case in cases for check in case.compared("coordinate_check").values()]
    plain = [c for c in cases if c.networks and any(c.has(f"observables/{n}") for n in figures.COORDINATES)]
    having = checks or plain
    if not having:
        raise NothingToDraw('no networks with observables: run moe_train with output.observables = "standard"')
    names = [n for n in figures.COORDINATES if any(c.has(f"observables/{n}") for c in having)]
    steps = sorted({s for s in (1.0, min(figures.last_step(c, f"observables/{names[0]}") for c in having)) if s >= 1})
    columns = len(having)
    figure, axes = style.new_figure(
        len(steps), columns, width=style.COLUMN if columns <= 2 else style.PAGE, height=(44 * len(steps) + 12) * MM,
        sharey="row",
    )  # fmt: skip
    for row, step in zip(axes, steps, strict=True):
        for k, (case, ax) in enumerate(zip(having, row, strict=True)):
            figures.coordinate_check(case, names, step, ax, legend=False)
            if columns > 1 and step == steps[0]:
                ax.set_title(case.label)
            if k:
                ax.set_ylabel("")
            if step != steps[-1]:
                ax.set_xlabel("")
    draw.shared_legend(figure, draw.panels(axes), 3 if columns <= 2 else 6)
    return figure


CRITERIA = {"tail": "batch loss, last steps", "final": "loss, last step", "test": "test loss, last step"}


def _learning_rate(cases: Sequence[Case]) -> Figure:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        rest = {k: v for k, v in case.config.items() if k != "optimizer.lr"}
        groups.setdefault(repr(sorted(rest.items(), key=lambda item: item[0])), []).append(case)
    sweeps = [(group[0], figures.learning_rate_curves(group), "loss") for group in groups.values() if len(group) > 2]
    for case in cases:
        swept = [r.lr_sweep for r in case.validations if r.lr_sweep is not None]
        sweeps += [(case, figures.swept_curves(s), CRITERIA.get(str(s.attributes.get("criterion")), "loss")) for s in swept]
    if not sweeps:
        raise NothingToDraw(
            "no learning-rate curve: run dmft_validate CONFIG --lr-sweep 0.03:3:9, or give files of three or more optimizer.lr"
        )
    figure, panels = _grid(len(sweeps), 2, each=52 * MM, per_case=True)
    for (case, curves, quantity), ax in zip(sweeps, panels, strict=True):
        figures.learning_rate(curves, ax, quantity)
        if len(sweeps) > 1:
            ax.set_title(style.value_label("model.param", case.config.get("model.param", "")))
    if len(sweeps) > 1:
        draw.shared_legend(figure, panels)
    return figure


def _kernels(cases: Sequence[Case]) -> dict[str, Figure]:
    made: dict[str, Figure] = {}
    having = [c for c in cases if c.limit is not None and c.limit.limit is not None and "kernels" in c.limit.limit]
    for k, case in enumerate(having):
        assert case.limit is not None and case.limit.limit is not None
        names = [n for n in case.limit.limit.group("kernels") or () if n != "steps"]
        both = any("kernels" in r.networks[n] for n, r in case.networks.items())
        figure, axes = style.new_figure(len(names), 2 if both else 1, width=style.COLUMN * (1.0 if both else 0.6),
                                        height=(34 * len(names) + 8) * MM)  # fmt: skip
        for row, name in zip(axes, names, strict=True):
            if both:
                figures.kernel_comparison(case, name, axes=row)
            else:
                figures.kernel(case, name, ax=row[0])
            for ax in row:
                if name != names[0]:
                    ax.set_title("")
                if name != names[-1]:
                    ax.set_xlabel("")
                    ax.tick_params(labelbottom=False)
        if len(having) > 1:
            figure.suptitle(case.label, fontsize=7.5)
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
        names = [n for n in ("h", "u", "r") if f"distributions/{n}" in group]
        figure, axes = style.new_figure(len(names), len(steps), width=style.COLUMN if len(steps) <= 2 else style.PAGE,
                                        height=36 * MM * len(names) + 8 * MM)  # fmt: skip
        for row, name in zip(axes, names, strict=True):
            for j, (step, ax) in enumerate(zip(steps, row, strict=True)):
                figures.distribution(case, name, step, ax, legend=False)
                if j:
                    ax.set_ylabel("")
        draw.shared_legend(figure, draw.panels(axes))
        if len(having) > 1:
            figure.suptitle(case.label, fontsize=7.5)
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
