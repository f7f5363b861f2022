"""Compare methods under a protocol: the same folds for all, tuned alike on other folds, with intervals and tests.

    python compare.py --tune      tunes every method on the folds 0, 1 and 2
    python compare.py             compares them, as tuned, on the folds 3 to 19
    python compare.py --report    rebuilds the published tables and figures, and trains nothing

The runs of all comparisons are shared by any number of workers and machines, and none is run twice.
"""

import math
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from scipy import stats

import data
from data import COMPARISON_FOLDS, TUNING_FOLDS
from planned import (
    BASE,
    ONE_LOOK,
    experiment,
    folder_of_choice,
    other_settings,
    plan,
    run_all,
    study_folder,
)
from support import report, statistics, workers
from support.run import RunError, command, prepared
from support.shell import between, checked, errors_in_one_line, flag, given_flags, parse, refuse_given, wrong_arguments
from support.space import SPACE
from train import Config

# --- the methods -----------------------------------------------------------------------------------------------------

TUNED = None  # stands for a strength that is tuned, like the learning rate and its schedule of every method
GEOMETRY = dict.fromkeys(("rotate", "zoom", "shift", "shear"), TUNED)  # which rise and fall together
RECIPE = "the class's recipe"  # nothing is tuned

# What a method sets; all else is at its default.
METHODS = {
    RECIPE: {},
    "baseline": {},
    "He initialisation": {"init": "he"},
    "L1": {"l1": TUNED},
    "L2": {"l2": TUNED},
    "weight decay": {"weight_decay": TUNED},
    "dropout": {"dropout": TUNED},
    "batch norm": {"norm": "batch"},
    "layer norm": {"norm": "layer"},
    "noise": {"noise": TUNED},
    "geometric": GEOMETRY,
    "elastic": {"elastic": TUNED},
    "dropout + L2": {"dropout": TUNED, "l2": TUNED},
    "batch norm + L2": {"norm": "batch", "l2": TUNED},
    "layer norm + L2": {"norm": "layer", "l2": TUNED},
    "batch norm + dropout": {"norm": "batch", "dropout": TUNED},
    "He + L2": {"init": "he", "l2": TUNED},
    "batch norm + geometric": {"norm": "batch", **GEOMETRY},
    "everything": {"norm": "batch", "l2": TUNED, "noise": TUNED, **GEOMETRY, "elastic": TUNED},
}
PARTS = {
    "dropout + L2": ("dropout", "L2"),
    "batch norm + L2": ("batch norm", "L2"),
    "layer norm + L2": ("layer norm", "L2"),
    "batch norm + dropout": ("batch norm", "dropout"),
    "He + L2": ("He initialisation", "L2"),
    "batch norm + geometric": ("batch norm", "geometric"),
    "everything": ("batch norm", "L2", "noise", "geometric", "elastic", "batch norm + L2", "batch norm + geometric"),
}
# Tuned over a wider range than SPACE: where an optimum lay at a border (an L2 of 0.058, of at most 0.1), and where the
# weakest L2 was not weak, since Adam's steps are as long however small a gradient is, down to its eps of 1e-8.
WIDER = {
    "batch norm + L2": {"lr": (1e-4, 3e-2, True), "l2": (1e-5, 1.0, True)},
    "layer norm + L2": {"l2": (1e-11, 1e-1, True)},
}
# "Everything" is its parts as tuned, weakened: between which shares of each one's own optimum, and on which scale.
WEAKENED = dict.fromkeys((*GEOMETRY, "elastic"), (0.3, 1.1, False)) | dict.fromkeys(("l2", "noise"), (0.1, 1.0, True))
# Strengths that rise and fall together, on one axis of a method's design.
TOGETHER = dict.fromkeys(GEOMETRY, "geometry")
TOGETHER_IN_EVERYTHING = dict.fromkeys((*GEOMETRY, "elastic"), "geometry") | dict.fromkeys(("l2", "noise"), "l2, noise")

POINTS = 16  # of each method's design; a power of two, for Sobol's balance
MAIN = ("baseline", "L1", "L2", "dropout", "batch norm", "everything")  # whose histograms are drawn
NETWORKS, AVERAGED_FOLDS = 5, range(3, 8)  # of how many networks the outputs are averaged
AVERAGED = dict.fromkeys(("baseline", "dropout", "everything"), (1, NETWORKS))
AVERAGED["baseline"] = (1, 2, 3, NETWORKS, 10)  # which sentences.py needs as well
PUBLISHED = Path(__file__).parent / "figures" / "compare"
TUNED_FILE = PUBLISHED.parent / "tuning" / "tuned.csv"  # what --tune has found so far, and what is compared
NUISANCES = ("lr", "schedule")  # tuned for every method, and part of none

