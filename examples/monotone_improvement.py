#!/usr/bin/env python3
"""Loss against width at the best learning rate: muP learns later the larger the network, MSSP does not.

    validation/python/python examples/monotone_improvement.py --out monotone           # about 40 core-minutes
    validation/python/python examples/monotone_improvement.py --out monotone --quick   # seconds: what the tests run

Digits and Fashion-MNIST (Debian's package dataset-fashion-mnist), regimes II and III, SGD and Adam. One pass of fresh batches of
32; what is compared is the mean batch loss over the last steps before T, at the eta that is best for that width and T. Results of
moe_train are kept in FOLDER/runs, so that a run that was stopped goes on where it was. Outcome: docs/results.md.
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

import numpy as np

import moe_dmft
from moe_dmft import draw, style

PARAMS = ("mup", "mssp")
WIDTHS = {"II": (64, 128, 256, 512), "III": (32, 64, 128, 256)}
TRAIN = {"digits": 1792, "fashion-mnist": 1920}  # 56 and 60 batches
ETAS = {"sgd": tuple(2.0 ** (k / 2) for k in range(7)), "adam": tuple(0.25 * 2.0 ** (k / 2) for k in range(7))}
HORIZONS = (20, 56)  # T
WINDOW = 6  # steps before T over which batch losses are averaged


@dataclass(frozen=True)
class Setting:
    data: str
    regime: str
    optimizer: str

    def title(self) -> str:
        return ", ".join(style.value_label(k, v) for k, v in (("data.source", self.data), ("optimizer.name", self.optimizer)))


@dataclass(frozen=True)
class Point:
    """Best eta of one width at one horizon, and the loss there."""

    width: int
    eta: float
    loss: float
    error: float
    at_edge: bool


def losses(setting: Setting, param: str, eta: float, options: argparse.Namespace) -> dict[int, np.ndarray]:
    """Batch losses (seed, step) by width; NaN where a run diverged."""
    name = f"{setting.data}_{setting.regime}_{setting.optimizer}_{param}_{eta:g}.h5"
    file = options.out / "runs" / name
    if not file.exists():
        keys: dict[str, Any] = {
            "regime": setting.regime, "param": param, "optimizer": setting.optimizer, "lr": eta, "eps": 0.02, "source": setting.data,
            "train": 32 * options.steps or TRAIN[setting.data], "test": 0, "batch": 32, "steps": options.steps or TRAIN[setting.data] // 32,
            "eval_every": 1000, "observables": "none", "widths": options.widths or WIDTHS[setting.regime], "seeds": options.seeds,
        }  # fmt: skip
        if options.data_path:
            keys["data.path"] = options.data_path
        try:
            moe_dmft.train(out=file, threads=options.threads, **keys)
        except moe_dmft.ProgramError as error:
            if error.status != 1 or not file.exists():  # 1 and a file: some seed diverged, the rest is there
                raise
    networks = moe_dmft.load(file).networks
    return {width: np.asarray(group.array("batch_loss")) for width, group in networks.items()}


def best(setting: Setting, param: str, horizon: int, options: argparse.Namespace) -> list[Point]:
    """The eta of the lowest mean loss in the window before the horizon, for each width."""
    etas = options.etas or ETAS[setting.optimizer]
    runs = [losses(setting, param, eta, options) for eta in etas]
    points = []
    for width in runs[0]:
        windows = [run[width][:, max(0, horizon - WINDOW) : horizon].mean(1) for run in runs]  # (seed)
        means = np.array([w.mean() if np.isfinite(w).all() else np.inf for w in windows])
        k = int(means.argmin())
        error = windows[k].std(ddof=1) / np.sqrt(len(windows[k])) if len(windows[k]) > 1 else np.nan
        points.append(Point(width, etas[k], float(means[k]), float(error), k in (0, len(etas) - 1)))
    return points


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("monotone"), help="folder of the results")
    parser.add_argument("--only", default="", help="settings whose names contain this, e.g. digits_II_sgd")
    parser.add_argument("--threads", type=int, default=0, help="0 = all cores")
    parser.add_argument("--data-path", default="", help="folder of Fashion-MNIST's files, where they are not Debian's")
    parser.add_argument("--quick", action="store_true", help="two small widths, two learning rates, four steps")
    options = parser.parse_args()
    options.seeds, options.steps, options.widths, options.etas = 4, 0, (), ()
    horizons: tuple[int, ...] = HORIZONS
    if options.quick:
        options.seeds, options.steps, options.widths, options.etas, horizons = 2, 4, (8, 16), (0.1, 0.2), (4,)
    (options.out / "runs").mkdir(parents=True, exist_ok=True)

    settings = [Setting(*s) for s in itertools.product(TRAIN, WIDTHS, ETAS)]
    settings = [s for s in settings if options.only in f"{s.data}_{s.regime}_{s.optimizer}"]
    regimes = sorted({s.regime for s in settings})
    columns = [(d, o) for d, o in itertools.product(TRAIN, ETAS) if any((s.data, s.optimizer) == (d, o) for s in settings)]
    with (options.out / "monotone.csv").open("w", newline="") as file, style.style():
        table = csv.writer(file)
        table.writerow(["data", "regime", "optimizer", "T", "param", "N", "eta", "loss", "standard_error", "eta_at_edge"])
        figure, axes = style.new_figure(len(horizons) * len(regimes), len(columns), width=style.PAGE,
                                        height=(40 * len(horizons) * len(regimes) + 8) * style.MM)  # fmt: skip
        for setting in settings:
            for h, horizon in enumerate(horizons):
                row = regimes.index(setting.regime) * len(horizons) + h
                ax = axes[row, columns.index((setting.data, setting.optimizer))]
                for param, color, marker in zip(PARAMS, (style.BLUE, style.RED), "os", strict=True):
                    points = best(setting, param, horizon, options)
                    for p in points:
                        table.writerow([setting.data, setting.regime, setting.optimizer, horizon, param, p.width, p.eta,
                                        f"{p.loss:.5f}", f"{p.error:.5f}", int(p.at_edge)])  # fmt: skip
                    file.flush()
                    draw.bars(ax, [p.width for p in points], [p.loss for p in points], [p.error for p in points], color=color,
                              marker=marker, linestyle="-", label=style.value_label("model.param", param), y="loss")  # fmt: skip
                ax.set_xscale("log", base=2)
                ax.set_xticks([p.width for p in points], [str(p.width) for p in points])
                ax.set_title(f"{setting.title()}, {setting.regime}, T = {horizon}")
                if row == axes.shape[0] - 1:
                    ax.set_xlabel("width N")
                if setting.data == columns[0][0] and setting.optimizer == columns[0][1]:
                    ax.set_ylabel("batch loss")
        draw.shared_legend(figure, draw.panels(axes))
        for suffix in ("pdf", "png"):
            style.save(figure, options.out / f"monotone.{suffix}")
    print(f"{options.out / 'monotone.csv'}\n{options.out / 'monotone.pdf'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
