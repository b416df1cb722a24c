"""Which files belong together: the limit and the networks of one configuration are one case, drawn in one panel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import style
from .results import Array, Curve, Group, ResultError, Results, stored_name

# What a run is, as opposed to how it is sampled, at which sizes it is trained and what of it is stored.
_IDENTITY = ("model", "optimizer", "data", "training")
_IGNORED = ("data.path", "data.test", "training.eval_every", "training.test_every")


def flat_config(results: Results) -> dict[str, Any]:
    """Configuration keys that say what was computed, by full name."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, table: dict[str, Any]) -> None:
        for key, value in table.items():
            path = f"{prefix}{key}"
            if isinstance(value, dict):
                walk(path + ".", value)
            elif path not in _IGNORED:
                flat[path] = value

    walk("", {section: results.config.get(section, {}) for section in _IDENTITY})
    if results.lr_sweep is not None:  # it has learning rates of its own
        flat.pop("optimizer.lr", None)
    return flat


@dataclass
class Case:
    """One configuration: at most one limit, networks by width, files of dmft_validate."""

    limit: Results | None = None
    networks: dict[int, Results] = field(default_factory=dict)  #: by width, smallest first
    validations: list[Results] = field(default_factory=list)  #: files of dmft_validate
    config: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    label: str = ""

    def curve(self, name: str) -> Curve | None:
        """Of the limit; None where there is none."""
        return self.limit.limit_curve(name) if self.limit else None

    def network_curves(self, name: str) -> dict[int, Curve]:
        """Of the networks, by width, as far as recorded."""
        found = {n: r.network_curve(n, name) for n, r in self.networks.items()}
        return {n: curve for n, curve in found.items() if curve is not None}

    def experts(self, width: int | None) -> int:
        """M of the networks of a width, or the experts that stand for all in the limit; 0 where the file does not say."""
        if width is None:
            group, attribute = (self.limit.limit if self.limit else None), "experts"
        else:
            group, attribute = (self.networks[width].networks[width] if width in self.networks else None), "M"
        return int(group.attributes.get(attribute, 0)) if group is not None else 0

    def names(self, folder: str = "") -> list[str]:
        """Names of the curves below a folder ("" or "observables"), in the limit or in networks, without errors and steps."""
        names: dict[str, None] = {}
        for results, path in self._places():
            group = results.root.group(f"{path}/{folder}" if folder else path)
            for name, array in group.arrays().items() if group else ():
                at_steps = array.dims[-1:] == ("step",) or array.dims[-2:] == ("step", "block")
                if at_steps and not name.endswith(("_sem", "_steps")) and array.values.dtype.kind == "f":
                    names[name] = None
        return list(names)

    def has(self, path: str) -> bool:
        """Is there /limit/PATH or /network/N.../PATH, of a stack PATH.2 for its block 2?"""
        path, block = stored_name(path)
        found = (results.root.get(f"{place}/{path}") for results, place in self._places())
        return any(
            block is None or (isinstance(a, Array) and a.dims[-1:] == ("block",) and block <= a.shape[-1]) for a in found if a is not None
        )

    def compared(self, folder: str) -> dict[str, ComparedCase]:
        """What dmft_validate compared, as cases whose curves are those of the comparison: folder "comparison" (one, named ""), or
        "coordinate_check" (one a parameterization)."""
        found: dict[str, ComparedCase] = {}
        for results in self.validations:
            group = results.root.group(folder)
            if group is None:
                continue
            parts = {"": group} if "observables" in group else {n: g for n, g in group.items() if isinstance(g, Group)}
            for name, part in parts.items():
                config = {**self.config, "model.param": name} if name else self.config
                label = style.value_label("model.param", name) if name else self.label
                found[name] = ComparedCase(config=config, files=self.files, label=label, group=part)
        return found

    def _places(self) -> list[tuple[Results, str]]:
        places = [(self.limit, "limit")] if self.limit else []
        return places + [(r, f"network/N{n}") for n, r in self.networks.items()]


