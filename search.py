"""Search hyper-parameters with Optuna: the lowest validation cost on the 95 %, over combinations of regularisations.

python search.py --trials 60 --workers 2
python search.py --norm batch --search lr,l2,dropout --study with-batch-norm

Who is at work beside a trial decides what the sampler knows, so another number of workers finds other trials.
"""

import re
import shlex
import warnings
from collections.abc import Collection
from dataclasses import asdict, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import optuna
import tyro
from filelock import FileLock
from optuna.trial import FixedTrial, FrozenTrial, TrialState

import data
from data import COMPARISON_FOLDS, TUNING_FOLDS
from support import cluster, figures, report, statistics
from support.cluster import Failed, StudyError
from support.run import RunError, command, prepared
from support.shell import Folder, as_text, between, checked, errors_in_one_line, flag, parse, wrong_arguments
from support.space import SPACE
from train import Config, train

GEOMETRY = ("rotate", "zoom", "shift", "shear", "elastic")
SEARCHABLE = ("lr", "schedule", "init", "norm", "l1", "l2", "weight_decay", "dropout", "noise", "geometry")
GIVEN = "the settings given"  # to which the best trial is compared

# --- settings --------------------------------------------------------------------------------------------------------


@checked
class SearchOptions:
    """Search the settings that --search names; all others are what is given, or their defaults."""

    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=Config)
    search: str = "lr,norm,l1,l2,dropout"  # of lr,schedule,init,norm,l1,l2,weight_decay,dropout,noise,geometry
    augment: bool = False  # search noise and geometry (rotate, zoom, shift, shear, elastic) as well
    study: str = "search"  # its name; the same name again goes on with the same study
    trials: Annotated[int, between(1, 1_000_000)] = 60  # finished ones, over all commands
    workers: Annotated[int, between(1, 1000)] = 2  # processes, with one thread each
    scheduler: str = ""  # such as tcp://host:8786, to use the machines that run `dask worker` instead
    storage: str = field(default="", repr=False)  # Optuna's URL of a database; by default a journal in the folder
    studies_dir: Folder = "studies"  # the study is kept in search/<study> in there
    folds_per_trial: Annotated[int, between(1, len(TUNING_FOLDS))] = 1  # the cost of a trial is the mean over them
    prune: bool = True  # stop hopeless trials early
    confirm: Annotated[int, between(0, len(COMPARISON_FOLDS))] = 0  # run the best on so many other folds
    report: str = ""  # only write the report of this study

    def __post_init__(self):
        for name in ("study", "report"):
            if not re.fullmatch(r"(?!\.)[\w.-]*", getattr(self, name)) or not self.study:
                raise ValueError(
                    f"{flag(name)} {getattr(self, name)}: allowed are letters, digits, - _ . and no . first"
                )
        if unknown := set(self.search.replace("-", "_").split(",")) - set(SEARCHABLE):
            raise ValueError(f"--search {','.join(unknown)}: allowed are {', '.join(SEARCHABLE)}, with commas between")
        for name in self.searched:
            for setting in GEOMETRY if name == "geometry" else (name,):
                if (value := getattr(self.config, setting)) != getattr(Config, setting):
                    raise ValueError(f"{flag(setting)} {as_text(value)}: {name} is to be searched; drop one of the two")
        if self.config.fold:
            raise ValueError(f"--fold {self.config.fold}: a search runs on the folds {TUNING_FOLDS}; drop --fold")
        if self.confirm == 1:
            raise ValueError("--confirm 1: one fold has no interval; give 2 or more")

    @property
    def searched(self) -> list[str]:
        names = self.search.replace("-", "_").split(",") + ["noise", "geometry"] * self.augment
        return [name for name in SEARCHABLE if name in names]

    @property
    def folder(self) -> Path:
        return Path(self.studies_dir).resolve() / "search" / (self.report or self.study)


# --- the search ------------------------------------------------------------------------------------------------------


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