# --- settings --------------------------------------------------------------------------------------------------------


@checked
class CompareOptions:
    """Compare the methods of the table in compare.py. A setting of train.py, given here, holds for all."""

    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=lambda: BASE)
    methods: str = ""  # such as "dropout,L2": only these, and the baseline
    folds: str = "3-19"  # such as 3-7 or 3,5,8
    tune: bool = False  # do not compare, but tune the methods on folds 0, 1 and 2
    report: bool = False  # train nothing: rebuild the published tables and figures from their files
    workers: Annotated[int, between(1, 1000)] = 2  # processes, with one thread each
    storage: str = field(default="", repr=False)  # URL of a database that machines share; by default a journal file
    studies_dir: str = "studies"  # folder of all studies; this one is kept in its folder compare

    def __post_init__(self):
        chosen_methods(self.methods)
        chosen_folds(self.folds)


def chosen_methods(text: str) -> list[str]:
    """Those of --methods, and the baseline that they are compared with, in the order of the table."""
    names = {name.strip() for name in text.split(",")} if text else set(METHODS)
    if unknown := names - set(METHODS):
        raise ValueError(f"--methods {', '.join(sorted(unknown))}: allowed are {', '.join(METHODS)}")
    return [method for method in METHODS if method in names | {statistics.BASELINE}]


def chosen_folds(text: str) -> list[int]:
    low, high = COMPARISON_FOLDS[0], COMPARISON_FOLDS[-1]
    folds = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not ends or not low <= int(ends[1]) <= int(ends[2] or ends[1]) <= high:
            raise ValueError(f"--folds {text}: allowed are {low} to {high}, such as 3-7 or 3,5,8; the others tune")
        folds |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    if len(folds) < 2:
        raise ValueError(f"--folds {text}: one fold has no interval; give 2 or more")
    return sorted(folds)


def refuse_what_is_ignored(options: CompareOptions, argv: Sequence[str]) -> None:
    """Ends the program if one of the arguments, even with the value of its default, would change nothing."""
    if options.report and len(given_flags(argv)) > 1:
        wrong_arguments("--report: rebuilds what is published as it is; drop the other arguments")
    methods = {*NUISANCES, *(name for settings in METHODS.values() for name in settings)}
    refused = {flag(name): "every method sets its own; drop it, or change METHODS in compare.py" for name in methods}
    refused |= dict.fromkeys(("--fold", "--seed"), "the folds are those of --folds, each with its number as seed")
    if options.tune:
        own = f"--tune runs on the folds {TUNING_FOLDS} and looks at the end only; drop one of the two"
        refused |= dict.fromkeys(("--folds", *map(flag, ONE_LOOK)), own)
    refuse_given(argv, refused)


# --- tuning ----------------------------------------------------------------------------------------------------------


def tuned_names(method: str) -> list[str]:
    """The settings of `method` that are tuned."""
    strengths = [name for name, value in METHODS[method].items() if value is TUNED]
    return [] if method == RECIPE else [*NUISANCES, *strengths]


def ranges(method: str, optima: dict[str, dict]) -> dict[str, tuple[float, float, bool]]:
    """From where to where the learning rate and the strengths of `method` are tuned, and whether logarithmically.

    `optima` are the tuned settings of the methods before it: "everything" is made of weakened parts.
    """
    found = {name: SPACE[name] for name in tuned_names(method) if name in SPACE} | WIDER.get(method, {})
    if method == "everything":
        for name, (low, high, log) in WEAKENED.items():
            strength = next(optima[part][name] for part in PARTS[method] if name in optima[part])
            found[name] = (low * strength, high * strength, log)
    return found


def design(method: str, optima: dict[str, dict]) -> list[dict]:
    """The points of `method`: a scrambled Sobol' design of its own, over its ranges and both schedules."""
    together = TOGETHER_IN_EVERYTHING if method == "everything" else TOGETHER
    space = ranges(method, optima)
    axes = list(dict.fromkeys([*NUISANCES, *(together.get(name, name) for name in space)]))
    sobol = stats.qmc.Sobol(len(axes), scramble=True, rng=zlib.crc32(method.encode()))
    points = []
    for shares in sobol.random(POINTS):
        share = dict(zip(axes, shares, strict=True))
        found = {name: at(limits, share[together.get(name, name)]) for name, limits in space.items()}
        points.append(METHODS[method] | found | {"schedule": "constant" if share["schedule"] < 0.5 else "one-cycle"})
    return points


def at(limits: tuple[float, float, bool], share: float) -> float:
    """The value at `share` of a range, with three digits."""
    low, high, log = limits
    return float(f"{low * (high / low) ** share if log else low + (high - low) * share:.3g}")


