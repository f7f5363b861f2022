"""Compare methods under a protocol: the same folds for all, tuned alike on other folds, each under two schedules.

    python compare.py --tune      tunes every method on the folds 0, 1 and 2
    python compare.py             compares them, as tuned, on the folds 3 to 19
    python compare.py --report    rebuilds the published tables and figures, and trains nothing

    python compare.py --folds 3 --methods L2 "dropout + L2"     a quick look, on three folds

No run is made twice: the same command goes on where it was cut off.
"""

import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from scipy import stats

import data
import planned
from data import COMPARISON_FOLDS, TUNING_FOLDS
from planned import BASE, ONE_LOOK, PlannedOptions, plan, run_plans
from support import cluster, report, shell
from support.run import RunError, command
from support.space import SPACE
from support.statistics import PLAIN, WITHOUT, ReportError, at_border
from train import Config

# --- the methods -----------------------------------------------------------------------------------------------------

SCHEDULES = ("constant", "one-cycle")  # of the learning rate; every method is tuned and compared under each
TUNED = None  # stands for a strength that is tuned, like the learning rate of every method
SHAPES = dict.fromkeys(("rotate", "zoom", "shift", "shear"), TUNED)  # which rise and fall together
RECIPE = "the class's recipe"  # nothing is tuned

# What a method sets; all else is at its default.
METHODS = {
    RECIPE: {},
    PLAIN: {},
    "L1": {"l1": TUNED},
    "L2": {"l2": TUNED},
    "weight decay": {"weight_decay": TUNED},
    "dropout": {"dropout": TUNED},
    "batch norm": {"norm": "batch"},
    "layer norm": {"norm": "layer"},
    "noise": {"noise": TUNED},
    "geometric": SHAPES,
    "elastic": {"elastic": TUNED},
    "dropout + L2": {"dropout": TUNED, "l2": TUNED},
    "batch norm + L2": {"norm": "batch", "l2": TUNED},
    "layer norm + L2": {"norm": "layer", "l2": TUNED},
    "batch norm + dropout": {"norm": "batch", "dropout": TUNED},
    "batch norm + geometric": {"norm": "batch", **SHAPES},
    "everything": {"norm": "batch", "l2": TUNED, "noise": TUNED, **SHAPES, "elastic": TUNED},
}
PARTS = {
    "dropout + L2": ("dropout", "L2"),
    "batch norm + L2": ("batch norm", "L2"),
    "layer norm + L2": ("layer norm", "L2"),
    "batch norm + dropout": ("batch norm", "dropout"),
    "batch norm + geometric": ("batch norm", "geometric"),
    "everything": ("batch norm", "L2", "noise", "geometric", "elastic", "batch norm + L2", "batch norm + geometric"),
}
# From where to where a method is tuned, and whether logarithmically. The weak end of a penalty has to be weak for Adam,
# whose steps are as long however small a gradient is, down to its eps of 1e-8.
RANGES = SPACE | {"l1": (1e-9, 1e-3, True), "l2": (1e-8, 1e-1, True)}
WIDER = {"batch norm + L2": {"lr": (1e-4, 3e-2, True), "l2": (1e-8, 1.0, True)}}  # its optimum once lay at a border
# "Everything" is its parts as tuned, weakened: between which shares of each one's own optimum, and on which scale.
WEAKENED = dict.fromkeys((*SHAPES, "elastic"), (0.3, 1.1, False)) | dict.fromkeys(("l2", "noise"), (0.1, 1.0, True))
# Strengths that rise and fall together, on one axis of a method's design.
TOGETHER = dict.fromkeys((*SHAPES, "elastic"), "geometry") | dict.fromkeys(("l2", "noise"), "l2, noise")

POINTS = 16  # of each method's design; a power of two, for Sobol's balance
ANNEALED = "one-cycle"  # the only schedule under which "everything" is run without one of its parts
PUBLISHED = Path(__file__).parent / "figures" / "compare"
TUNED_FILE = PUBLISHED.parent / "tuning" / "tuned.csv"  # what is published of --tune, and what is compared

# --- settings --------------------------------------------------------------------------------------------------------


@shell.checked
class CompareOptions(PlannedOptions):
    """Compare the methods of the table in compare.py."""

    folds: Annotated[int, shell.between(2, len(COMPARISON_FOLDS))] = len(COMPARISON_FOLDS)  # how many of 3 to 19
    methods: tuple[Literal[tuple(METHODS)], ...] = ()  # such as L2 "dropout + L2": only these, and "plain, tuned"
    tune: bool = False  # do not compare, but tune the methods on folds 0, 1 and 2

    def __post_init__(self):
        super().__post_init__()
        if self.tune and (self.methods or self.folds < len(COMPARISON_FOLDS)):
            raise ValueError(f"--tune: tunes all methods, on the folds {TUNING_FOLDS}; drop --methods and --folds")


