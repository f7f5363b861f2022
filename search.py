"""Search hyper-parameters with Optuna: the lowest validation cost on the 95 %, over combinations of regularisations.

python search.py --trials 60 --workers 2
python search.py --norm batch --search lr,l2,dropout --study with-batch-norm
"""

import re
import shlex
import warnings
from collections.abc import Callable, Collection
from dataclasses import asdict, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import optuna
import tyro
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from pydantic import TypeAdapter

import data
from data import COMPARISON_FOLDS, TUNING_FOLDS
from support import figures, report, statistics, workers
from support.run import RunError, command, prepared
from support.shell import as_text, between, checked, errors_in_one_line, flag, parse, wrong_arguments
from support.space import SPACE
from support.storage import Place, StudyError
from support.workers import Failed, finished, number
from train import Config, train

GEOMETRY = ("rotate", "zoom", "shift", "shear", "elastic")
SEARCHABLE = ("lr", "schedule", "init", "norm", "l1", "l2", "weight_decay", "dropout", "noise", "geometry")

# --- settings --------------------------------------------------------------------------------------------------------


@checked
class SearchOptions:
    """Search the settings that --search names; all others are what is given, or their defaults."""

    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=Config)
    search: str = "lr,norm,l1,l2,dropout"  # of lr,schedule,init,norm,l1,l2,weight_decay,dropout,noise,geometry
    augment: bool = False  # search noise and geometry (rotate, zoom, shift, shear, elastic) as well
    study: str = "search"  # its name; the same name again goes on with the same study
    trials: Annotated[int, between(1, 1_000_000)] = 60  # finished ones, over all workers and restarts
    workers: Annotated[int, between(1, 1000)] = 2  # processes, with one thread each
    storage: str = field(default="", repr=False)  # URL of a database that machines share; else a file of the study's
    studies_dir: str = "studies"  # the study is kept in search/<study> in there
    folds_per_trial: Annotated[int, between(1, len(TUNING_FOLDS))] = 1  # the cost of a trial is the mean over them
    prune: bool = True  # stop hopeless trials early
    confirm: Annotated[int, between(0, len(COMPARISON_FOLDS))] = 0  # run best and baseline on so many other folds
    report: str = ""  # only write the report of this study

    def __post_init__(self):
        for name in ("study", "report"):
            if not re.fullmatch(r"(?!\.)[\w.-]*", getattr(self, name)) or not self.study:
                raise ValueError(
                    f"{flag(name)} {getattr(self, name)}: allowed are letters, digits and - _ . but not . first"
                )
        unknown = set(self.search.replace("-", "_").split(",")) - set(SEARCHABLE)
        if unknown:
            raise ValueError(f"--search {self.search}: allowed are {', '.join(SEARCHABLE)}, with commas between them")
        for name in self.searched:
            for setting in GEOMETRY if name == "geometry" else (name,):
                value = getattr(self.config, setting)
                if value != getattr(Config, setting):
                    rest = ",".join(other for other in self.searched if other != name)
                    way = f", or search the rest alone: --search {rest}" if rest else ""
                    way += " without --augment" if rest and self.augment else ""
                    raise ValueError(f"{flag(setting)} {as_text(value)}: {name} is to be searched; drop it{way}")
        if self.config.fold:
            raise ValueError(f"--fold {self.config.fold}: a search runs on the folds {TUNING_FOLDS}; drop --fold")
        if self.confirm == 1:
            raise ValueError("--confirm 1: one fold has no interval; give 2 or more")

    @property
    def searched(self) -> list[str]:
        names = self.search.replace("-", "_").split(",") + ["noise", "geometry"] * self.augment
        return [name for name in SEARCHABLE if name in names]

    @property
    def place(self) -> Place:
        name = self.report or self.study
        return Place(Path(self.studies_dir) / "search" / name, name, self.storage)


# --- the space -------------------------------------------------------------------------------------------------------


