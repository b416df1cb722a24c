"""Result files (README, "Result files") as arrays with named dimensions.

An own container of a few lines and not xarray: the files are small, their dimensions have names but mostly no coordinates, and
xarray would bring pandas along for that.
"""

from __future__ import annotations

import os
import tomllib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

FORMAT = "moe-dmft"
FORMAT_VERSION = 1
CHECKSUM_LINE = "moe-dmft crc32 {:08x}\n"  #: last line of a result file
KINDS = ("limit", "network", "validation")

Floats = NDArray[np.float64]


class ResultError(Exception):
    """A file that is not a readable result, or lacks what was asked of it. The message names file, dataset and remedy."""


@dataclass(frozen=True)
class Array:
    """Values with one name per dimension, as stored in the file. numpy functions take it as it is."""

    values: NDArray[Any]
    dims: tuple[str, ...] = ()
    description: str = ""
    path: str = ""  #: where it stands in the file

    def __array__(self, dtype: Any = None) -> NDArray[Any]:
        return self.values if dtype is None else self.values.astype(dtype)

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def axis(self, dim: str) -> int:
        """Number of the dimension named `dim`."""
        if dim not in self.dims:
            raise KeyError(f"{self.path or 'array'} has no dimension '{dim}'; it has {', '.join(self.dims) or 'none'}")
        return self.dims.index(dim)

    def select(self, **where: int | slice) -> Array:
        """The part at the given indices: `f.select(step=-1, output=0)` drops both dimensions; a slice keeps its own."""
        index: list[int | slice] = [slice(None)] * len(self.dims)
        for dim, at in where.items():
            index[self.axis(dim)] = at
        dims = tuple(d for d, at in zip(self.dims, index, strict=True) if isinstance(at, slice))
        return Array(self.values[tuple(index)], dims, self.description, self.path)

    def mean(self, dim: str) -> Array:
        """Mean over a dimension; NaN (runs that ended early) makes the mean NaN."""
        axis = self.axis(dim)
        return Array(self.values.mean(axis), self.dims[:axis] + self.dims[axis + 1 :], self.description, self.path)


@dataclass(frozen=True)
class Curve:
    """Means with standard errors over replicas or seeds, at x = the steps of training; of a gradient flow, its times."""

    x: Floats
    mean: Floats
    error: Floats  #: standard error of the mean; NaN where there is one run only
    runs: int  #: replicas or seeds

    def at(self, step: float) -> tuple[float, float]:
        """Mean and error at the recorded step nearest to `step`."""
        k = int(np.abs(self.x - step).argmin())
        return float(self.mean[k]), float(self.error[k])


class Group(Mapping[str, "Array | Group"]):
    """A folder of a file: `group["observables/rms_h"]`, attributes in `.attributes`."""

    def __init__(self, file: str, path: str, members: dict[str, Array | Group], attributes: dict[str, Any]) -> None:
        self.file, self.path, self.attributes = file, path, attributes
        self._members = members

    def __getitem__(self, name: str) -> Array | Group:
        here: Array | Group = self
        for part in name.strip("/").split("/"):
            if not isinstance(here, Group) or part not in here._members:
                raise KeyError(f"{self.file} has no {self.path.rstrip('/')}/{name}")
            here = here._members[part]
        return here

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"<{self.file}:{self.path} with {', '.join(self) or 'nothing'}>"

    def array(self, name: str) -> Array:
        """The dataset `name`, which may be a path. ResultError if it is missing."""
        found = self.get(name)
        if not isinstance(found, Array):
            raise ResultError(f"{self.file}: there is no dataset {self.path.rstrip('/')}/{name}")
        return found

    def group(self, name: str) -> Group | None:
        """The folder `name`, or None."""
        found = self.get(name)
        return found if isinstance(found, Group) else None

    def arrays(self) -> dict[str, Array]:
        """Datasets directly below, by name."""
        return {name: m for name, m in self._members.items() if isinstance(m, Array)}