def within(method: str) -> Sequence[str]:
    """The methods that `method` adds to: its parts, or of one that is no combination the baseline."""
    return PARTS.get(method, () if method in (RECIPE, statistics.BASELINE) else (statistics.BASELINE,))


def nested(method: str, optima: dict[str, dict]) -> dict[str, dict]:
    """By method within it, the optimum of that one with what `method` adds at its weakest.

    So no method may lose to what it adds to because the two met at other learning rates.
    """
    weakest = {name: at(limits, 0.0) for name, limits in ranges(method, optima).items()}
    return {part: METHODS[method] | weakest | optima[part] for part in within(method)}


def tune(options: CompareOptions) -> Path:
    """Writes tuned.csv: the validation errors of every point, and the one with the lowest mean is `chosen`.

    Returns its folder. Methods come after those within them. The test set is not even read.
    """
    folder = results_folder(options)
    needed = {method for method in chosen_methods(options.methods) if method != RECIPE}
    needed |= {part for method in needed for part in within(method)}
    rows: list[dict] = []
    for stage in range(1 + max(map(depth, needed))):
        optima = {row["method"]: row["settings"] for row in rows if row["chosen"]}
        tried = []
        for method in [method for method in METHODS if method in needed and depth(method) == stage]:
            points = [("design", settings) for settings in design(method, optima)]
            for trial, (origin, settings) in enumerate([*points, *nested(method, optima).items()]):
                tried.append({"method": method, "trial": trial, "origin": origin, "settings": settings})
        halve(tried, options)
        for row in tried:
            space = ranges(row["method"], optima) if row["chosen"] else {}
            row["border"] = " ".join(
                name for name in space if statistics.at_border(row["settings"][name], *space[name])
            )
            row["command"] = settings_text(replace(options.config, **row["settings"]))
        rows += tried
        report.write_tuned(folder / "tuned.csv", rows, [*NUISANCES, *SPACE], TUNING_FOLDS)
    return folder


def depth(method: str) -> int:
    """0 for the baseline; more for a method than for any within it."""
    return max((1 + depth(part) for part in within(method)), default=0)


def halve(rows: list[dict], options: CompareOptions) -> None:
    """Adds the `errors` of `rows` on the tuning folds, as far as they come, and which one of each method is `chosen`.

    All run on the first fold, the better half of each method's on the second one, the better half of these on the
    third. An error that the published tuned.csv holds already is not measured again.
    """
    known = published_errors(options)
    for row in rows:
        row |= {"errors": [], "chosen": False}
    left = rows
    for fold in TUNING_FOLDS:
        base = replace(options.config, **ONE_LOOK, fold=fold, seed=fold)
        new = [row for row in left if (point(row["method"], row["settings"]), fold) not in known]
        payloads = [plan(replace(base, **row["settings"]), ("train", "val")) for row in new]
        for row, found in zip(new, run_all(payloads, options), strict=True):
            known[point(row["method"], row["settings"]), fold] = found.result["result"]["last"]["error/val"]
        for row in left:
            row["errors"].append(known[point(row["method"], row["settings"]), fold])
        groups = [
            sorted(group, key=lambda row: np.mean(row["errors"])) for group in statistics.by_method(left).values()
        ]
        left = [row for group in groups for row in group[: math.ceil(len(group) / 2)]]
    for group in groups:
        group[0]["chosen"] = True


def point(method: str, settings: dict) -> tuple:
    """What is tuned in `settings`, comparable."""
    return method, *(settings.get(name) for name in tuned_names(method))


def published_errors(options: CompareOptions) -> dict[tuple, float]:
    """The errors in the published tuned.csv by point and fold, if these are its settings and data."""
    mine, published = (experiment(replace(config, **ONE_LOOK)) for config in (options.config, BASE))
    if options.config.data != "mnist" or mine != published or not TUNED_FILE.exists():
        return {}
    return {
        (point(row["method"], row), fold): row[f"val_error_fold_{fold}"]
        for row in report.read_csv(TUNED_FILE)
        for fold in TUNING_FOLDS
        if row["method"] in METHODS and row[f"val_error_fold_{fold}"] != ""
    }


def tuned_settings(methods: Sequence[str]) -> dict[str, dict]:
    """What each of `methods` sets, as tuned in the published tuned.csv."""
    rows = report.read_csv(TUNED_FILE) if TUNED_FILE.exists() else []
    chosen = {row["method"]: row for row in rows if row["chosen"]}
    found = {}
    for method in methods:
        tuned = {name: chosen.get(method, {}).get(name, "") for name in tuned_names(method)}
        if "" in tuned.values():
            raise RunError(
                f"{TUNED_FILE}: {method} is not tuned; run python compare.py --tune, copy its tuned.csv there"
            )
        found[method] = METHODS[method] | tuned
    return found