def suggest(trial: optuna.Trial | FixedTrial, fixed: Config, searched: Collection[str]) -> Config:
    """The settings of a trial: those of `fixed`, but for what is `searched`, of which SPACE holds the ranges.

    A strength is asked for only where its regularisation is used.
    """

    def strength(name: str) -> float:
        low, high, log = SPACE[name]
        return trial.suggest_float(name, low, high, log=log)

    found: dict[str, float | str] = {}
    if "lr" in searched:
        found["lr"] = strength("lr")
    if "schedule" in searched:
        found["schedule"] = trial.suggest_categorical("schedule", ["constant", "one-cycle"])
    if "init" in searched:
        found["init"] = trial.suggest_categorical("init", ["default", "glorot", "he"])
    if "norm" in searched:
        found["norm"] = trial.suggest_categorical("norm", ["none", "batch", "layer"])
    if "l1" in searched and trial.suggest_categorical("use_l1", [False, True]):
        found["l1"] = strength("l1")
    if "l2" in searched and trial.suggest_categorical("use_l2", [False, True]):
        found["l2"] = strength("l2")
    if "weight_decay" in searched and trial.suggest_categorical("use_weight_decay", [False, True]):
        found["weight_decay"] = strength("weight_decay")
    if "dropout" in searched and trial.suggest_categorical("use_dropout", [False, True]):
        found["dropout"] = strength("dropout")
    if "noise" in searched and trial.suggest_categorical("use_noise", [False, True]):
        found["noise"] = strength("noise")
    if "geometry" in searched and trial.suggest_categorical("use_geometry", [False, True]):
        found |= {name: strength(name) for name in GEOMETRY}
    return replace(fixed, **found)


# --- the search ------------------------------------------------------------------------------------------------------


def run_trial(trial: optuna.Trial, folder: Path, options: SearchOptions) -> float:
    """Trains one trial: the mean over its folds of the lowest validation cost. The test set is not even read."""
    config = suggest(trial, options.config, options.searched)
    costs: list[float] = []

    def tell(row: dict, best: dict) -> None:
        so_far = [*costs, best["loss/val"]]
        trial.report(sum(so_far) / len(so_far), len(costs) * (config.epochs + 1) + row["epoch"])
        if options.prune and trial.should_prune():
            raise optuna.TrialPruned

    for fold in TUNING_FOLDS[: options.folds_per_trial]:
        place = folder / f"fold-{fold}" if options.folds_per_trial > 1 else folder
        try:
            result = train(replace(config, fold=fold), place, ("train", "val"), quiet=True, on_evaluation=tell)
        except optuna.TrialPruned:
            (place / "last.pt").unlink(missing_ok=True)  # nobody goes on with it
            raise
        (place / "last.pt").unlink(missing_ok=True)
        if result["status"] == "diverged":
            raise Failed(f"diverged after {result['step']} updates")
        costs.append(result["best"]["loss/val"])
    return sum(costs) / len(costs)


def make_sampler(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)


def make_pruner() -> optuna.pruners.BasePruner:
    """Asynchronous successive halving: at 40, 80, 160 ... epochs the better half of those that came so far goes on.

    Replayed in 20 random orders over 22 complete trials of 1000 epochs, this took 23 % of their epochs and never lost
    the best one; the median after 5 trials and 30 epochs took 44 % and lost it 5 times; halving from 10 epochs took
    16 % and lost it 16 times.
    """
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=40, reduction_factor=2)