_STEPS_OF = {"test_loss": "test_steps", "test_accuracy": "test_steps"}


def stored_name(name: str) -> tuple[str, int | None]:
    """Dataset and block, from 1, of a curve: "observables/rms_y.2" is block 2 of observables/rms_y."""
    base, _, block = name.partition(".")
    return (base, int(block)) if block.isdigit() else (name, None)


def _of_blocks(array: Array, values: Floats, block: int | None) -> Floats:
    """Values without the axis of blocks: of one block, or their root mean square over all."""
    if array.dims[-1:] != ("block",):
        return values
    if block is not None:
        return values[..., block - 1]
    over_blocks: Floats = np.sqrt((values**2).mean(-1))
    return over_blocks


def _curve(group: Group, name: str) -> Curve:
    """/limit/NAME with NAME_sem, or /network/N64/NAME with a row a seed, as means and errors at their steps.

    Of what every block of a stack has: the root mean square over blocks, or with NAME.2 that of block 2.
    """
    name, block = stored_name(name)
    array = group.array(name)
    if block is not None and (array.dims[-1:] != ("block",) or not 1 <= block <= array.shape[-1]):
        raise ResultError(f"{group.file}: {group.path}/{name} has no block {block}")
    values = _of_blocks(array, array.values.astype(float), block)
    folder, _, leaf = name.rpartition("/")
    beside = f"{folder}/" if folder else ""
    steps_name = beside + ("observe_steps" if folder == "observables" else _STEPS_OF.get(leaf, "eval_steps"))
    stored = group.get(steps_name) if leaf != "batch_loss" else None
    length = values.shape[-1]
    steps = stored.values if isinstance(stored, Array) else np.arange(length)
    if len(steps) < length:
        raise ResultError(f"{group.file}: {group.path}/{name} has {length} steps, {steps_name} only {len(steps)}")
    x = np.asarray(steps[:length], dtype=float)
    if isinstance(times := group.get("times"), Array):  # steps of a flow are intervals; times count steps of gradient descent
        x = times.values[steps[:length].astype(int)].astype(float)
    if "seed" not in array.dims and values.ndim == 1:
        sem = group.get(name + "_sem")
        error = _of_blocks(array, sem.values.astype(float), block) if isinstance(sem, Array) else np.full(length, np.nan)
        return Curve(x, values, error, int(group.attributes.get("replicas", 1)))
    runs = values.shape[0]
    mean = values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(runs) if runs > 1 else np.full(length, np.nan)
    return Curve(x, mean, error, runs)


class Results:
    """One result file. What it lacks is None or empty: a limit file has no networks, and so on."""

    def __init__(self, file: str, root: Group) -> None:
        self.file, self.root = file, root
        self.kind = str(root.attributes["kind"])
        self.config_text = str(root.attributes.get("config", ""))
        try:
            self.config: dict[str, Any] = tomllib.loads(self.config_text)
        except tomllib.TOMLDecodeError as error:
            raise ResultError(f"{file}: attribute config is not TOML: {error}. Was the file changed?") from None
        self.limit = root.group("limit")
        self.data = root.group("data")
        self.comparison = root.group("comparison")
        self.lr_sweep = root.group("lr_sweep")
        networks = root.group("network") or Group(file, "/network", {}, {})
        by_width = {int(name[1:]): g for name, g in networks.items() if isinstance(g, Group) and name[1:].isdigit()}
        #: networks by width N, smallest first
        self.networks: dict[int, Group] = dict(sorted(by_width.items()))

    def __repr__(self) -> str:
        return f"<Results {self.file}: {self.kind}, {'limit, ' if self.limit else ''}N = {list(self.networks)}>"

    def __getitem__(self, path: str) -> Array | Group:
        return self.root[path]

    def key(self, path: str, default: Any = None) -> Any:
        """A configuration key by its full name, `results.key("optimizer.lr")`."""
        here: Any = self.config
        for part in path.split("."):
            if not isinstance(here, dict) or part not in here:
                return default
            here = here[part]
        return here

    def limit_curve(self, name: str) -> Curve | None:
        """`loss`, `batch_loss`, `observables/rms_h`, ... of the limit; None if it is not in the file."""
        return _curve(self.limit, name) if self.limit is not None and stored_name(name)[0] in self.limit else None

    def network_curve(self, width: int, name: str) -> Curve | None:
        """The same of the networks of one width: mean over seeds. Runs that failed make NaN from there on."""
        group = self.networks.get(width)
        return _curve(group, name) if group is not None and stored_name(name)[0] in group else None