def objective(trial: optuna.Trial, folder: Path, options: SearchOptions) -> float:
    """Trains one trial: the mean over its folds of the lowest validation cost. The test set is not even read."""
    config = suggest(trial, options.config, options.searched)
    found: list[dict] = []  # the best measurement on each fold

    def report_cost(row: dict, best: dict) -> None:
        so_far = [one["loss/val"] for one in (*found, best)]
        trial.report(sum(so_far) / len(so_far), len(found) * (config.epochs + 1) + row["epoch"])
        if options.prune and trial.should_prune():
            raise optuna.TrialPruned

    for fold in TUNING_FOLDS[: options.folds_per_trial]:
        place = folder / f"fold-{fold}" if options.folds_per_trial > 1 else folder
        try:
            result = train(replace(config, fold=fold), place, ("train", "val"), quiet=True, on_evaluation=report_cost)
        except optuna.TrialPruned:
            (place / "last.pt").unlink(missing_ok=True)  # nobody goes on with it
            raise
        (place / "last.pt").unlink(missing_ok=True)
        if result["status"] == "diverged":
            raise Failed(f"diverged after {result['step']} updates")
        found.append(result["best"])
    trial.set_user_attr("error", sum(one["error/val"] for one in found) / len(found))
    return sum(one["loss/val"] for one in found) / len(found)


def open_study(options: SearchOptions) -> optuna.Study:
    """The study, begun or gone on with; in the command and in each of its workers."""
    journal = str(options.folder / "journal.log")  # Optuna's own lock outlives its owner
    try:
        study = optuna.create_study(
            study_name=options.report or options.study,
            storage=options.storage
            or optuna.storages.JournalStorage(cluster.Journal(journal, FileLock(f"{journal}.lock"))),
            # asynchronous successive halving: at 40, 80, 160 ... epochs the better half of those that came so far goes
            # on. Replayed over 22 complete trials of 1000 epochs, this took 23 % of the epochs and lost no best one
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=40, reduction_factor=2),
            load_if_exists=True,
        )
        words = [options.config.seed, len(study.trials)]
    except Exception as error:
        place = "--storage" if options.storage else journal
        raise StudyError(f"{place}: damaged, or out of reach ({type(error).__name__}); take another --study") from None
    seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
    return study


def search(options: SearchOptions) -> optuna.Study:
    """Runs trials until `options.trials` are finished. Data set and device of its config are resolved."""
    settings = asdict(options.config) | {"data_sha256": data.load(options.config.data, options.config.data_dir).sha256}
    settings |= {"search": ",".join(options.searched), "folds_per_trial": options.folds_per_trial}
    settings |= {"prune": options.prune, "hidden": list(options.config.hidden)}
    with cluster.alone(options.folder):
        study = open_study(options)
        begun = study.user_attrs.get("settings", settings)
        if names := [name for name in settings if begun.get(name) != settings[name]]:
            other = "; ".join(f"{name} {begun.get(name)}, not {settings[name]}" for name in names)
            raise StudyError(f"study {options.study}: begun with {other}; take another name, or its settings")
        study.set_user_attr("settings", settings)
        cluster.run_trials(
            partial(objective, options=options), study, options.folder, trials=options.trials,
            settings_of=lambda trial: settings | asdict(suggest(trial, options.config, options.searched)),
            open_study=partial(open_study, options), workers=options.workers, scheduler=options.scheduler,
            describe=lambda study: f"best cost {best[0].value:.4f}" if (best := ranked(study)) else "",
            preload=["search"],
        )  # fmt: skip
    return study


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials, the best one first."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return sorted(complete, key=lambda trial: (trial.value, trial.number))