def search(options: SearchOptions) -> optuna.Study:
    """Runs workers until `options.trials` trials are finished. Data set and device of its config are resolved."""
    config = options.config
    settings = asdict(config) | {"data_sha256": data.load(config.data, config.data_dir).sha256}
    settings |= {"search": ",".join(options.searched)}
    settings |= {name: getattr(options, name) for name in ("folds_per_trial", "prune")}
    return workers.run_search(
        options.place,
        partial(run_trial, options=options),
        trials=options.trials,
        workers=options.workers,
        settings=settings,
        sampler=make_sampler,
        pruner=make_pruner(),
        seed=config.seed,
        preload=["search"],
        describe=best_so_far,
    )


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials, the best one first."""
    complete = [trial for trial in finished(study) if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: (trial.value, trial.number))


def best_so_far(study: optuna.Study) -> str:
    return f"best cost {trials[0].value:.4f}" if (trials := ranked(study)) else ""


def of_study(options: SearchOptions, study: optuna.Study) -> SearchOptions:
    """`options` with the settings under which `study` was begun."""
    settings = study.user_attrs.get("settings", {})
    try:
        config = {one.name: settings[one.name] for one in fields(Config)}
        return replace(
            options,
            config=TypeAdapter(Config).validate_python(config, strict=False),
            augment=False,  # what it adds stands in "search" by name
            **{name: settings[name] for name in ("search", "folds_per_trial", "prune")},
        )
    except (KeyError, ValueError, TypeError, AttributeError):
        raise StudyError(f"study {study.study_name}: not one of search.py's; name another") from None


# --- confirmation ----------------------------------------------------------------------------------------------------


def confirm(study: optuna.Study, options: SearchOptions) -> None:
    """Runs the best trial and the baseline on folds that the search never saw; writes confirmed.csv for the report."""
    best = ranked(study)[0]
    if data.load(options.config.data, options.config.data_dir).sha256 != study.user_attrs["settings"]["data_sha256"]:
        raise StudyError(f"study {study.study_name}: its data are others now; bring back those it began with")
    methods = {
        statistics.BASELINE: options.config,
        f"trial {number(best)}": suggest(FixedTrial(best.params), options.config, options.searched),
    }
    payloads = [
        {"method": method, "config": asdict(replace(config, fold=fold, seed=fold))}
        for fold in COMPARISON_FOLDS[: options.confirm]
        for method, config in methods.items()
    ]
    place = replace(options.place, name=f"{options.place.name}/confirm")  # the name of no search: those have no slash
    runs = workers.run_planned(
        place, run_confirmation, payloads, workers=options.workers, label=confirmation_label, preload=["search"]
    )
    rows = [
        {"method": payload["method"], "fold": payload["config"]["fold"]} | run.result
        for payload, run in zip(payloads, runs, strict=True)
    ]
    report.write_csv(options.place.folder / "confirmed.csv", rows)


def run_confirmation(payload: dict, folder: Path) -> dict:
    """One run on all splits: its status, and its measurement at the lowest validation cost."""
    result = train(Config(**payload["config"]), folder, quiet=True)
    (folder / "last.pt").unlink(missing_ok=True)
    return {"status": result["status"]} | result["best"]


def confirmation_label(payload: dict) -> str:
    return f"confirm-{payload['method']}-fold-{payload['config']['fold']}"


# --- report ----------------------------------------------------------------------------------------------------------


def at_border(trial: FrozenTrial) -> list[str]:
    """The parameters of `trial` that lie near an end of their range."""
    return [
        f"{name} {trial.params[name]:.3g}, in {one.low:g} to {one.high:g}"
        for name, one in trial.distributions.items()
        if isinstance(one, optuna.distributions.FloatDistribution)
        and statistics.at_border(trial.params[name], one.low, one.high, one.log)
    ]


def report_lines(study: optuna.Study, options: SearchOptions, table: Callable) -> list[str]:
    """The report, with its tables made by `table`: report.markdown_table for a file, or text_table for a terminal."""
    done, complete = finished(study), ranked(study)
    failed = [trial for trial in done if trial.state == TrialState.FAIL]
    pruned = len(done) - len(complete) - len(failed)
    if not complete:
        reason = f", the last one: {failed[-1].user_attrs['reason']}" if failed else ""
        raise StudyError(
            f"study {study.study_name}: none of its {len(done)} trials is complete ({pruned} pruned, {len(failed)} "
            f"failed{reason}); run more --trials"
        )
    best, folds = complete[0], " and ".join(map(str, TUNING_FOLDS[: options.folds_per_trial]))
    config = suggest(FixedTrial(best.params), options.config, options.searched)
    lines = [f"# Study {study.study_name}", ""]
    lines += [f"{len(done)} trials: {len(complete)} complete, {pruned} pruned, {len(failed)} failed."]
    lines += [f"The cost of a trial is the lowest validation cost of its run, the mean over fold {folds}.", ""]
    lines += [f"## The best: trial {number(best)}, validation cost {best.value:.4f}", ""]
    lines += ["```sh", command(replace(config, histograms=Config.histograms)), "```", ""]
    for border in at_border(best):
        lines += [f"**Warning:** {border}: at the border of its range; a wider one may hold a better value.", ""]
    rows = []
    for trial in complete[:10]:
        found = {name: value for name, value in trial.params.items() if not name.startswith("use_")}
        settings = (f"{name} {value if isinstance(value, str) else f'{value:.3g}'}" for name, value in found.items())
        rows.append([str(number(trial)), f"{trial.value:.4f}", ", ".join(settings)])
    lines += ["## The best ten", "", *table(["trial", "validation cost", "settings"], rows), ""]
    if failed:
        rows = [[str(number(trial)), trial.user_attrs["reason"]] for trial in failed]
        lines += ["## Failed trials", "", *table(["trial", "reason"], rows), ""]
    if (options.place.folder / "confirmed.csv").exists():
        lines += confirmation_lines(report.read_csv(options.place.folder / "confirmed.csv"), table)
    return lines


def confirmation_lines(rows: list[dict], table: Callable) -> list[str]:
    groups = statistics.runs_by_method(rows)
    names = list(groups)
    (pair,) = report.compare([(names[1], names[0])], groups, {})
    folds = [row["fold"] for row in groups[statistics.BASELINE]]
    cells = []
    for method, runs in groups.items():
        cost, half = statistics.mean_and_interval([row["loss/val"] for row in runs])
        errors = (report.estimate([row[f"error/{split}"] for row in runs]) for split in ("val", "test"))
        paired = report.paired_cells(pair if method == pair["method"] else {}, narrow=table is report.text_table)
        cells.append([method, f"{cost:.4f} ± {half:.4f}", *map(statistics.percent, errors), *paired])
    header = ["", "validation cost", "val error %", "test error %", "difference", "won", "p", "verdict"]
    diverged = sum(row["status"] == "diverged" for row in rows)
    return [
        f"## Confirmed on folds {folds[0]} to {folds[-1]}, which the search never saw",
        "",
        *table(header, cells),
        "",
        "Each run at its lowest validation cost, the one on fold k with seed k: mean over the folds and its 95 % "
        "interval. Difference of the test errors in points, paired by fold; won: the share of the folds with fewer "
        f"errors; p: exact signed-rank test, from {statistics.LEAST_PAIRS} folds on."
        + (f" {diverged} of {len(rows)} runs diverged." if diverged else ""),
        "",
    ]


def draw(study: optuna.Study, folder: Path) -> list[str]:
    """Writes Optuna's own figures in `folder`; returns their names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as plots

    drawn = {"history": plots.plot_optimization_history}
    if len(ranked(study)) > 3:
        drawn |= {"importances": plots.plot_param_importances, "slices": plots.plot_slice}
    for name, plot in drawn.items():
        with figures.reproducible_figures(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's plots say so where trials are few
            axes = np.atleast_1d(plot(study, target_name="validation cost"))
            figure = axes[0].figure
            figure.set_size_inches(max(8, 3.2 * len(axes)), 4.5)
            for axis in axes:
                if name != "importances":
                    axis.set_yscale("log")  # else one hopeless trial flattens all others
                    axis.yaxis.set_major_formatter("{x:g}")
                    axis.yaxis.set_minor_formatter("{x:g}")
                if axis.get_xscale() == "log":
                    axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())  # they overlap in a small range
                for dots in axis.collections if name == "slices" else ():
                    dots.set_clim(0, len(study.trials) - 1)  # else every panel has colours of its own
            with report.replacing(folder / f"{name}.png") as path:
                figure.savefig(path, dpi=120, format="png", bbox_inches="tight")
        plt.close(figure)
    return list(drawn)


