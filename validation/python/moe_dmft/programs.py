"""Runs the programs from Python. Keyword arguments are configuration keys or flags; results come back loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .results import Results, load

ROOT = Path(__file__).resolve().parents[3]


SWITCHES = ("--quiet", "--force", "--no-page")  # flags without a value


class ProgramError(Exception):
    """A program that failed. `status` is its exit status (1 the run failed, 2 bad usage), the text is its own message."""

    def __init__(self, command: Sequence[str], status: int, message: str) -> None:
        self.command, self.status, self.message = list(command), status, message
        super().__init__(message.strip() or f"{command[0]} ended with status {status} and no message")


def command_of(program: str) -> list[str]:
    """How to start a program: out of $MOE_DMFT_BIN if that is set, else through ./run, which builds it where needed."""
    folder = os.environ.get("MOE_DMFT_BIN")
    if folder:
        return [str(Path(folder) / program)]
    run = ROOT / "run"
    if run.exists():
        return [str(run), program]
    found = shutil.which(program)
    if found:
        return [found]
    raise ProgramError([program], 127, f"{program} was not found. Set MOE_DMFT_BIN to the folder of the programs")


def _text(value: Any) -> str:
    """A value as the command line writes it: true, 0.1, 64,128, K=-1,const=2."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ",".join(f"{k}={_text(v)}" for k, v in value.items())
    if isinstance(value, str):
        return value
    if hasattr(value, "tolist"):  # numpy
        return _text(value.tolist())
    if isinstance(value, Sequence):
        return ",".join(_text(v) for v in value)
    return repr(value) if isinstance(value, float) else str(value)


def arguments_of(keys: Mapping[str, Any]) -> list[str]:
    """Flags out of keyword arguments: lr=0.1 is --lr 0.1, {"sampling.experts": 512} is --set sampling.experts=512."""
    words: list[str] = []
    for key, value in keys.items():
        if value is None:
            continue
        if "." in key:
            words += ["--set", f"{key}={_text(value)}"]
            continue
        flag, text = "--" + key.replace("_", "-"), _text(value)
        if text == "true":
            words.append(flag)  # as of a key that is true or false, so of a switch, which takes no value
        elif text != "false" or flag not in SWITCHES:
            words += [flag, text]
    return words


def _identity(file: str) -> tuple[int, int] | None:
    """Of the file that a name stands for: programs rename a new file into place."""
    if not os.path.exists(file):
        return None
    status = os.stat(file)
    return status.st_ino, status.st_mtime_ns


def _run(
    program: str, config: str | os.PathLike[str] | None, out: str | os.PathLike[str] | None, threads: int,
    extra: Sequence[str], keys: Mapping[str, Any], accept: Sequence[int] = (0,),
) -> Results:  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="moe-dmft-") as folder:
        target = os.fspath(out) if out is not None else str(Path(folder) / f"{program}.h5")
        command = command_of(program) + ([os.fspath(config)] if config is not None else [])
        command += [*extra, *arguments_of(keys), "--out", target, "--threads", str(threads), "--quiet"]
        before = _identity(target)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in accept or _identity(target) == before:
            raise ProgramError(command, done.returncode, done.stderr or done.stdout)
        return load(target)


def solve(
    config: str | os.PathLike[str] | None = None, *, out: str | os.PathLike[str] | None = None, threads: int = 0, **keys: Any
) -> Results:
    """Solves the limit with dmft_solve.

    `config` is a TOML file; keywords override it: flags with underscores (`lr=0.1, expert_width=8`) or, as
    `**{"sampling.experts": 512}`, full names of keys. `out` keeps the file. ProgramError carries the program's message.
    """
    return _run("dmft_solve", config, out, threads, [], keys)


def train(
    config: str | os.PathLike[str] | None = None, *, out: str | os.PathLike[str] | None = None, threads: int = 0, **keys: Any
) -> Results:
    """Trains finite networks with moe_train: `train(regime="II", widths=[64, 128], seeds=4)`. Arguments as for solve()."""
    return _run("moe_train", config, out, threads, [], keys)


def validate(
    config: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    threads: int = 0,
    lr_sweep: str | None = None,
    **keys: Any,
) -> Results:
    """Solves, trains and compares with dmft_validate; `lr_sweep="0.03:3:9"` sweeps the learning rate.

    A negative verdict is a result and no error: it stands in `results.comparison`.
    """
    extra = ["--lr-sweep", lr_sweep] if lr_sweep is not None else []
    return _run("dmft_validate", config, out, threads, extra, keys, accept=(0, 1))