def _attribute(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic) else value


def _read_group(file: str, node: h5py.Group) -> Group:
    members: dict[str, Array | Group] = {}
    for name, child in node.items():
        if isinstance(child, h5py.Group):
            members[name] = _read_group(file, child)
            continue
        try:
            values = child[()]
        except OSError as error:
            raise ResultError(f"{file}: dataset {child.name} cannot be read ({error}). Run the program again.") from None
        description = str(_attribute(child.attrs.get("description", "")))
        dims = tuple(d.label for d in child.dims)
        members[name] = Array(np.asarray(values), dims, description, str(child.name))
    return Group(file, str(node.name), members, {k: _attribute(v) for k, v in node.attrs.items() if isinstance(k, str)})


def _is_whole(path: str) -> bool:
    """The file ends with the checksum of all bytes before, as our programs write it (support/hdf5.hpp)."""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        left = file.tell() - len(CHECKSUM_LINE.format(0))
        if left < 0:
            return False
        file.seek(0)
        checksum = 0
        while left > 0:
            piece = file.read(min(left, 1 << 20))
            if not piece:
                return False
            checksum = zlib.crc32(piece, checksum)
            left -= len(piece)
        return file.read() == CHECKSUM_LINE.format(checksum).encode()


def load(file: str | os.PathLike[str]) -> Results:
    """Reads a result file of dmft_solve, moe_train or dmft_validate into memory.

    ResultError: no such file, not HDF5, cut short or altered, not a result file, or of another format version.
    """
    path = os.fspath(file)
    if not os.path.exists(path):
        raise ResultError(f"{path}: there is no such file")
    if os.path.isdir(path):
        raise ResultError(f"{path} is a folder. Name the result file in it")
    programs = "A result is what dmft_solve, moe_train or dmft_validate write"
    try:
        opened = h5py.File(path, "r")
    except OSError as error:
        reason = str(error)
        if "truncated" in reason:
            raise ResultError(f"{path} is cut short ({reason}). Copy it again, or run the program again") from None
        if "signature" in reason:
            raise ResultError(f"{path} is not an HDF5 file. {programs}") from None
        raise ResultError(f"{path} cannot be opened: {reason}") from None
    with opened:
        attributes = {name: _attribute(value) for name, value in opened.attrs.items()}
        if attributes.get("format") != FORMAT:
            raise ResultError(f"{path} is HDF5, but no result of this toolkit (no attribute format = {FORMAT}). {programs}")
        version = attributes.get("format_version")
        if version != FORMAT_VERSION:
            raise ResultError(
                f"{path} has format_version {version}, this package reads {FORMAT_VERSION}. "
                f"It was written by {attributes.get('program', '?')} {attributes.get('version', '?')}: use that version's tools"
            )
        if attributes.get("kind") not in KINDS:
            raise ResultError(f"{path}: kind is {attributes.get('kind')!r}, known are {', '.join(KINDS)}")
        if not _is_whole(path):
            raise ResultError(f"{path} was cut short or altered after it was written. Copy it again, or run the program again")
        try:
            return Results(path, _read_group(path, opened))
        except (OSError, RuntimeError) as error:
            raise ResultError(f"{path} is damaged: {error}. Run the program again") from None