# --- results ---------------------------------------------------------------------------------------------------------


def without(settings: dict, part: str) -> dict:
    """The `settings` of "everything" with one part switched off."""
    return settings | {name: getattr(BASE, name) for name in METHODS[part]}


def compare(options: CompareOptions) -> Path:
    """Runs what is missing and writes the files of the report; returns their folder."""
    methods, folds = chosen_methods(options.methods), chosen_folds(options.folds)
    settings = tuned_settings(methods)
    if "everything" in methods:
        parts = [part for part in PARTS["everything"] if part not in PARTS]
        settings |= {f"everything{statistics.WITHOUT}{part}": without(settings["everything"], part) for part in parts}
    configs = {
        (method, fold): replace(options.config, fold=fold, seed=fold, **found)
        for method, found in settings.items()
        for fold in folds
    }
    order = sorted(configs, key=lambda pair: pair[1])  # fold after fold: a look in the middle compares all methods
    found = dict(zip(order, run_all([plan(configs[pair]) for pair in order], options), strict=True))
    folder = results_folder(options)
    runs = [
        {"method": method, "fold": fold, "settings": settings_text(config)}
        | found[method, fold].result
        | {"begun": found[method, fold].begun, "ended": found[method, fold].ended}
        for (method, fold), config in configs.items()
    ]
    report.write_runs(folder, runs, MAIN)
    if len(methods) == len(METHODS):  # else it is a quick look
        for name, rows in (("ensembles", ensembles(configs, options)), ("sklearn", check(folds, options))):
            if rows:
                report.write_csv(folder / f"{name}.csv", rows)
    return folder


def ensembles(configs: dict[tuple[str, int], Config], options: CompareOptions) -> list[dict]:
    """The rows of ensembles.csv: the error of one network, and of the mean output of several, by method and fold."""
    pairs = [(method, fold) for method, fold in configs if method in AVERAGED and fold in AVERAGED_FOLDS]
    found = run_all([plan(configs[pair], networks=list(AVERAGED[pair[0]])) for pair in pairs], options)
    return [
        {"method": method, "fold": fold, "networks": NETWORKS}
        | {f"error/{name}": over.result[str(k)]["error/test"] for name, k in (("one", 1), ("mean", NETWORKS))}
        for (method, fold), over in zip(pairs, found, strict=True)
    ]


def check(folds: Sequence[int], options: CompareOptions) -> list[dict]:
    """The rows of sklearn.csv: errors here and of scikit-learn's network, without and with an L2 penalty, by fold."""
    configs = [
        replace(options.config, init="glorot", l2=penalty, fold=fold, seed=fold)
        for penalty in (0.0, 1e-4)
        for fold in folds
    ]
    ours = run_all([plan(config) for config in configs], options)
    theirs = run_all([plan(config, sklearn=True) for config in configs], options)
    return [
        {"l2": config.l2, "fold": config.fold}
        | {"error/ours": one.result["result"]["last"]["error/test"], "error/sklearn": other.result["error/test"]}
        for config, one, other in zip(configs, ours, theirs, strict=True)
    ]


def settings_text(config: Config) -> str:
    """What a method sets, as arguments of train.py."""
    ordinary = {name: getattr(Config(), name) for name in ("fold", "seed", *ONE_LOOK)}
    return command(replace(config, device="auto", **ordinary)).removeprefix("python train.py").strip()


def results_folder(options: CompareOptions) -> Path:
    """One for each choice of settings, data, methods and folds, so that no quick look touches another's files."""
    chosen = [f"methods={options.methods}"] if options.methods else []
    chosen += [f"folds={options.folds}"] if chosen_folds(options.folds) != list(COMPARISON_FOLDS) else []
    words = ["tuning"] * options.tune + other_settings(options.config) + chosen
    return folder_of_choice(study_folder(options), words)


# --- the command line ------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    with errors_in_one_line(data.DataError, RunError, workers.StudyError, statistics.ReportError):
        options = parse(CompareOptions, argv)
        refuse_what_is_ignored(options, argv)
        if options.report:
            print("\n".join(report.write_report(PUBLISHED, list(METHODS), PARTS)))
            print("\n".join(["", *report.write_tuning(TUNED_FILE.parent, list(METHODS))]))
            return
        options = prepared(options)
        if options.tune:
            folder = tune(options)
            print("\n".join(report.write_tuning(folder, list(METHODS))))
            print(f"\nevery point: {folder / 'tuned.csv'}")
            return
        folder = compare(options)
        print("\n".join(report.write_report(folder, list(METHODS), PARTS)))
        print(f"\ntables and figures: {folder}")
        print(f"the runs:           tensorboard --logdir {study_folder(options) / 'runs'}")


if __name__ == "__main__":
    main()
