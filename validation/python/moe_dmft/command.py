"""Command line of dmft_plot."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from . import draw, page, style
from .cases import cases_of
from .gallery import GALLERY, NothingToDraw, draw_figure
from .results import ResultError, Results, load

FORMATS = ("pdf", "png", "svg")

_EPILOG = (
    "figures:\n"
    + "\n".join(f"  {name:<18}{entry.help}" for name, entry in GALLERY.items())
    + """

Files of one configuration (a limit and its networks) share a panel; other configurations get a panel of their own, so that
  dmft_plot limit_mup.h5 networks_mup.h5 limit_mssp.h5 networks_mssp.h5 --figures loss,coordinate_check
shows muP and MSSP side by side. Exit status: 0 done, 1 a file could not be read, drawn or written, 2 bad usage."""
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"dmft_plot: command line: {message}. dmft_plot --help lists the flags\n")


def _words(text: str, known: Sequence[str], flag: str, faults: list[str]) -> list[str]:
    """A comma-separated list of known words; a fault for each that is not."""
    words = [word for word in text.split(",") if word]
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, 1)
            faults.append(f"{flag} {word} is not known." + (f" Did you mean {near[0]}?" if near else f" Known: {', '.join(known)}"))
    if not words:
        faults.append(f"{flag} is empty. Known: {', '.join(known)}")
    return list(dict.fromkeys(words))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dmft_plot",
        description="Figures from the files of dmft_solve, moe_train and dmft_validate.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="*", metavar="FILE.h5", help="result files")
    parser.add_argument(
        "--out", default="figures", metavar="FOLDER", help="folder of the figures, made if missing (default figures)"
    )
    parser.add_argument("--format", default="pdf", metavar="LIST", help="any of pdf,png,svg (default pdf)")
    parser.add_argument("--figures", metavar="LIST", help="names of the list below (default: all that the files have data for)")
    parser.add_argument("--csv", action="store_true", help="write the numbers of every figure beside it")
    parser.add_argument("--page", metavar="FILE.html", help="write one self-contained HTML page instead")
    parser.add_argument("--quiet", action="store_true", help="do not list what was written")
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    return parser


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Through a temporary name, so that a killed run leaves the old file or a complete new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    try:
        write(Path(temporary))
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _figures(results: Sequence[Results], names: Sequence[str] | None, out: Path, formats: Sequence[str], csv: bool) -> list[Path]:
    cases = cases_of(results)
    written: list[Path] = []
    faults: list[str] = []
    for name in names or GALLERY:
        try:
            made = draw_figure(name, cases)
        except NothingToDraw as error:
            if names is not None:
                faults.append(f"figure {name}: {error}")
            continue
        out.mkdir(parents=True, exist_ok=True)
        for stem, figure in made.items():
            for suffix in formats:
                path = out / f"{stem}.{suffix}"
                _write(path, partial(style.save, figure))
                written.append(path)
            if csv:
                path = out / f"{stem}.csv"
                _write(path, partial(draw.write_csv, figure))
                written.append(path)
    if faults:
        raise ResultError("\n".join(faults))
    if not written:
        raise ResultError(f"{', '.join(r.file for r in results)}: nothing to draw")
    return written


def main(arguments: Sequence[str]) -> int:
    """Exit status of dmft_plot with these arguments."""
    try:
        try:
            status = _run(arguments)
        except SystemExit as ended:  # --help, and what argparse refuses
            status = ended.code if isinstance(ended.code, int) else 1
        if sys.stdout is not None:  # as where the program was started without
            sys.stdout.flush()
        return status
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is left when Python ends
        if isinstance(error, BrokenPipeError):  # who reads no further has what was wanted
            return 0
        what = f"standard output could not be written in full: {error.strerror}. Check the space where it goes"
        print(f"dmft_plot: {what}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.version:
        print(f"dmft_plot {os.environ.get('MOE_VERSION', 'of an unknown version')}")
        return 0
    usage, unreadable = [], []  # told together
    if not options.files:
        usage.append("no file given. Usage: dmft_plot FILE.h5... [--out FOLDER] [--format pdf,png,svg]")
    formats = _words(options.format, FORMATS, "--format", usage)
    names = _words(options.figures, list(GALLERY), "--figures", usage) if options.figures is not None else None
    results = []
    for file in dict.fromkeys(options.files):
        try:
            results.append(load(file))
        except ResultError as error:
            unreadable.extend(str(error).splitlines())
    if options.page and any(Path(options.page).resolve() == Path(file).resolve() for file in options.files):
        usage.append(f"--page {options.page} is one of the files to draw, and the page would replace it. Give it another name")
    for line in [f"command line: {fault}" for fault in usage] + unreadable:
        print(f"dmft_plot: {line}", file=sys.stderr)
    if usage or unreadable:
        return 2 if usage else 1
    try:
        if options.page:
            target = Path(options.page)
            text = page.html(results)
            _write(target, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="replace"))
            written = [target]
        else:
            written = _figures(results, names, Path(options.out), formats, options.csv)
    except ResultError as error:
        for line in str(error).splitlines():
            print(f"dmft_plot: {line}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"dmft_plot: io: {error}. Check the folder, its permissions and free space", file=sys.stderr)
        return 1
    if not options.quiet:
        for path in written:
            print(path)
    return 0
