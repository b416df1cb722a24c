"""Result files made by hand, with known numbers, for the tests of the package."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

CONFIG = """
[model]
regime = "II"
param = "{param}"
[optimizer]
name = "sgd"
lr = {lr}
[data]
source = "digits"
[training]
steps = 4
batch = 0
[sampling]
neurons = 64
"""
STEPS = np.arange(5)
WIDTHS = (16, 32, 64)
SEEDS = 3
SAMPLES = 6


def dataset(file: h5py.File, path: str, values: object, *dims: str) -> None:
    data = file.create_dataset(path, data=np.asarray(values))
    data.attrs["description"] = "made by hand"
    for k, name in enumerate(dims):
        data.dims[k].label = name


@contextmanager
def written(path: Path, mode: str = "w") -> Iterator[h5py.File]:
    """An HDF5 file that ends with its checksum, as those of our programs do."""
    with h5py.File(path, mode) as file:
        yield file
    content = path.read_bytes()
    path.write_bytes(content + f"moe-dmft crc32 {zlib.crc32(content):08x}\n".encode())


def root(file: h5py.File, kind: str, param: str, lr: float = 0.5) -> None:
    file.attrs["format"], file.attrs["format_version"], file.attrs["kind"] = "moe-dmft", 1, kind
    file.attrs["config"] = CONFIG.format(param=param, lr=lr)
    file.attrs["program"], file.attrs["version"], file.attrs["created"] = "by hand", "0", "2026-01-01T00:00:00Z"
    dataset(file, "data/x", np.zeros((SAMPLES, 2)), "sample", "input")
    dataset(file, "data/y", np.eye(3)[[2, 0, 1, 0, 2, 1]], "sample", "output")


def kernel_values() -> np.ndarray:
    """(SAMPLES, SAMPLES), different for every pair."""
    return np.arange(SAMPLES * SAMPLES, dtype=float).reshape(SAMPLES, SAMPLES)


def limit_file(path: Path, param: str = "mssp", lr: float = 0.5, final: float = 0.8) -> Path:
    """Loss falls from 2 to `final`; rms_y_init is zero, rms_h 1.5."""
    with written(path) as file:
        root(file, "limit", param, lr)
        dataset(file, "limit/loss", np.linspace(2, final, 5), "step")
        dataset(file, "limit/loss_sem", np.full(5, 0.01), "step")
        dataset(file, "limit/test_loss", [2.0, 1.0], "step")
        dataset(file, "limit/test_steps", [0, 4], "step")
        dataset(file, "limit/observables/rms_h", np.full(3, 1.5), "step")
        dataset(file, "limit/observables/rms_h_sem", np.full(3, 0.02), "step")
        dataset(file, "limit/observables/rms_y_init", np.zeros(3), "step")
        dataset(file, "limit/observables/rms_y_init_sem", np.zeros(3), "step")
        dataset(file, "limit/observables/observe_steps", [0, 2, 4], "step")
        dataset(file, "limit/kernels/Phi", np.stack([kernel_values(), 2 * kernel_values()]), "step", "sample", "sample_2")
        dataset(file, "limit/kernels/steps", [0, 4], "step")
        file["limit"].attrs["replicas"], file["limit"].attrs["neurons"] = 4, 64
        file["limit"].attrs["status"], file["limit"].attrs["warnings"] = "complete", "a <warning> of the solve\n"
    return path


def network_file(path: Path, param: str = "mssp", lr: float = 0.5, widths: tuple[int, ...] = WIDTHS, ended: int = 0) -> Path:
    """Loss of seed s is that of the limit + s/N; rms_y_init = N^-0.5 (1 +- 1 %), rms_h = 1.5. Those of width `ended` end at step 2."""
    with written(path) as file:
        root(file, "network", param, lr)
        for width in widths:
            group = f"network/N{width}"
            seeds = np.arange(SEEDS)[:, None]
            dataset(file, f"{group}/loss", np.linspace(2, 0.8, 5)[None] + seeds / width, "seed", "step")
            spread = 1 + 0.01 * (seeds - 1) + np.array([0, 0, np.nan if width == ended else 0])
            dataset(file, f"{group}/observables/rms_h", 1.5 * spread, "seed", "step")
            dataset(file, f"{group}/observables/rms_y_init", width**-0.5 * spread, "seed", "step")
            dataset(file, f"{group}/observables/observe_steps", [0, 2, 4], "step")
            kernels = np.stack([kernel_values(), 2 * kernel_values()])
            dataset(file, f"{group}/kernels/Phi", np.stack([kernels + s - 1 for s in range(SEEDS)]), "seed", "step",
                    "sample", "sample")  # fmt: skip
            dataset(file, f"{group}/kernels/steps", [0, 4], "step")
            for name, value in (("N", width), ("M", width // 2), ("N_e", 8), ("K", width // 2)):
                file[group].attrs[name] = value
    return path


def _compared(file: h5py.File, place: str, verdict: str, level: float) -> None:
    """/comparison of two observables; rms_y_init of networks is `level` N^-1/2, of the limit zero."""
    widths = np.array(WIDTHS)
    dataset(file, f"{place}/widths", widths, "width")
    dataset(file, f"{place}/seeds", np.full(3, SEEDS), "width")
    file[place].attrs["verdict"], file[place].attrs["reason"], file[place].attrs["notes"] = verdict, "because of <this>", ""
    for name, mean, limit in (("loss", np.full(3, 1.2), 1.2), ("rms_y_init", level * widths**-0.5, 0.0)):
        group = f"{place}/observables/{name}"
        dataset(file, f"{group}/steps", [0, 1, 4], "step")
        dataset(file, f"{group}/mean", np.tile(mean[:, None], 3), "width", "step")
        dataset(file, f"{group}/mean_error", np.tile(0.01 * mean[:, None], 3), "width", "step")
        dataset(file, f"{group}/limit", np.full(3, limit), "step")
        dataset(file, f"{group}/limit_error", np.full(3, 0.01 * limit), "step")
        for key, value in (("verdict", "agrees"), ("reason", "no difference"), ("worst_z", 1.25), ("worst_step", 4)):
            file[group].attrs[key] = value
    late = f"{place}/exponents/rms_y_init/late"
    for name, value in (("fitted", -0.48), ("error", 0.012), ("predicted", -0.5)):
        dataset(file, f"{late}/{name}", value)
    for key, text in (("step", 4), ("divided_by", ""), ("verdict", "agrees"), ("reason", "B(0) averages over experts")):
        file[late].attrs[key] = text


def validation_file(path: Path) -> Path:
    """Limit and networks of limit_file and network_file, their comparison, a coordinate check and a learning-rate sweep."""
    limit_file(path)
    with h5py.File(network_file(path.with_suffix(".networks.h5"))) as networks, written(path, "a") as file:
        networks.copy("network", file)
        file.attrs["kind"] = "validation"
        _compared(file, "comparison", "positive", 1.0)
        _compared(file, "coordinate_check/mup", "negative", 1.0)
        _compared(file, "coordinate_check/mssp", "positive", 2.0)
        eta = np.array([0.25, 0.5, 1.0, 2.0])
        dataset(file, "lr_sweep/eta", eta, "eta")
        dataset(file, "lr_sweep/widths", [16, 32], "width")
        losses = 0.5 + np.log(eta / np.array([[0.4], [0.6]])) ** 2
        losses[0, 3] = np.inf
        dataset(file, "lr_sweep/loss", losses, "width", "eta")
        dataset(file, "lr_sweep/loss_error", np.full((2, 4), 0.01), "width", "eta")
        dataset(file, "lr_sweep/limit_loss", 0.5 + np.log(eta / 0.8) ** 2, "eta")
        dataset(file, "lr_sweep/limit_loss_error", np.full(4, 0.01), "eta")
        for name, values in (
            ("optimum", [0.4, 0.6]), ("optimum_low", [0.35, 0.5]), ("optimum_high", [0.45, 0.7]), ("optimum_loss", [0.5, 0.5]),
            ("optimum_loss_error", [0.01, 0.01]), ("optimum_at_edge", [0, 1]), ("drift", [-1.0, -0.415]),
            ("drift_low", [-1.2, -0.6]), ("drift_high", [-0.8, -0.2]), ("lost_largest", [0.16, 0]), ("lost_largest_low", [0.1, 0]),
            ("lost_largest_high", [0.2, 0]), ("lost_limit", [0.48, 0.08]), ("lost_limit_low", [0.4, 0.05]),
            ("lost_limit_high", [0.5, 0.1]),
        ):  # fmt: skip
            dataset(file, f"lr_sweep/{name}", values, "width")
        for name, value in (("optimum", 0.8), ("optimum_low", 0.7), ("optimum_high", 0.9), ("optimum_loss", 0.5)):
            dataset(file, f"lr_sweep/limit_{name}", value)
        file["lr_sweep"].attrs["criterion"], file["lr_sweep"].attrs["criterion_text"] = "final", "loss at the last step"
    path.with_suffix(".networks.h5").unlink()
    return path