@dataclass
class ComparedCase(Case):
    """A case whose curves stand in a group laid out as /comparison: few steps, means over seeds beside the limit."""

    group: Group | None = None

    def _observable(self, name: str) -> Group | None:
        return self.group.group(f"observables/{name.removeprefix('observables/')}") if self.group else None

    def curve(self, name: str) -> Curve | None:
        """Of the limit as it was solved."""
        found = self._observable(name)
        if found is None or "limit" not in found:
            return None
        steps, mean, error = (found.array(n).values.astype(float) for n in ("steps", "limit", "limit_error"))
        return Curve(steps, mean, error, 0)

    def network_curves(self, name: str) -> dict[int, Curve]:
        """Means over seeds, by width."""
        found = self._observable(name)
        if found is None or self.group is None or "mean" not in found:
            return {}
        steps, mean, error = (found.array(n).values.astype(float) for n in ("steps", "mean", "mean_error"))
        widths, seeds = (self.group.array(n).values for n in ("widths", "seeds"))
        return {int(n): Curve(steps, mean[k], error[k], int(seeds[k])) for k, n in enumerate(widths)}

    def names(self, folder: str = "") -> list[str]:
        """Losses and accuracies, or with "observables" the others."""
        group = self.group.group("observables") if self.group else None
        return [n for n in group or () if n.endswith(("loss", "accuracy")) != bool(folder)]

    def has(self, path: str) -> bool:
        """Was it compared?"""
        return self._observable(path) is not None


def _add(case: Case, results: Results) -> None:
    case.files.append(results.file)
    if results.limit is not None:
        if case.limit is not None:
            raise ResultError(
                f"{case.limit.file} and {results.file} both hold the limit of the same configuration. Give one of them"
            )
        case.limit = results
    for width in results.networks:
        if width in case.networks:
            raise ResultError(
                f"{case.networks[width].file} and {results.file} both hold networks of N = {width} of the same "
                "configuration. Give one of them"
            )
        case.networks[width] = results
    case.networks = dict(sorted(case.networks.items()))
    if results.kind == "validation":
        case.validations.append(results)


def _differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]


def describe(config: dict[str, Any]) -> str:
    """ "MSSP, regime II, SGD, η = 0.5, digits" """
    keys = ("model.param", "model.regime", "optimizer.name", "optimizer.lr", "data.source")
    return style.join([style.value_label(key, config[key]) for key in keys if key in config])


def labels_of(configs: Sequence[dict[str, Any]]) -> list[str]:
    """In what each configuration differs from the others (three keys at most); of a single one, what it is."""
    if len(configs) == 1:
        return [describe(configs[0])]
    differing = _differing(configs) if configs else []
    return [style.join([style.value_label(k, c[k]) for k in differing if k in c][:3]) for c in configs]


def cases_of(results: Iterable[Results]) -> list[Case]:
    """Groups files by configuration, in the order given. Labels say in what the cases differ."""
    cases: list[Case] = []
    for one in results:
        config = flat_config(one)
        case = next((c for c in cases if c.config == config), None)
        if case is None:
            case = Case(config=config)
            cases.append(case)
        _add(case, one)
    for case, label in zip(cases, labels_of([case.config for case in cases]), strict=True):
        case.label = label
    return cases


def case_of(results: Results | Iterable[Results] | Case) -> Case:
    """One case out of a file, or the files, of one configuration."""
    if isinstance(results, Case):
        return results
    listed = [results] if isinstance(results, Results) else list(results)
    cases = cases_of(listed)
    if len(cases) != 1:
        differing = _differing([case.config for case in cases])
        raise ResultError(
            f"one panel shows one configuration; these files differ in {', '.join(differing[:5]) or 'nothing: give one'}. "
            "Draw a panel for each (cases_of)"
        )
    return cases[0]