# --- tuning ----------------------------------------------------------------------------------------------------------


def tuned_names(method: str) -> list[str]:
    """The settings of `method` that are tuned."""
    return [] if method == RECIPE else ["lr", *(name for name, value in METHODS[method].items() if value is TUNED)]


def ranges(method: str, optima: dict[str, dict]) -> dict[str, tuple[float, float, bool]]:
    """From where to where the settings of `method` are tuned, and whether logarithmically.

    `optima` are the tuned settings of the methods before it: "everything" is made of weakened parts.
    """
    found = {name: RANGES[name] for name in tuned_names(method)} | WIDER.get(method, {})
    if method == "everything":
        for name, (low, high, log) in WEAKENED.items():
            strength = next(optima[part][name] for part in PARTS[method] if name in optima[part])
            found[name] = (low * strength, high * strength, log)
    return found


def at(limits: tuple[float, float, bool], share: float) -> float:
    """The value at `share` of a range, with three digits."""
    low, high, log = limits
    return float(f"{low * (high / low) ** share if log else low + (high - low) * share:.3g}")


def design(method: str, optima: dict[str, dict]) -> list[dict]:
    """The points of `method`: a scrambled Sobol' design of its own over its ranges, the same under both schedules."""
    space = ranges(method, optima)
    axes = list(dict.fromkeys(TOGETHER.get(name, name) for name in space))
    sobol = stats.qmc.Sobol(len(axes), scramble=True, rng=zlib.crc32(method.encode()))
    points = []
    for shares in sobol.random(POINTS):
        share = dict(zip(axes, shares, strict=True))
        found = {name: at(limits, share[TOGETHER.get(name, name)]) for name, limits in space.items()}
        points.append(METHODS[method] | found)
    return points


def within(method: str) -> Sequence[str]:
    """The methods that `method` adds to: its parts, or of one that is no combination the plain network."""
    return PARTS.get(method, () if method in (RECIPE, PLAIN) else (PLAIN,))


def depth(method: str) -> int:
    """0 for the plain network; more for a method than for any within it."""
    return max((1 + depth(part) for part in within(method)), default=0)


def nested(method: str, optima: dict[str, dict]) -> dict[str, dict]:
    """By method within it, the optimum of that one with what `method` adds at its weakest.

    So no method may lose to what it adds to because the two met at other learning rates.
    """
    weakest = {name: at(limits, 0.0) for name, limits in ranges(method, optima).items()}
    return {part: METHODS[method] | weakest | optima[part] for part in within(method)}


def points(method: str, schedule: str, optima: dict[str, dict], base: Config) -> list[dict]:
    """The rows of tuned.csv of one method under one schedule; `halve` fills in what was measured."""
    space, rows = ranges(method, optima), []
    tried = [*(("design", settings) for settings in design(method, optima)), *nested(method, optima).items()]
    for trial, (origin, settings) in enumerate(tried):
        settings = settings | {"schedule": schedule}
        border = " ".join(name for name in space if at_border(settings[name], *space[name]))
        rows.append({"method": method, "schedule": schedule, "trial": trial, "origin": origin, "border": border})
        rows[-1] |= {"settings": settings, "command": command_of(replace(base, **settings))}
    return rows


def halve(rows: list[dict], known: dict[tuple[str, int], tuple[float, str]]) -> list[tuple[dict, int]]:
    """Fills in the errors of one method's points and which one is `chosen`; returns what has to be measured before.

    All run on the first fold, the better half on the second one, the better half of these on the third; of those that
    are left the first is chosen. `known` are errors and processors by command and fold.
    """
    for row in rows:
        row |= {"errors": [], "processors": [], "chosen": False}
    left = rows
    for fold in TUNING_FOLDS:
        missing = [(row, fold) for row in left if (row["command"], fold) not in known]
        for row in left:
            if measured := known.get((row["command"], fold)):
                row["errors"].append(measured[0])
                row["processors"].append(measured[1])
        if missing:
            return missing
        left = sorted(left, key=lambda row: np.mean(row["errors"]))[: math.ceil(len(left) / 2)]
    left[0]["chosen"] = True
    return []


def measure(groups: Sequence[list[dict]], known: dict, base: Config, options: PlannedOptions) -> None:
    """Runs what `halve` asks for until it has chosen in each of `groups`; `known` grows by what was measured.

    The test images stay aside.
    """
    while missing := [one for group in groups for one in halve(group, known)]:
        configs = [replace(base, **row["settings"], fold=fold, seed=fold) for row, fold in missing]
        found = run_plans([plan(config, ("train", "val")) for config in configs], options)
        for (row, fold), one in zip(missing, found, strict=True):
            known[row["command"], fold] = one.result["result"]["last"]["error/val"], one.result["processor"]


