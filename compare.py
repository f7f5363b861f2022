"""Compare methods under a protocol: the same folds for all, tuned alike on other folds, with intervals and tests.

    python compare.py --workers 2

Folds 0, 1 and 2 tune every method, folds 3 to 19 compare them. The runs are trials of one Optuna study, so that any
number of workers and machines share them, and none is run twice.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import optuna
import tyro
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

import data
import report
import search
from search import SEARCH_FOLDS, Job, finished, not_repeated, original
from shell import errors_in_one_line, parse
from train import Config, RunError, check_ranges, command, resolve, warn

# --- the methods -----------------------------------------------------------------------------------------------------

# What differs from the defaults. Learning rates and strengths were found by: python compare.py --tune 8
METHODS = {
    "baseline": {"lr": 0.0075},
    "L1": {"lr": 0.0026, "l1": 1.5e-05},
    "L2": {"lr": 0.0026, "l2": 0.00015},
    "dropout": {"lr": 0.0026, "dropout": 0.14},
    "batch norm": {"lr": 0.0056, "norm": "batch"},
    "layer norm": {"lr": 0.0056, "norm": "layer"},
    "noise": {"lr": 0.00068, "noise": 0.54},
    "geometric": {"lr": 0.0012, "rotate": 14.0, "zoom": 0.18, "shift": 2.4, "shear": 0.18},
    "elastic": {"lr": 0.0012, "elastic": 40.0},
    "one-cycle": {"lr": 0.0075, "schedule": "one-cycle"},
    "dropout + L2": {"lr": 0.0014, "dropout": 0.11, "l2": 0.0028},
    "batch norm + dropout": {"lr": 0.0026, "norm": "batch", "dropout": 0.14},
    "batch norm + geometric": {
        "lr": 0.0035, "norm": "batch", "rotate": 13.0, "zoom": 0.17, "shift": 2.2, "shear": 0.17,
    },
    "everything": {
        "lr": 0.0053, "schedule": "one-cycle", "norm": "batch", "l2": 0.00025,
        "rotate": 10.0, "zoom": 0.13, "shift": 1.7, "shear": 0.13, "elastic": 29.0,
    },
}  # fmt: skip

# Between which values a setting is tuned, on a logarithmic scale where the third word says so; the five geometric
# strengths rise and fall together.
SPACE = {
    "lr": (3e-4, 1e-2, "log"),
    "l1": (1e-5, 1e-3, "log"),
    "l2": (1e-4, 1e-2, "log"),
    "dropout": (0.1, 0.6),
    "noise": (0.1, 0.6),
    "rotate": (6, 18),
    "zoom": (0.075, 0.225),
    "shift": (1, 3),
    "shear": (0.075, 0.225),
    "elastic": (17, 51),
}
GEOMETRY = ("rotate", "zoom", "shift", "shear", "elastic")
MAIN = ("baseline", "L1", "L2", "dropout", "batch norm", "everything")  # whose histograms are drawn
PUBLISHED = Path(__file__).parent / "figures" / "compare"
COMPARISON_FOLDS = range(len(SEARCH_FOLDS), data.FOLDS)

# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompareOptions:
    """Compare the methods of the table in compare.py. A setting of train.py, given here, holds for all."""

    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=lambda: Config(evaluations=12, histograms=1))
    methods: str = ""  # such as "dropout,L2": only these, and the baseline
    folds: str = "3-19"  # such as 3-7 or 3,5,8
    tune: int = 0  # do not compare, but tune every method on folds 0, 1 and 2, with so many trials each
    report: bool = False  # train nothing: only rebuild the published table and figures from their results.csv
    workers: int = 2  # processes, with one thread each
    storage: str = ""  # URL of a database that several machines share; by default a journal file beside the runs
    runs_dir: str = "runs"  # folder of all runs; the comparison is kept in its folder compare

    def __post_init__(self):
        check_ranges(self, {"tune": (0, 1000), "workers": (1, 1000)})
        if self.config.fold:
            raise ValueError(f"--fold {self.config.fold}: a comparison runs on many; choose them with --folds")
        if not self.config.histograms:
            raise ValueError("--histograms 0: the report draws those after the last epoch; give 1 or more")
        folds, methods = self.chosen_folds(), self.chosen_methods()
        if self.tune and len(folds) < len(COMPARISON_FOLDS):
            raise ValueError(f"--folds {self.folds}: --tune runs on the folds {SEARCH_FOLDS}; drop one of the two")
        if self.report and (self.tune or len(folds) * len(methods) < len(COMPARISON_FOLDS) * len(METHODS)):
            raise ValueError("--report: rebuilds the published table as it is; drop --tune, --folds and --methods")

    def chosen_folds(self) -> list[int]:
        low, high = COMPARISON_FOLDS[0], COMPARISON_FOLDS[-1]
        allowed = f"allowed are {low} to {high}, such as 3-7 or 3,5,8; the others tune"
        folds = set()
        for part in self.folds.split(","):
            ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if not ends or not low <= int(ends[1]) <= int(ends[2] or ends[1]) <= high:
                raise ValueError(f"--folds {self.folds}: {allowed}")
            folds |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
        if len(folds) < 2:
            raise ValueError(f"--folds {self.folds}: one fold has no interval; give 2 or more")
        return sorted(folds)

    def chosen_methods(self) -> list[str]:
        """Those of --methods, and the baseline that they are compared with, in the order of the table."""
        names = {name.strip() for name in self.methods.split(",")} if self.methods else set(METHODS)
        if names - set(METHODS):
            raise ValueError(f"--methods {', '.join(sorted(names - set(METHODS)))}: allowed are {', '.join(METHODS)}")
        return [method for method in METHODS if method in names | {report.BASELINE}]


# --- runs through the study ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlannedRun:
    """One run: a method on a fold."""

    method: str
    config: Config
    splits: tuple[str, ...] = data.SPLITS

    @property
    def name(self) -> str:
        """Of its folder and of its trial: the same for the same settings, on whatever device."""
        settings = json.dumps([asdict(replace(self.config, device="auto")), self.splits])
        digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
        return f"{self.method.replace(' ', '-')}-fold-{self.config.fold}-{digest}"


def open_study(options: CompareOptions) -> optuna.Study:
    """The study of all comparisons in this storage, begun or gone on with."""
    storage = search.open_storage(options.storage, compare_folder(options) / "journal.log")
    return optuna.create_study(storage=storage, study_name="compare", load_if_exists=True)


def compare_folder(options: CompareOptions) -> Path:
    return Path(options.runs_dir) / "compare"


def complete(study: optuna.Study, names: set[str]) -> dict[str, FrozenTrial]:
    """The finished runs among `names`."""
    trials = [trial for trial in finished(study) if trial.state == TrialState.COMPLETE]
    return {trial.user_attrs["name"]: trial for trial in trials if trial.user_attrs["name"] in names}


def missing(study: optuna.Study, names: set[str]) -> int:
    return len(names) - len(complete(study, names))


def enqueue(study: optuna.Study, runs: list[PlannedRun], workers: int) -> None:
    """Keeps a few of `runs` queued: those that another command leaves behind, this one has to run."""
    trials = [t for t in not_repeated(study) if t.state != TrialState.FAIL and "surplus" not in t.user_attrs]
    known = {trial.user_attrs.get("name") for trial in trials}
    waiting = sum(trial.state == TrialState.WAITING for trial in trials)
    for run in [run for run in runs if run.name not in known][: max(0, workers - waiting)]:
        attributes = {"name": run.name, "config": asdict(run.config), "splits": run.splits}
        study.enqueue_trial({}, user_attrs=attributes)


def run_trial(trial: optuna.Trial, folder: Path) -> float:
    """Trains one queued run and leaves its result, curves and histograms in the study; returns the validation error."""
    name = trial.user_attrs.get("name")
    *earlier, this = trial.study.get_trials(deepcopy=False)[: trial.number + 1]
    twins = [
        other
        for other in earlier
        if other.user_attrs.get("name") == name
        and other.state not in (TrialState.FAIL, TrialState.WAITING)
        and original(other) != original(this)
    ]
    if not name or twins:  # the queue was empty, or two machines have queued the same run
        search.leave(trial)
    config, splits = Config(**trial.user_attrs["config"]), tuple(trial.user_attrs["splits"])
    with search.at_work(trial):
        result = search.run_once(config, folder, name, splits=splits)
    trial.set_user_attr("result", result)
    rows = report.read_csv(folder / name / "metrics.csv")
    columns = ("epoch", "train_loss", "val_loss")
    trial.set_user_attr("curves", {column: [row[column] for row in rows] for column in columns})
    trial.set_user_attr("histograms", last_histograms(folder / name) if config.histograms else {})
    return result["last"]["val_error"]


def last_histograms(folder: Path) -> dict[str, list[tuple[float, float, int]]]:
    """By tag, the last histogram of weights and of the output's entropy in a run's event files: left, right, count."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    accumulator.Reload()
    found = {}
    for tag in accumulator.Tags()["histograms"]:
        if tag.startswith(("weights/", "entropy/")):
            value = accumulator.Histograms(tag)[-1].histogram_value
            ends = [float(f"{end:.6g}") for end in value.bucket_limit]
            # TensorBoard puts an empty bucket before the first one
            found[tag] = [
                (left, right, int(n)) for (left, right), n in zip(pairwise(ends), value.bucket[1:], strict=True)
            ]
    return found


