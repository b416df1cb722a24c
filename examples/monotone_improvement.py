#!/usr/bin/env python3
"""Loss after T steps against width, every width and the limit at its own best learning rate, muP against MSSP.

    validation/python/python examples/monotone_improvement.py --out monotone           # an hour or two
    validation/python/python examples/monotone_improvement.py --out monotone --quick   # seconds: what the tests run

Digits and Fashion-MNIST (Debian's package dataset-fashion-mnist), regimes II and III, SGD and Adam, one pass of fresh batches of 32.
Each point is the optimum of a sweep by `dmft_validate --lr-sweep`: mean batch loss over the last tenth of the steps. Sweeps are kept in
FOLDER/sweeps, each with its page, so that a study that was stopped goes on where it was. Outcome: docs/results.md.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "validation" / "python"))

import moe_dmft
from moe_dmft import draw, figures, style

PARAMS = ("mup", "mssp")
WIDTHS = {"II": [32, 64, 128, 256], "III": [16, 32, 64, 128]}
HORIZONS = (20, 56)  # T; 56 batches are all of the digits
BATCH = 32
RATES = {("sgd", 20): "1.2:7:6", ("sgd", 56): "1:5.7:6", ("adam", 20): "0.28:3.28:8", ("adam", 56): "0.2:1.72:7"}


@dataclass(frozen=True)
class Setting:
    data: str
    regime: str
    optimizer: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.data}_{self.regime}_{self.optimizer}_T{self.steps}"

    def title(self) -> str:
        optimizer = style.value_label("optimizer.name", self.optimizer)
        return f"{style.value_label('data.source', self.data)}\nregime {self.regime}, {optimizer}, T = {self.steps}"


def settings(only: str) -> list[Setting]:
    """Short horizons first: they cost least, and the delay is largest there."""
    every = itertools.product(HORIZONS, ("digits", "fashion-mnist"), WIDTHS, ("sgd", "adam"))
    return [s for s in (Setting(d, r, o, t) for t, d, r, o in every) if any(part in s.name for part in only.split(","))]


def sweep(setting: Setting, param: str, options: argparse.Namespace) -> list[figures.LearningRateCurve]:
    """Curves of loss against learning rate with their optima: widths, smallest first, then the limit."""
    file = options.out / "sweeps" / f"{setting.name}_{param}.h5"
    if not file.exists():
        keys: dict[str, Any] = {
            "regime": setting.regime, "param": param, "optimizer": setting.optimizer, "eps": 0.02, "source": setting.data,
            "train": BATCH * setting.steps, "test": 0, "batch": BATCH, "steps": setting.steps, "eval_every": setting.steps,
            "widths": WIDTHS[setting.regime], "seeds": 8, "replicas": 4, "data.path": options.data_path or None,
        }  # fmt: skip
        rates = RATES[setting.optimizer, setting.steps]
        if options.quick:
            keys |= {"widths": [8, 16], "seeds": 2, "neurons": 24, "replicas": 2, "steps": 3, "train": 3 * BATCH}
            rates = "0.1:0.4:3"
        moe_dmft.validate(out=file, threads=options.threads, lr_sweep=rates, **keys)
    found = moe_dmft.load(file).lr_sweep
    assert found is not None
    return figures.swept_curves(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("monotone"), help="folder of the results")
    parser.add_argument("--only", default="", help="settings whose names contain this, or one of several with commas between, "
                        "e.g. digits_II_sgd_T20,fashion-mnist_III")  # fmt: skip
    parser.add_argument("--threads", type=int, default=0, help="0 = all cores")
    parser.add_argument("--data-path", default="", help="folder of Fashion-MNIST's files, where they are not Debian's")
    parser.add_argument("--quick", action="store_true", help="two small widths, three learning rates, three steps")
    options = parser.parse_args()
    (options.out / "sweeps").mkdir(parents=True, exist_ok=True)

    chosen = settings(options.only)
    if not chosen:
        parser.error(f"--only {options.only}: no setting has that in its name; names are like {settings('')[0].name}")
    with (options.out / "monotone.csv").open("w", newline="") as file, style.style():
        table = csv.writer(file)
        table.writerow(["data", "regime", "optimizer", "T", "param", "N", "eta", "loss", "standard_error", "eta_at_edge"])
        columns = min(4, len(chosen))
        rows = -(-len(chosen) // columns)
        figure, axes = style.new_figure(rows, columns, width=style.PAGE, height=(40 * rows + 8) * style.MM)
        panels = draw.panels(axes)
        for setting, ax in zip(chosen, panels, strict=False):
            curves = {style.value_label("model.param", param): sweep(setting, param, options) for param in PARAMS}
            for param, of_param in zip(PARAMS, curves.values(), strict=True):
                for c in of_param:
                    eta = f"{c.best[0]:.4g}" if c.best else ""
                    table.writerow([setting.data, setting.regime, setting.optimizer, setting.steps, param, c.width or "inf", eta,
                                    f"{c.best_loss:.5f}", f"{c.best_error:.5f}", int(c.at_edge)])  # fmt: skip
            file.flush()
            print(f"{setting.name} done", flush=True)
            figures.best_loss(curves, ax, "batch loss", legend=False)
            ax.set_title(setting.title(), fontsize=6.5)
            if ax not in axes[:, 0]:
                ax.set_ylabel("")
            if ax not in axes[-1]:
                ax.set_xlabel("")
        for unused in panels[len(chosen) :]:
            unused.remove()
        draw.shared_legend(figure, panels[: len(chosen)])
        for suffix in ("pdf", "png", "svg"):
            style.save(figure, options.out / f"monotone.{suffix}")
    print(f"{options.out / 'monotone.csv'}\n{options.out / 'monotone.pdf'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
