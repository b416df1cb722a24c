"""Figures show the numbers of the files."""

from __future__ import annotations

import csv
import tempfile
import unittest
import warnings
from pathlib import Path

import h5py
import matplotlib.pyplot
import numpy as np
from matplotlib.axes import Axes
from moe_dmft import ResultError, draw, figures, load, style
from moe_dmft.cases import case_of, cases_of
from moe_dmft.gallery import GALLERY, NothingToDraw, draw_figure
from result_files import STEPS, WIDTHS, dataset, kernel_values, limit_file, network_file, validation_file, written


class Figures(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.limit, self.networks = load(limit_file(self.folder / "l.h5")), load(network_file(self.folder / "n.h5"))
        self.both = [self.limit, self.networks]

    def series(self, ax: Axes) -> dict[str, dict[str, np.ndarray]]:
        return {s.series: s.columns for s in draw.drawn(ax)}

    def test_loss(self) -> None:
        figure, ax = matplotlib.pyplot.subplots()
        self.addCleanup(matplotlib.pyplot.close, figure)
        self.assertIs(figures.loss(self.both, ax), ax)
        lines = {line.get_label(): line for line in ax.lines}
        np.testing.assert_allclose(lines["limit"].get_ydata(), np.linspace(2, 0.8, 5))
        np.testing.assert_allclose(lines["N = 32"].get_ydata(), np.linspace(2, 0.8, 5) + 1 / 32)
        self.assertEqual(len(ax.collections), 1 + len(WIDTHS))  # a band each
        self.assertEqual([t.get_text() for t in ax.get_legend().get_texts()], ["N = 16", "N = 32", "N = 64", "limit"])
        self.assertEqual((ax.get_xlabel(), ax.get_ylabel()), ("step t", r"loss $\mathcal{L}$"))

    def test_axes_are_made_where_none_are_given(self) -> None:
        ax = figures.observable(self.both, "rms_h")
        self.assertAlmostEqual(ax.figure.get_size_inches()[0], 85 / 25.4)
        self.assertEqual(ax.get_ylabel(), r"$\mathrm{rms}(h)$")

    def test_against_width(self) -> None:
        ax = figures.against_width(self.both, "rms_y_init", predicted=-0.5)
        seen = self.series(ax)
        np.testing.assert_allclose(seen["networks"]["rms_y_init"], np.array(WIDTHS) ** -0.5)
        np.testing.assert_allclose(seen["fit"]["rms_y_init"], seen["predicted"]["rms_y_init"])
        self.assertEqual(seen["limit"]["rms_y_init"][0], 0)
        self.assertIn("limit: 0", [t.get_text() for t in ax.get_legend().get_texts()])  # below the logarithmic axis
        self.assertIn("$N^{-0.500(6)}$ fit", [t.get_text() for t in ax.get_legend().get_texts()])
        # Relative errors 0.01/sqrt(3); three points of spacing log 2: 0.01/sqrt(3) / (sqrt(2) log 2) = 0.0059.
        fitted = figures.scaling(self.both, "rms_y_init", 4).fitted
        assert fitted is not None
        self.assertAlmostEqual(fitted.error, 0.01 / np.sqrt(3) / (np.sqrt(2) * np.log(2)), places=10)
        self.assertEqual(self.series(figures.against_width(self.both, "loss"))["limit"]["loss"][0], 0.8)

    def test_coordinate_check(self) -> None:
        ax = figures.coordinate_check(self.both, ["rms_y_init", "rms_h"])
        seen = self.series(ax)
        np.testing.assert_allclose(seen["rms_h"]["N"], WIDTHS)
        self.assertEqual(seen["rms_h limit"]["rms"][0], 1.5)
        self.assertEqual(seen["rms_y_init limit"]["rms"][0], 0)
        with self.assertRaisesRegex(ResultError, "l.h5.*Set output.observables"):
            figures.coordinate_check(self.limit, ["rms_zeta_init"])

    def test_logarithmic_sizes_have_two_labels_or_more(self) -> None:
        for low, high in ((0.031, 0.78), (0.9, 11), (0.0011, 0.09), (1.5, 99), (0.02, 300), (2, 2.1)):
            figure, ax = matplotlib.pyplot.subplots()
            self.addCleanup(matplotlib.pyplot.close, figure)
            ax.set_ylim(low, high)
            figures._log_y(ax)
            bottom, top = ax.get_ylim()
            self.assertGreaterEqual(sum(bottom <= tick <= top for tick in ax.get_yticks()), 2, (low, high))

    def test_what_was_recorded_once_is_a_point(self) -> None:
        for path in (self.folder / "l.h5", self.folder / "n.h5"):  # as of runs that diverged in their first step
            with written(path, "r+") as file:
                curves = [file["limit/loss"]] if "limit" in file else [file[f"network/N{n}/loss"] for n in WIDTHS]
                for curve in curves:
                    curve[..., 1:] = np.nan
        both = [load(self.folder / "l.h5"), load(self.folder / "n.h5")]
        for line in figures.loss(both).lines:
            self.assertEqual(line.get_marker(), "o", line.get_label())
        self.assertTrue(all(line.get_marker() in ("None", None) for line in figures.loss(self.both).lines))

    def test_sizes_of_networks_that_all_diverged_are_left_out_silently(self) -> None:
        with written(self.folder / "n.h5", "r+") as file:
            for name in WIDTHS:
                file[f"network/N{name}/observables/rms_h"][:, 1:] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figures.coordinate_check(load(self.folder / "n.h5"), ["rms_h"], step=4)

    def test_runs_that_ended_early_are_compared_where_all_were(self) -> None:
        case = case_of([self.limit, load(network_file(self.folder / "e.h5", ended=WIDTHS[0]))])
        self.assertEqual(figures.last_step(case, "observables/rms_y_init"), 2)
        ax = figures.coordinate_check(case, ["rms_y_init"])
        self.assertEqual(ax.get_ylabel(), "rms at t = 2")
        self.assertEqual(len(self.series(ax)["rms_y_init"]["N"]), len(WIDTHS))

    def test_kernels_are_ordered_by_class(self) -> None:
        order = [1, 3, 2, 5, 0, 4]  # rows of the classes 0, 1, 2
        expected = 2 * kernel_values()[np.ix_(order, order)]
        np.testing.assert_allclose(figures.kernel_values(self.both, "Phi")[0], expected)
        np.testing.assert_allclose(figures.kernel_values(self.both, "Phi", width=64)[0], expected)  # seeds add -1, 0, 1
        two = draw.panels(figures.kernel_comparison(self.both, "Phi", step=0))
        np.testing.assert_allclose(two[0].images[0].get_array(), expected / 2)
        self.assertEqual(two[0].images[0].get_clim(), two[1].images[0].get_clim())
        with self.assertRaisesRegex(ResultError, "n.h5: there is no /limit/kernels. Run dmft_solve with output.kernels_at"):
            figures.kernel(self.networks, "Phi")

    def test_blocks_of_a_stack(self) -> None:
        """Kernels and distributions of two blocks: the mean over them, one of them, or in the figures of dmft_plot both."""
        edges, shares = np.linspace(-4, 4, 9), np.array([[0, 1, 2, 3, 2, 1, 1, 0], [1, 1, 1, 1, 2, 2, 1, 1]]) / 10
        for file, place, seeds in ((self.limit.file, "limit", ()), (self.networks.file, "network/N64", (3,))):
            first = ("seed",) if seeds else ()
            with written(Path(file), "a") as h5:
                del h5[f"{place}/kernels"]
                kernels = np.stack([kernel_values(), 3 * kernel_values()])[None]
                dataset(h5, f"{place}/kernels/Phi", np.broadcast_to(kernels, (*seeds, *kernels.shape)), *first, "step", "block",
                        "sample", "sample_2")  # fmt: skip
                dataset(h5, f"{place}/kernels/steps", [4], "step")
                dataset(h5, f"{place}/distributions/r", np.broadcast_to(shares, (*seeds, 1, 2, 8)), *first, "step", "block", "bin")
                dataset(h5, f"{place}/distributions/edges", edges, "edge")
                dataset(h5, f"{place}/distributions/steps", [4], "step")
        both = [load(self.limit.file), load(self.networks.file)]
        order = [1, 3, 2, 5, 0, 4]
        for name, factor in (("Phi", 2), ("Phi.1", 1), ("Phi.2", 3)):
            for width in (None, 64):
                values, at = figures.kernel_values(both, name, width)
                np.testing.assert_allclose(values, factor * kernel_values()[np.ix_(order, order)])
                self.assertEqual(at, 4)
        with self.assertRaisesRegex(ResultError, "limit/kernels/Phi has no block 3"):
            figures.kernel(both, "Phi.3")
        seen = self.series(figures.distribution(both, "r.2"))["N = 64"]
        self.assertAlmostEqual((seen["density"] * (seen["high"] - seen["low"])).sum(), 1)
        np.testing.assert_allclose(np.interp(2.5, seen["high"], np.cumsum(seen["density"] * (seen["high"] - seen["low"]))), 0.85)
        cases = cases_of(both)
        (figure,) = draw_figure("kernels", cases).values()
        self.assertEqual(len([ax for ax in figure.axes if ax.images]), 4)  # two blocks, limit and networks
        (figure,) = draw_figure("distributions", cases).values()
        self.assertEqual([ax.get_xlabel() for ax in figure.axes], ["$r$ of block 1 at t = 4", "$r$ of block 2 at t = 4"])

    def test_optimum_of_a_learning_rate(self) -> None:
        lr = np.array([0.25, 0.5, 1, 2, 4])
        # A parabola in log eta around 0.8 is found exactly, its value too.
        found = figures.optimum(lr, 0.3 + np.log(lr / 0.8) ** 2)
        assert found is not None
        np.testing.assert_allclose(found, (0.8, 0.3), rtol=1e-12)
        self.assertEqual(figures.optimum(lr, np.array([1.0, 2, 3, 4, 5])), (0.25, 1.0))  # at the edge
        self.assertEqual(figures.optimum(lr, np.array([3.0, 2, 1, np.inf, np.nan])), (1.0, 1.0))  # beside divergence
        # Two parabolas of second differences 2 and 6, mixed: 1 + (1 + 2 s) s (s - 1), lowest at s = (1 + sqrt(7)) / 6.
        found = figures.optimum(lr[:4], np.array([3.0, 1, 1, 7]))
        s = (1 + np.sqrt(7)) / 6
        np.testing.assert_allclose(found, (0.5 * 2**s, 1 + (1 + 2 * s) * s * (s - 1)), rtol=1e-12)
        self.assertIsNone(figures.optimum(lr, np.full(5, np.nan)))
        cases = cases_of(
            load(limit_file(self.folder / f"lr{k}.h5", lr=eta, final=0.3 + np.log(eta / 0.8) ** 2)) for k, eta in enumerate(lr)
        )
        (curve,) = figures.learning_rate_curves(cases)
        assert curve.best is not None
        self.assertAlmostEqual(curve.best[0], 0.8)
        self.assertAlmostEqual(self.series(figures.learning_rate([curve]))["limit optimum"]["eta"][0], 0.8)

    def test_files_of_dmft_validate(self) -> None:
        results = load(validation_file(self.folder / "v.h5"))
        (case,) = cases_of([results])
        checks = case.compared("coordinate_check")
        self.assertEqual({name: c.label for name, c in checks.items()}, {"mup": "μP", "mssp": "MSSP"})
        for name, level in (("mup", 1), ("mssp", 2)):
            scaling = figures.scaling(checks[name], "rms_y_init", 4)
            np.testing.assert_allclose(scaling.mean, level * np.array(WIDTHS) ** -0.5)
            self.assertEqual(scaling.limit, (0, 0))
        (figure,) = draw_figure("coordinate_check", [case]).values()
        self.assertEqual({ax.get_title() for ax in figure.axes if ax.get_title()}, {"μP", "MSSP"})
        (figure,) = draw_figure("widths", [case]).values()  # a predicted slope, out of the file
        legends = [t.get_text() for ax in figure.axes for t in ax.get_legend().get_texts()]
        self.assertEqual(legends.count("$N^{-0.5}$ predicted"), 1)
        assert results.lr_sweep is not None
        curves = figures.swept_curves(results.lr_sweep)
        self.assertEqual(
            [(c.width, c.best) for c in curves], [(16, (0.4, 0.35, 0.45)), (32, (0.6, 0.5, 0.7)), (None, (0.8, 0.7, 0.9))]
        )
        self.assertEqual([(c.best_loss, c.best_error, c.at_edge) for c in curves[:2]], [(0.5, 0.01, False), (0.5, 0.01, True)])
        ax = figures.best_loss({"μP": curves})
        best = self.series(ax)
        np.testing.assert_allclose(best["μP"]["N"], [16, 32])
        np.testing.assert_allclose(best["μP"]["loss"], 0.5)
        self.assertEqual((best["μP limit"]["N"][0], best["μP limit"]["loss"][0]), (np.inf, 0.5))
        crossed = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "x"]
        self.assertEqual(crossed, [32])  # its best rate is at the edge
        self.assertNotIn("optimizer.lr", case.config)  # a sweep has rates of its own
        (figure,) = draw_figure("best_loss", [case]).values()
        self.assertEqual([ax.get_ylabel() for ax in figure.axes], ["loss at the end"])
        seen = self.series(figures.learning_rate(curves))
        np.testing.assert_allclose(seen["N = 16"]["eta"], [0.25, 0.5, 1])  # at 2 a seed diverged
        self.assertEqual(seen["limit optimum"]["loss"][0], 0.5)

    def test_observables_of_a_stack(self) -> None:
        """The first and the last of two blocks stand side by side in the figures of dmft_plot, each with its own prediction."""
        path = validation_file(self.folder / "v.h5")
        with written(path, "a") as file:
            file.attrs["config"] = file.attrs["config"].replace("[model]", "[model]\ndepth = 2")
            for place in ("limit", *(f"network/N{n}" for n in WIDTHS)):
                for name in (n for n in ("rms_y_init", "rms_y_init_sem") if f"{place}/observables/{n}" in file):
                    values = file[f"{place}/observables/{name}"][()]
                    del file[f"{place}/observables/{name}"]
                    first = ("seed",) if values.ndim == 2 else ()
                    dataset(file, f"{place}/observables/{name}", np.stack([values, 3 * values], -1), *first, "step", "block")
            file.move("comparison/exponents/rms_y_init", "comparison/exponents/rms_y_init.2")
            for group in ("coordinate_check/mup/observables", "coordinate_check/mssp/observables"):
                file.copy(f"{group}/rms_y_init", f"{group}/rms_y_init.2")
                file[f"{group}/rms_y_init.2/mean"][...] *= 3
                file.move(f"{group}/rms_y_init", f"{group}/rms_y_init.1")
        (case,) = cases_of([load(path)])
        (figure,) = draw_figure("coordinate_check", [case]).values()
        titles = ["MSSP, block 1", "MSSP, block 2", "μP, block 1", "μP, block 2"]
        self.assertEqual([ax.get_title() for ax in figure.axes], [*titles, *[""] * 4])
        for ax, level in zip(figure.axes, [2, 6, 1, 3], strict=False):
            (seen,) = (columns for name, columns in self.series(ax).items() if not name.endswith("limit"))
            np.testing.assert_allclose(seen["rms"], level * np.array(WIDTHS) ** -0.5)
        self.assertEqual(figure.legends[0].get_texts()[0].get_text(), style.symbol("rms_y_init"))
        (figure,) = draw_figure("aggregation", [case]).values()
        self.assertEqual([ax.get_ylabel() for ax in figure.axes], [f"{style.symbol('rms_y_init')}\nblock {b}" for b in (1, 2)])
        (figure,) = draw_figure("widths", [case]).values()
        predicted = {ax.get_ylabel() for ax in figure.axes if "predicted" in self.series(ax)}
        self.assertEqual(predicted, {f"{style.symbol('rms_y_init')}, block 2\nat t = 4"})
        with self.assertRaisesRegex(NothingToDraw, "no networks with observables"):
            with written(path, "a") as file:
                for check in file["coordinate_check"].values():
                    del check["observables/rms_y_init.1"], check["observables/rms_y_init.2"]
            draw_figure("coordinate_check", cases_of([load(path)]))

    def test_panels_that_share_an_axis_show_all_optima(self) -> None:
        files = [validation_file(self.folder / f"{name}.h5") for name in ("low", "high")]
        with written(files[1], "a") as file:
            file.attrs["config"] = str(file.attrs["config"]).replace("mssp", "mup")
            for name in ("loss", "limit_loss", "optimum_loss", "limit_optimum_loss"):
                file[f"lr_sweep/{name}"][...] = file[f"lr_sweep/{name}"][()] + 5
        for order in (files, files[::-1]):
            (figure,) = draw_figure("learning_rate", cases_of([load(f) for f in order])).values()
            for ax in figure.axes:
                low, high = ax.get_ylim()
                optima = [s.columns["loss"][0] for s in draw.drawn(ax) if s.series.endswith("optimum")]
                self.assertEqual(len(optima), 3)
                for loss in optima:
                    self.assertTrue(low < loss < high, (ax.get_title(), low, loss, high))

    def test_distributions_are_joined_without_loss(self) -> None:
        edges = 0.01 * np.sinh(0.05 * np.arange(-200, 201))
        centre = (edges[1:] + edges[:-1]) / 2
        shares = np.exp(-(centre**2) / 2) * np.diff(edges) / np.sqrt(2 * np.pi)
        wide, density = figures.merged(edges, shares)
        self.assertTrue(set(wide) <= set(edges))
        inside = shares[(centre > wide[0]) & (centre < wide[-1])].sum()
        self.assertAlmostEqual((density * np.diff(wide)).sum(), inside, places=12)

    def test_csv_holds_what_is_drawn(self) -> None:
        ax = figures.loss(self.both)
        path = self.folder / "loss.csv"
        draw.write_csv(ax.figure, path)
        rows = list(csv.DictReader(path.read_text().splitlines()))
        self.assertEqual(len(rows), len(STEPS) * (1 + len(WIDTHS)))
        last = [r for r in rows if r["series"] == "N = 16"][-1]
        self.assertEqual((float(last["step"]), float(last["loss"])), (4, 0.8 + 1 / 16))
        self.assertAlmostEqual(float(last["standard_error"]), 1 / 16 / np.sqrt(3), places=8)

    def test_panels_of_a_figure_are_told_apart(self) -> None:
        """By the panel column of the CSV, and by one colour a width in all panels, whichever widths each of them has."""
        few = load(network_file(self.folder / "few.h5", "mup", widths=WIDTHS[1:]))
        cases = cases_of([*self.both, load(limit_file(self.folder / "m.h5", "mup")), few])
        (figure,) = draw_figure("loss", cases).values()
        colors = [{line.get_label(): line.get_color() for line in ax.lines} for ax in figure.axes]
        self.assertEqual(sorted(colors[1]), ["N = 32", "N = 64", "limit"])
        for label, color in colors[1].items():
            self.assertEqual(colors[0][label], color)
        self.assertEqual([t.get_text() for t in figure.legends[0].get_texts()], ["N = 16", "N = 32", "N = 64", "limit"])
        for name in ("coordinate_check", "kernels", "widths", "loss"):
            panels = []
            for stem, figure in draw_figure(name, cases).items():
                draw.write_csv(figure, self.folder / f"{stem}.csv")
                rows = list(csv.DictReader((self.folder / f"{stem}.csv").read_text().splitlines()))
                panels += list(dict.fromkeys(r["panel"] for r in rows))
                drawn = [ax for ax in figure.axes if draw.drawn(ax)]
                self.assertEqual(len({r["panel"] for r in rows}), len(drawn), name)
            self.assertEqual(len(panels), len(set(panels)), name)
            self.assertTrue(any("μP" in p for p in panels) and any("MSSP" in p for p in panels), name)
        self.assertEqual(panels, ["MSSP, loss", "μP, loss"])

    def test_gallery_draws_all_there_is_in_every_format(self) -> None:
        cases = cases_of(
            [*self.both, load(limit_file(self.folder / "m.h5", "mup")), load(network_file(self.folder / "o.h5", "mup"))]
        )
        drawn = set()
        for name in GALLERY:
            try:
                for stem, figure in draw_figure(name, cases).items():
                    drawn.add(name)
                    for suffix in ("pdf", "svg", "png"):
                        style.save(figure, self.folder / f"{stem}.{suffix}")
            except NothingToDraw as error:
                self.assertRegex(str(error), "run|set|give")
        self.assertEqual(drawn, {"loss", "test_loss", "forward", "aggregation", "widths", "coordinate_check", "kernels"})
        pdf = (self.folder / "loss.pdf").read_bytes()
        self.assertIn(b"/FontFile2", pdf)  # TrueType, embedded
        self.assertNotIn(b"Type3", pdf)
        svg = (self.folder / "loss.svg").read_text()
        self.assertNotIn("<text", svg)  # glyphs are outlines

    def test_notebooks_show_figures_that_are_made_here(self) -> None:
        ax = figures.loss(self.both)
        for shown in (ax, ax.figure, *figures.kernel_comparison(self.both, "Phi")):
            self.assertTrue(shown._repr_png_().startswith(b"\x89PNG"))

    def test_effective_experts_are_shares_of_all(self) -> None:
        with written(Path(self.limit.file), "a") as file:
            file["limit"].attrs["experts"] = 40
            file["limit/observables/ess_forward"] = np.array([10.0, 20, 30])
            file["limit/observables/ess_forward_sem"] = np.array([1.0, 2, 3])
            file["limit/observables/ess_forward"].dims[0].label = "step"
        with written(Path(self.networks.file), "a") as file:
            for width in WIDTHS:
                file[f"network/N{width}/observables/ess_forward"] = np.full((3, 3), width / 8)
        seen = self.series(figures.observable([load(self.limit.file), load(self.networks.file)], "ess_forward"))
        np.testing.assert_allclose(seen["limit"]["ess_forward"], [0.25, 0.5, 0.75])
        np.testing.assert_allclose(seen["limit"]["standard_error"], [0.025, 0.05, 0.075])
        np.testing.assert_allclose(seen["N = 64"]["ess_forward"], 64 / 8 / 32)  # M = 32

    def test_settings_of_the_user_come_back(self) -> None:
        before = dict(matplotlib.rcParams)
        figures.loss(self.both)
        self.assertEqual(dict(matplotlib.rcParams), before)


if __name__ == "__main__":
    unittest.main()