def run_all(runs: list[PlannedRun], options: CompareOptions) -> dict[str, dict]:
    """What each of `runs` left in the study, by name; those that are not there yet are run by its workers."""
    names = {run.name for run in runs}
    job = Job(
        trials=len(names),
        storage=options.storage,
        open_study=partial(open_study, options),
        run_trial=partial(run_trial, folder=compare_folder(options) / "runs"),
        missing=partial(missing, names=names),
        enqueue=partial(enqueue, runs=runs, workers=options.workers),
    )
    return {
        name: trial.user_attrs | {"begun": utc(trial.datetime_start), "ended": utc(trial.datetime_complete)}
        for name, trial in complete(search.supervise(job, options.workers), names).items()
    }


def utc(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def plan(method: str, settings: dict, fold: int, config: Config, **more) -> PlannedRun:
    return PlannedRun(method, replace(config, fold=fold, **settings), **more)


# --- tuning ----------------------------------------------------------------------------------------------------------


def tuned_settings(method: str) -> list[str]:
    return [name for name in METHODS[method] if name in SPACE]


def candidates(method: str, trials: int) -> list[dict]:
    """As many settings of `method`, spread evenly over the space of its learning rate and strengths.

    A Latin hypercube: every learning rate and every strength is tried in each of `trials` equal parts of its range.
    """
    tuned = tuned_settings(method)
    axes = list(dict.fromkeys("geometry" if name in GEOMETRY else name for name in tuned))
    points = stats.qmc.LatinHypercube(len(axes), optimization="random-cd", rng=0).random(trials)
    found = []
    for point in points:
        settings = dict(METHODS[method])
        for name in tuned:
            low, high, *log = SPACE[name]
            share = point[axes.index("geometry" if name in GEOMETRY else name)]
            value = low * (high / low) ** share if log else low + (high - low) * share
            settings[name] = float(f"{value:.2g}")
        found.append(settings)
    return found


def tune(options: CompareOptions) -> list[dict]:
    """The rows of tuned.csv: the validation errors of every candidate, and the one with the lowest mean is `chosen`.

    All candidates run on the first search fold, the better half of each method's on the second one, and the better
    half of these on the third. The test set is not even read.
    """
    base = replace(options.config, evaluations=1, histograms=0)
    rows = [
        {"method": method, "trial": number, "settings": settings, "errors": []}
        for method in options.chosen_methods()
        for number, settings in enumerate(candidates(method, options.tune))
    ]
    left = rows
    for fold in SEARCH_FOLDS:
        runs = [plan(row["method"], row["settings"], fold, base, splits=("train", "val")) for row in left]
        found = run_all(runs, options)
        for row, run in zip(left, runs, strict=True):
            row["errors"].append(found[run.name]["result"]["last"]["val_error"])
        tried, left = left, [row for group in report.by_method(left).values() for row in better_half(group)]
    chosen = {method: best_first(group)[0] for method, group in report.by_method(tried).items()}
    return [row | {"chosen": chosen[row["method"]] is row} for row in rows]


def best_first(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: np.mean(row["errors"]))


def better_half(rows: list[dict]) -> list[dict]:
    return best_first(rows)[: math.ceil(len(rows) / 2)]


def write_tuned(rows: list[dict], folder: Path) -> None:
    columns = ["method", "trial", *SPACE, *(f"val_error_fold_{fold}" for fold in SEARCH_FOLDS), "chosen"]
    lines = []
    for row in rows:
        values = {name: value for name, value in row["settings"].items() if name in SPACE}
        values |= {f"val_error_fold_{fold}": error for fold, error in zip(SEARCH_FOLDS, row["errors"], strict=False)}
        values |= {"method": row["method"], "trial": row["trial"], "chosen": int(row["chosen"])}
        lines.append({name: values.get(name, "") for name in columns})
    report.write_csv(folder / "tuned.csv", lines)


# --- results ---------------------------------------------------------------------------------------------------------


def write_results(runs: list[PlannedRun], found: dict[str, dict], folder: Path) -> None:
    """results.csv (a row a run), curves.csv (over the folds) and histograms.csv (of the first fold)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, bins = [], []
    for run in runs:
        left, result = found[run.name], found[run.name]["result"]
        rows.append(
            {"method": run.method, "settings": settings_text(run.config), "fold": run.config.fold}
            | {key: result[key] for key in ("data", "seed", "status")}
            | {key: value for key, value in result["last"].items() if key != "epoch"}
            | {f"best_{key}": value for key, value in result["best"].items()}
            | {"seconds": round(result["seconds"], 1), "begun": left["begun"], "ended": left["ended"]}
        )
        if run.method in MAIN and run.config.fold == runs[0].config.fold:
            for tag, histogram in left["histograms"].items():
                columns = ("method", "tag", "left", "right", "count")
                bins += [dict(zip(columns, (run.method, tag, *bucket), strict=True)) for bucket in histogram]
    curves = []
    for method in dict.fromkeys(run.method for run in runs):
        of_folds = [found[run.name]["curves"] for run in runs if run.method == method]
        for split in ("train", "val"):
            for epochs, *costs in zip(of_folds[0]["epoch"], *(one[f"{split}_loss"] for one in of_folds), strict=False):
                spread = {"mean": np.mean(costs), "low": min(costs), "high": max(costs)}
                curves.append(
                    {"method": method, "split": split, "epoch": int(epochs)}
                    | {key: float(f"{value:.4g}") for key, value in spread.items()}
                )
    for name, lines in (("results", rows), ("curves", curves), ("histograms", bins)):
        report.write_csv(folder / f"{name}.csv", lines)


def settings_text(config: Config) -> str:
    """What a method sets, as arguments of train.py."""
    ordinary = {name: getattr(Config(), name) for name in ("fold", "evaluations", "histograms")}
    return command(replace(config, device="auto", **ordinary)).removeprefix("python train.py").strip()


# --- the command line ------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    options = parse(CompareOptions, argv)
    search.be_quiet()
    with errors_in_one_line(data.DataError, RunError), search.storage_errors(options.storage):
        if options.report:
            print("\n".join(report.write_report(PUBLISHED, list(METHODS))))
            return
        dataset = data.load(options.config.data, options.config.data_dir)
        warn(dataset)
        options = replace(options, config=replace(resolve(options.config, dataset), device=options.config.device))
        folder = compare_folder(options)
        if options.tune:
            rows = tune(options)
            write_tuned(rows, folder)
            for row in rows:
                if row["chosen"]:
                    print(f'    "{row["method"]}": {json.dumps(row["settings"])},')
            print(f"every trial: {folder / 'tuned.csv'}")
            return
        methods, folds = options.chosen_methods(), options.chosen_folds()
        runs = [plan(m, METHODS[m], fold, options.config) for fold in folds for m in methods]
        found = run_all(runs, options)
        write_results(sorted(runs, key=lambda run: methods.index(run.method)), found, folder)
        print("\n".join(report.write_report(folder, list(METHODS))))
        print(f"\nwritten to {folder}: {', '.join(sorted(path.name for path in folder.glob('*.*')))}")


if __name__ == "__main__":
    main()
