"""Reading result files."""

from __future__ import annotations

import re
import tempfile
import unittest
from pathlib import Path

import h5py
import moe_dmft
import numpy as np
from moe_dmft import ResultError, load, style
from moe_dmft.cases import case_of, cases_of
from moe_dmft.fit import power_law, with_error
from result_files import STEPS, WIDTHS, dataset, limit_file, network_file, written

SOURCE = Path(__file__).resolve().parents[2]


class Reading(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_dimensions_have_names(self) -> None:
        networks = load(network_file(self.folder / "n.h5"))
        loss = networks.networks[32].array("loss")
        self.assertEqual(loss.dims, ("seed", "step"))
        self.assertEqual(loss.mean("seed").dims, ("step",))
        np.testing.assert_allclose(loss.select(seed=2, step=slice(1, 3)), loss.values[2, 1:3])
        np.testing.assert_allclose(np.asarray(loss), loss.values)
        with self.assertRaisesRegex(KeyError, "no dimension 'layer'; it has seed, step"):
            loss.select(layer=0)
        self.assertEqual(list(networks.networks), list(WIDTHS))
        self.assertEqual(networks.key("optimizer.lr"), 0.5)
        self.assertIsNone(networks.limit)

    def test_curves(self) -> None:
        networks, limit = load(network_file(self.folder / "n.h5")), load(limit_file(self.folder / "l.h5"))
        curve = networks.network_curve(32, "loss")
        assert curve is not None
        np.testing.assert_allclose(curve.x, STEPS)
        np.testing.assert_allclose(curve.mean, np.linspace(2, 0.8, 5) + 1 / 32)  # seeds add 0, 1/32, 2/32
        np.testing.assert_allclose(curve.error, 1 / 32 / np.sqrt(3))  # standard deviation 1/32 of three
        tested = limit.limit_curve("test_loss")
        assert tested is not None
        np.testing.assert_allclose(tested.x, [0, 4])
        observed = limit.limit_curve("observables/rms_h")
        assert observed is not None
        np.testing.assert_allclose(observed.x, [0, 2, 4])
        np.testing.assert_allclose(observed.error, 0.02)
        self.assertEqual(observed.at(3.9), (1.5, 0.02))
        self.assertIsNone(limit.limit_curve("accuracy"))

    def test_curves_of_a_flow_stand_at_its_times(self) -> None:
        path = limit_file(self.folder / "flow.h5")
        with written(path, "a") as file:
            file["limit/times"] = [0.0, 2.5, 5.0, 7.5, 10.0]
        flow = load(path)
        for name, x in (("loss", [0, 2.5, 5, 7.5, 10]), ("test_loss", [0, 10]), ("observables/rms_h", [0, 5, 10])):
            curve = flow.limit_curve(name)
            assert curve is not None
            np.testing.assert_allclose(curve.x, x)

    def test_curves_of_stacks_of_blocks(self) -> None:
        file = limit_file(self.folder / "deep.h5")
        with written(file, "a") as opened:
            dataset(opened, "limit/observables/rms_r", [[3.0, 4.0], [6.0, 8.0], [1.0, 7.0]], "step", "block")
            dataset(opened, "limit/observables/rms_r_sem", [[0.3, 0.4], [0.6, 0.8], [0.1, 0.7]], "step", "block")
        deep = load(file)
        whole, second = deep.limit_curve("observables/rms_r"), deep.limit_curve("observables/rms_r.2")
        assert whole is not None and second is not None
        np.testing.assert_allclose(whole.mean, np.array([5, 10, 50**0.5]) / 2**0.5)
        np.testing.assert_allclose(whole.error, np.array([0.5, 1, 0.5**0.5]) / 2**0.5)
        np.testing.assert_allclose(second.mean, [4, 8, 7])
        with self.assertRaisesRegex(ResultError, "no block 3"):
            deep.limit_curve("observables/rms_r.3")

    def test_files_that_are_no_results(self) -> None:
        text = self.folder / "text.h5"
        text.write_text("no HDF5")
        whole = limit_file(self.folder / "whole.h5").read_bytes()
        cut = self.folder / "cut.h5"
        cut.write_bytes(whole[: len(whole) // 2])
        foreign, newer, broken = (self.folder / f"{name}.h5" for name in ("foreign", "newer", "broken"))
        with h5py.File(foreign, "w") as file:
            file["x"] = 1
        for path, attribute, value in ((newer, "format_version", 7), (broken, "config", "[model")):
            limit_file(path)
            with written(path, "a") as file:
                file.attrs[attribute] = value
        altered, edited, shorter = (self.folder / f"{name}.h5" for name in ("altered", "edited", "shorter"))
        altered.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
        shorter.write_bytes(whole[:-1])
        with h5py.File(limit_file(edited), "a") as file:
            file["limit/loss"][0] = 1.5
        for path, message in (
            (self.folder / "none.h5", "there is no such file"),
            (self.folder, "is a folder"),
            (text, "is not an HDF5 file. A result is what dmft_solve"),
            (cut, "is cut short"),
            (foreign, "no result of this toolkit"),
            (newer, "has format_version 7, this package reads 1"),
            (broken, "config is not TOML"),
            (altered, "was cut short or altered"),
            (edited, "was cut short or altered"),
            (shorter, "was cut short or altered"),
        ):
            with self.subTest(path=path.name), self.assertRaisesRegex(ResultError, re.escape(str(path)) + ".*" + message):
                load(path)

    def test_a_dataset_that_lacks_is_named(self) -> None:
        limit = load(limit_file(self.folder / "l.h5"))
        assert limit.limit is not None
        with self.assertRaisesRegex(ResultError, "no dataset /limit/accuracy"):
            limit.limit.array("accuracy")

    def test_cases(self) -> None:
        files = [load(limit_file(self.folder / f"l{p}.h5", p)) for p in ("mup", "mssp")]
        files += [load(network_file(self.folder / f"n{p}.h5", p)) for p in ("mup", "mssp")]
        mup, mssp = cases_of(files)
        self.assertEqual((mup.label, mssp.label), ("μP", "MSSP"))
        self.assertEqual(list(mup.networks), list(WIDTHS))
        self.assertEqual(mssp.names(), ["loss", "test_loss"])
        self.assertEqual(mssp.names("observables"), ["rms_h", "rms_y_init"])
        with self.assertRaisesRegex(ResultError, "differ in model.param"):
            case_of(files)
        with self.assertRaisesRegex(ResultError, "lmup.h5 and .*lmup.h5 both hold the limit"):
            cases_of([files[0], files[0]])
        with self.assertRaisesRegex(ResultError, "both hold networks of N = 16"):
            cases_of([files[2], files[2]])


class Numbers(unittest.TestCase):
    def test_power_law(self) -> None:
        x = np.array([32.0, 64, 128, 256])
        exact = power_law(x, 3 * x**-0.5, 0.01 * x**-0.5)
        assert exact is not None
        self.assertAlmostEqual(exact.exponent, -0.5, places=12)
        self.assertAlmostEqual(exact.prefactor, 3, places=10)
        # Relative errors of 1 % at log x of spacing log 2: variance 1e-4 / (9 * 5) / (3 * log 2)^2 ... of four points,
        # sum of squares about their centre 5 log(2)^2, errors relative 0.01 / 3.
        self.assertAlmostEqual(exact.error, 0.01 / 3 / np.sqrt(5) / np.log(2), places=12)
        # One point ten errors off: its weight is that of its error, and the error of the exponent grows with chi^2.
        y = 3 * x**-0.5
        y[3] *= 1 + 10 * 0.01 / 3
        off = power_law(x, y, 0.01 * x**-0.5)
        assert off is not None and off.chi2 > off.freedom
        self.assertGreater(off.error, exact.error)
        self.assertIsNone(power_law([32], [1.0], [0.1]))
        self.assertIsNone(power_law([32, 64], [0.0, 0.0], [0.1, 0.1]))

    def test_errors_of_the_last_digit(self) -> None:
        for value, error, text in (
            (0.498, 0.0031, "0.498(3)"), (1.0193, 0.0112, "1.019(11)"), (0.9412, 0.231, "0.94(23)"), (0.5, 0.0996, "0.50(10)"),
            (12.3, 4.2, "12(4)"),
            (0.123, float("nan"), "0.12"), (-0.549, 0.007, "-0.549(7)"),
        ):  # fmt: skip
            self.assertEqual(with_error(value, error), text)

    def test_every_observable_has_a_symbol(self) -> None:
        text = (SOURCE / "support" / "observable.hpp").read_text()
        names = re.findall(r'ObservableInfo\{"(\w+)"', text)
        self.assertGreater(len(names), 40)
        for name in names:
            self.assertNotEqual(style.symbol(name), name.replace("_", " "), name)
        self.assertEqual(style.symbol("rms_xi_A_init"), r"$\mathrm{rms}(\xi^{A}_{\mathrm{init}})$")
        self.assertEqual(style.symbol("something_else"), "something else")

    def test_the_package_says_what_it_offers(self) -> None:
        for name in moe_dmft.__all__:
            self.assertTrue(hasattr(moe_dmft, name), name)


if __name__ == "__main__":
    unittest.main()