def write_report(study: optuna.Study, options: SearchOptions) -> list[str]:
    """Writes report.md and its figures in the study's folder; returns its lines for a terminal."""
    folder = options.place.folder
    lines = report_lines(study, options, report.markdown_table)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [f"![{name}]({name}.png)\n" for name in draw(study, folder)]
    report.write_text(folder / "report.md", "\n".join([*lines, *pictures]))
    return report_lines(study, options, report.text_table)


# --- the command line ------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line(data.DataError, RunError, StudyError, statistics.ReportError):
        options = parse(SearchOptions, argv)
        if options.report:
            allowed = ("report", "storage", "studies_dir", "confirm", "workers")
            if options != SearchOptions(**{name: getattr(options, name) for name in allowed}):
                wrong_arguments(
                    f"--report {options.report}: a study has its own settings; beside it are allowed "
                    f"{', '.join(map(flag, allowed[1:]))}"
                )
            study = workers.load(options.place)
            options = of_study(options, study)
        else:
            options = prepared(options)
            options = replace(options, config=replace(options.config, histograms=0))
            study = search(options)
        if options.confirm and ranked(study):
            confirm(study, options)
        print("\n".join(write_report(study, options)))
        folder = options.place.folder
        print(f"written to {folder / 'report.md'}, with figures")
        print(f"look at the runs: tensorboard --logdir {shlex.quote(str(folder / 'runs'))}")


if __name__ == "__main__":
    main()