def of_study(options: SearchOptions) -> tuple[SearchOptions, optuna.Study]:
    """`options` with the settings under which the study was begun that --report names, and the study."""
    if not options.storage and not options.folder.exists():
        raise StudyError(f"study {options.report}: there is none in {options.folder.parent}")
    study = open_study(options)
    settings = study.user_attrs.get("settings", {})
    try:
        config = Config(
            **{one.name: settings[one.name] for one in fields(Config)} | {"hidden": tuple(settings["hidden"])}
        )
        more = {name: settings[name] for name in ("search", "folds_per_trial", "prune")}
        return replace(options, config=config, augment=False, **more), study  # what --augment adds is in search by name
    except (KeyError, ValueError, TypeError):
        raise StudyError(f"study {study.study_name}: not one of search.py's; name another") from None


# --- confirmation ----------------------------------------------------------------------------------------------------


def confirm(study: optuna.Study, options: SearchOptions) -> None:
    """Runs the best trial and the settings given on folds that the search never saw; writes confirmed.csv."""
    best, sha256 = ranked(study)[0], data.load(options.config.data, options.config.data_dir).sha256
    if sha256 != study.user_attrs["settings"]["data_sha256"]:
        raise StudyError(f"study {study.study_name}: its data are others now; bring back those it began with")
    methods = {GIVEN: options.config}
    methods[f"trial {best.number}"] = suggest(FixedTrial(best.params), options.config, options.searched)
    payloads = [
        {"method": method, "fold": fold, "data_sha256": sha256, "config": asdict(replace(config, fold=fold, seed=fold))}
        for fold in COMPARISON_FOLDS[: options.confirm]
        for method, config in methods.items()
    ]
    place = {"workers": options.workers, "scheduler": options.scheduler, "preload": ["search"]}
    runs = cluster.run_all(confirmed, payloads, options.folder / "confirm", label=lambda one: one["method"], **place)
    rows = [payload | run.result for payload, run in zip(payloads, runs, strict=True)]
    report.write_csv(options.folder / "confirmed.csv", [{k: row[k] for k in row if k != "config"} for row in rows])


def confirmed(payload: dict, folder: Path) -> dict:
    """One run on all splits: its status, and its measurement at the lowest validation cost."""
    result = train(Config(**payload["config"]), folder, quiet=True)
    (folder / "last.pt").unlink(missing_ok=True)
    return {"status": result["status"]} | result["best"]


# --- report ----------------------------------------------------------------------------------------------------------


def report_lines(study: optuna.Study, options: SearchOptions) -> list[str]:
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    failed = [trial for trial in done if trial.state == TrialState.FAIL]
    complete = ranked(study)
    counts = f"{len(done)} trials: {len(complete)} complete, {len(done) - len(complete) - len(failed)} pruned"
    counts += f", {len(failed)} failed"
    if not complete:
        reason = f", the last one: {failed[-1].user_attrs['reason']}" if failed else ""
        raise StudyError(f"study {study.study_name}: {counts}{reason}; run more --trials")
    best, folds = complete[0], " and ".join(map(str, TUNING_FOLDS[: options.folds_per_trial]))
    config = suggest(FixedTrial(best.params), options.config, options.searched)
    lines = [f"# Study {study.study_name}", "", f"{counts}."]
    lines += [f"The cost of a trial is the lowest validation cost of its run, the mean over fold {folds}.", ""]
    lines += [f"## The best: trial {best.number}, validation cost {best.value:.4f}", ""]
    lines += ["```sh", command(replace(config, histograms=Config.histograms)), "```", ""]
    for name, one in best.distributions.items():
        if name in SPACE and statistics.at_border(best.params[name], one.low, one.high, one.log):
            lines += [f"**Warning:** {name} {best.params[name]:.3g} is at the border of its range, {one.low:g} to "
                      f"{one.high:g}; a wider one may hold a better value.", ""]  # fmt: skip
    rows = []
    for trial in complete[:10]:
        used = {name: value for name, value in trial.params.items() if not name.startswith("use_")}
        settings = (f"{name} {value if isinstance(value, str) else f'{value:.3g}'}" for name, value in used.items())
        rows.append([str(trial.number), f"{trial.value:.4f}", f"{trial.user_attrs['error']:.2%}", ", ".join(settings)])
    header = ["trial", "validation cost", "error there", "settings"]
    lines += ["## The best ten", "", *report.markdown_table(header, rows), ""]
    if failed:
        rows = [[str(trial.number), trial.user_attrs["reason"]] for trial in failed]
        lines += ["## Failed trials", "", *report.markdown_table(["trial", "reason"], rows), ""]
    confirmed = options.folder / "confirmed.csv"
    return lines + (confirmation_lines(report.read_csv(confirmed)) if confirmed.exists() else [])


