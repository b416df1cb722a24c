"""dmft_plot as a user runs it, and the programs started from Python."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import moe_dmft
import numpy as np
from result_files import limit_file, network_file, validation_file

PLOT = str(Path(os.environ["MOE_DMFT_BIN"]) / "dmft_plot")
SMALL: dict[str, Any] = {"steps": 2, "train": 8, "test": 0, "regime": "II", "optimizer": "sgd", "lr": 0.5}


class Outside(HTMLParser):
    """Collects what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object"):
            self.sources.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "srcset") and v and not v.startswith("data:")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


class Plot(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.limit, self.networks = str(limit_file(self.folder / "limit.h5")), str(network_file(self.folder / "networks.h5"))

    def plot(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([PLOT, *arguments], capture_output=True, text=True, check=False, cwd=self.folder)

    def test_figures(self) -> None:
        done = self.plot(self.limit, self.networks, "--out", "fig", "--format", "png,svg", "--csv", "--figures", "loss,kernels")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        names = sorted(p.name for p in (self.folder / "fig").iterdir())
        self.assertEqual(names, sorted(f"{n}.{s}" for n in ("loss", "kernels") for s in ("png", "svg", "csv")))
        self.assertEqual(sorted(done.stdout.split()), [f"fig/{n}" for n in names])
        again = (self.folder / "fig" / "loss.svg").read_bytes()
        self.assertEqual(self.plot(self.limit, self.networks, "--out", "fig", "--format", "svg", "--quiet").stdout, "")
        self.assertEqual((self.folder / "fig" / "loss.svg").read_bytes(), again)  # equal files, equal figures

    def test_page(self) -> None:
        done = self.plot(self.limit, self.networks, "--page", "page.html")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        text = (self.folder / "page.html").read_text()
        page = Outside()
        page.feed(text)
        self.assertEqual(page.sources, [])
        self.assertNotRegex(text, r"url\(|@import|http-equiv")
        self.assertGreaterEqual(text.count("data:image/svg+xml;base64,"), 5)
        words = " ".join(page.words)
        for part in ("MSSP, regime II, SGD, η = 0.5, digits", "a <warning> of the solve", "N = 64", 'param = "mssp"', "0.816(9)"):
            self.assertIn(part, words)

    def test_page_of_a_validation(self) -> None:
        done = self.plot(str(validation_file(self.folder / "v.h5")), "--page", "v.html")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        page = Outside()
        page.feed((self.folder / "v.html").read_text())
        self.assertEqual(page.sources, [])
        words = " ".join(" ".join(page.words).split())
        for part in (
            "Verdict positive because of <this>", "Coordinate check of μP negative", "rms_y_init agrees 1.25 4 no difference",
            "rms_y_init late -0.480(12) -0.5 agrees B(0) averages over experts", "loss at the last step",
            "N = 32 0.6 (0.5 .. 0.7) (edge of the sweep) 0.500(10)", "limit 0.8 (0.7 .. 0.9)",
        ):  # fmt: skip
            self.assertIn(part, words)

    def test_bad_usage(self) -> None:
        for arguments, message in (
            ([], "no file given"),
            ([self.limit, "--format", "gif,pdf"], "--format gif is not known"),
            ([self.limit, "--figures", "los,kernls"], "Did you mean loss.*\n.*Did you mean kernels"),
            (["--format", "gif", "--figures", "los", "none.h5", "also.h5"], "gif(.|\n)*loss(.|\n)*none.h5: (.|\n)*also.h5: "),
            ([self.limit, "--colour"], "unrecognized arguments: --colour. dmft_plot --help"),
        ):
            done = self.plot(*arguments)
            self.assertEqual((done.returncode, done.stdout), (2, ""), arguments)
            self.assertRegex(done.stderr, "^dmft_plot: command line: (.|\n)*" + message)

    def test_a_page_or_folder_replaces_no_result(self) -> None:
        before = Path(self.limit).read_bytes()
        for name in (self.limit, "./limit.h5"):
            done = self.plot(self.networks, self.limit, "--page", name)
            self.assertEqual(done.returncode, 2)
            self.assertIn("would replace it", done.stderr)
        self.assertEqual(Path(self.limit).read_bytes(), before)

    def test_a_page_of_a_file_whose_name_is_no_text(self) -> None:
        odd = os.path.join(os.fsencode(self.folder), b"l\xff.h5")
        os.rename(self.limit, odd)
        done = self.plot(os.fsdecode(odd), "--page", "page.html")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("l?.h5", (self.folder / "page.html").read_text(encoding="utf-8"))

    def test_standard_output_that_takes_nothing(self) -> None:
        for arguments in (["--help"], ["--version"], [self.limit, "--figures", "loss"]):
            with open("/dev/full", "w", encoding="utf-8") as full:
                done = subprocess.run(
                    [PLOT, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=self.folder
                )
            self.assertEqual(done.returncode, 1)
            self.assertIn("standard output", done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)

    def test_files_that_cannot_be_drawn(self) -> None:
        (self.folder / "text.h5").write_text("no HDF5")
        for arguments, message in (
            (["text.h5"], "dmft_plot: text.h5 is not an HDF5 file"),
            (["none.h5"], "dmft_plot: none.h5: there is no such file"),
            (
                [self.limit, "--figures", "distributions,accuracy"],
                "figure distributions: .*--distributions-at(.|\n)*figure accuracy",
            ),
            ([self.limit, "--out", "text.h5"], "io: .*text.h5"),
            ([self.limit, "--page", "nowhere/page.html"], "io: .*nowhere"),
        ):
            done = self.plot(*arguments)
            self.assertEqual(done.returncode, 1, arguments)
            self.assertRegex(done.stderr, message)
            self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["limit.h5", "networks.h5", "text.h5"])

    def test_help_and_version(self) -> None:
        text = self.plot("--help").stdout
        for word in ("--page", "--csv", "coordinate_check", "Exit status"):
            self.assertIn(word, text)
        self.assertRegex(self.plot("--version").stdout, r"^dmft_plot \d+\.\d+\.\d+\n$")


class Programs(unittest.TestCase):
    def test_solve_and_train(self) -> None:
        limit = moe_dmft.solve(neurons=24, replicas=2, threads=1, **SMALL | {"model.init_scale.router": 0.5})
        networks = moe_dmft.train(widths=[8, 16], seeds=2, threads=1, **SMALL)
        self.assertEqual((limit.kind, networks.kind), ("limit", "network"))
        self.assertEqual(limit.key("model.init_scale.router"), 0.5)
        self.assertEqual(list(networks.networks), [8, 16])
        self.assertEqual(networks.networks[8].array("loss").dims, ("seed", "step"))

    def test_switches_are_keywords_too(self) -> None:
        limit = moe_dmft.solve(neurons=24, replicas=2, threads=1, quiet=True, residual=np.True_, **SMALL)
        self.assertIs(limit.key("model.residual"), True)
        limit = moe_dmft.solve(neurons=24, replicas=2, threads=1, quiet=False, residual=False, **SMALL)
        self.assertIs(limit.key("model.residual"), False)

    def test_the_message_of_a_program_comes_through(self) -> None:
        with self.assertRaises(moe_dmft.ProgramError) as caught:
            moe_dmft.solve(regime="IV", lr=-1)
        self.assertEqual(caught.exception.status, 2)
        self.assertRegex(str(caught.exception), re.compile("IV.*optimizer.lr", re.DOTALL))


if __name__ == "__main__":
    unittest.main()