def tune(options: CompareOptions) -> Path:
    """Writes tuned.csv: the validation errors of every point, and which one is chosen; returns its folder.

    Methods come after those within them. What the published file holds is not measured again.
    """
    folder, known, rows = planned.results_folder(options, "compare"), published_errors(), []
    for stage in range(1 + max(map(depth, METHODS))):
        groups = []
        for schedule in SCHEDULES:
            optima = {row["method"]: row["settings"] for row in rows if row["chosen"] and row["schedule"] == schedule}
            methods = [method for method in METHODS if method != RECIPE and depth(method) == stage]
            groups += [points(method, schedule, optima, options.config) for method in methods]
        measure(groups, known, replace(options.config, **ONE_LOOK), options)
        rows += [row for group in groups for row in group]
        report.write_tuned(folder / "tuned.csv", rows, list(SPACE), TUNING_FOLDS)
    return folder


def published_points() -> list[dict]:
    """The rows of the published tuned.csv; none where there is no such file."""
    return report.read_csv(TUNED_FILE) if TUNED_FILE.exists() else []


def published_errors() -> dict[tuple[str, int], tuple[float, str]]:
    """By command and fold, the validation errors in the published tuned.csv, and on which processors."""
    return {
        (row["command"], fold): (row[f"val_error_fold_{fold}"], row["processor"])
        for row in published_points()
        for fold in TUNING_FOLDS
        if row[f"val_error_fold_{fold}"] != ""
    }


def tuned_settings(methods: Iterable[str], schedule: str) -> dict[str, dict]:
    """What each of `methods` sets under `schedule`, as tuned in the published tuned.csv."""
    chosen = {row["method"]: row for row in published_points() if row["chosen"] and row["schedule"] == schedule}
    found = {}
    for method in methods:
        tuned = {name: chosen.get(method, {}).get(name, "") for name in tuned_names(method)}
        if "" in tuned.values():
            raise RunError(f"{TUNED_FILE}: {method} is not tuned; run compare.py --tune, copy its tuned.csv there")
        found[method] = METHODS[method] | tuned | {"schedule": schedule}
    return found


# --- results ---------------------------------------------------------------------------------------------------------


def compare_methods(options: CompareOptions) -> Path:
    """Runs what is missing and writes the files of the report; returns their folder."""
    methods = [method for method in METHODS if not options.methods or method in (*options.methods, PLAIN)]
    configs = {}
    for schedule in SCHEDULES:
        settings = tuned_settings(methods, schedule)
        if "everything" in methods and schedule == ANNEALED:
            for part in (part for part in PARTS["everything"] if part not in PARTS):
                off = {name: getattr(BASE, name) for name in METHODS[part]}
                settings[f"everything{WITHOUT}{part}"] = settings["everything"] | off
        for method, fold in itertools.product(settings, COMPARISON_FOLDS[: options.folds]):
            configs[method, schedule, fold] = replace(options.config, **settings[method], fold=fold, seed=fold)
    order = sorted(configs, key=lambda key: (WITHOUT in key[0], key[-1]))  # fold after fold; what is no method, last
    found = dict(zip(order, run_plans([plan(configs[key]) for key in order], options), strict=True))
    folder = planned.results_folder(options, "compare")
    runs = [
        {"method": method, "schedule": schedule, "fold": fold, "command": command_of(config)}
        | found[method, schedule, fold].result
        | {name: getattr(found[method, schedule, fold], name) for name in ("begun", "ended")}
        for (method, schedule, fold), config in configs.items()
    ]
    report.write_runs(folder, runs)
    return folder


def command_of(config: Config) -> str:
    """What a method sets, as a command for train.py, on fold 0."""
    ordinary = {name: getattr(Config(), name) for name in ("fold", "seed", *ONE_LOOK)}
    return command(replace(config, device="auto", **ordinary))


# --- the command line ------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    with shell.errors_in_one_line(data.DataError, RunError, cluster.StudyError, ReportError):
        options = shell.parse(CompareOptions, argv)
        if options.report:
            print("\n".join([*report.write_tuning(TUNED_FILE.parent, list(METHODS)), ""]))
            print("\n".join(report.write_report(PUBLISHED, PARTS)))
            return
        options = planned.prepared(options)
        folder = tune(options) if options.tune else compare_methods(options)
        lines = report.write_tuning(folder, list(METHODS)) if options.tune else report.write_report(folder, PARTS)
        print("\n".join(lines))
        print(f"\ntables and figures: {folder}")
        print(f"the runs:           tensorboard --logdir {planned.study_folder(options) / 'runs'}")


if __name__ == "__main__":
    main()