def confirmation_lines(rows: list[dict]) -> list[str]:
    groups, cells = statistics.runs_by_method(rows), []
    errors = [[row["error/test"] for row in runs] for runs in groups.values()]
    pairs = [None, *statistics.tested([statistics.paired_differences(*reversed(errors))])]
    for (method, runs), pair in zip(groups.items(), pairs, strict=True):
        cost, half = statistics.mean_and_interval([row["loss/val"] for row in runs])
        percent = (report.in_percent([row[f"error/{split}"] for row in runs]) for split in ("val", "test"))
        cells.append([method, f"{cost:.4f} ± {half:.4f}", *percent, *report.difference_cells(pair)])
    header = ["", "validation cost", "val error %", "test error %", *report.DIFFERENCE_HEADER]
    note = "Each run at its lowest validation cost, the one on fold k with seed k: mean over the folds and its 95 % "
    note += f"interval. {sum(row['status'] == 'diverged' for row in rows)} of {len(rows)} runs diverged. "
    title = f"## Confirmed on folds {rows[0]['fold']} to {rows[-1]['fold']}, which the search never saw"
    return [title, "", *report.markdown_table(header, cells), "", note + report.VERDICT_NOTE, ""]


def draw(study: optuna.Study, folder: Path) -> list[str]:
    """Writes Optuna's own figures in `folder`; returns their names."""
    drawn = ["optimization_history", "param_importances", "slice"][: 3 if len(ranked(study)) > 3 else 1]
    for name in drawn:
        with figures.reproducible_figures(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's plots say so where trials are few
            plot = getattr(optuna.visualization.matplotlib, f"plot_{name}")
            axes = np.atleast_1d(plot(study, target_name="validation cost"))
            axes[0].figure.set_size_inches(max(8, 3.2 * len(axes)), 4.5)
            if name != "param_importances":
                axes[0].set_yscale("log")  # else one hopeless trial flattens all others
            figures.save_figure(axes[0].figure, folder / name)
    return drawn


# --- the command line ------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    with errors_in_one_line(data.DataError, RunError, StudyError, statistics.ReportError):
        options = parse(SearchOptions, argv)
        if options.report:
            allowed = ("report", "storage", "studies_dir", "confirm", "workers", "scheduler")
            if options != SearchOptions(**{name: getattr(options, name) for name in allowed}):
                wrong_arguments(f"--report {options.report}: has settings of its own; beside it are allowed "
                                f"{', '.join(map(flag, allowed[1:]))}")  # fmt: skip
            options, study = of_study(options)
        else:
            options = prepared(options)
            options = replace(options, config=replace(options.config, histograms=0))
            study = search(options)
        if options.confirm and ranked(study):
            confirm(study, options)
        lines = report_lines(study, options)
        pictures = [f"![{name}]({name}.png)\n" for name in draw(study, options.folder)]
        report.write_text(options.folder / "report.md", "\n".join([*lines, *pictures]))
        print("\n".join(lines))
        print(f"written to {options.folder / 'report.md'}, with figures")
        print(f"look at the runs: tensorboard --logdir {shlex.quote(str(options.folder / 'runs'))}")


if __name__ == "__main__":
    from search import main  # workers know it by its name

    main()
