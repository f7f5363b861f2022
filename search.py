"""Search hyper-parameters with Optuna: the lowest validation cost on the 95 %, over combinations of regularisations.

python search.py --trials 60 --workers 2
python search.py --norm batch --search lr,l2,dropout --study with-batch-norm

The sampler knows which trials are over and which are running, so another number of workers finds other trials.
"""

import re
import shlex
import warnings
from collections.abc import Collection
from dataclasses import asdict, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import optuna
import tyro
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState

import data
from data import COMPARISON_FOLDS, TUNING_FOLDS
from support import cluster, figures, report, statistics
from support.cluster import Failed, StudyError
from support.run import RunError, alone, check_identity, command, warn
from support.shell import Folder, as_text, between, checked, errors_in_one_line, flag, parse
from support.space import SPACE
from train import Config, resolved, train

KINDS = {"schedule": ["constant", "one-cycle"], "init": ["default", "glorot", "he"], "norm": ["none", "batch", "layer"]}
SWITCHED = ("l1", "l2", "weight_decay", "dropout", "noise", "geometry")  # used, with a strength, or not
GEOMETRY = ("rotate", "zoom", "shift", "shear", "elastic")  # used together
SEARCHABLE = ("lr", *KINDS, *SWITCHED)

# --- settings --------------------------------------------------------------------------------------------------------


@checked
class SearchOptions:
    """Search the settings that --search names; all others are what is given, or their defaults."""

    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=Config)
    search: str = "lr,norm,l1,l2,dropout"  # of lr,schedule,init,norm,l1,l2,weight_decay,dropout,noise,geometry
    study: str = "search"  # its name; the same name again goes on with the same study
    trials: Annotated[int, between(1, 1_000_000)] = 60  # finished ones, over all commands
    workers: Annotated[int, between(1, 1000)] = 2  # processes, with one thread each
    scheduler: str = ""  # such as tcp://host:8786, to use the machines that run `dask worker` instead
    studies_dir: Folder = "studies"  # the study is kept in search/<study> in there
    prune: bool = True  # stop hopeless trials early
    confirm: Annotated[int, between(0, len(COMPARISON_FOLDS))] = 0  # run the best on so many other folds, 6 or more

    def __post_init__(self):
        if not re.fullmatch(r"(?!\.)[\w.-]+", self.study):
            raise ValueError(f"--study {self.study}: allowed are letters, digits, - _ . and no . first")
        names = self.search.replace("-", "_").split(",")
        if unknown := set(names) - set(SEARCHABLE):
            raise ValueError(f"--search {','.join(unknown)}: allowed are {', '.join(SEARCHABLE)}, with commas between")
        for name in names:
            for setting in GEOMETRY if name == "geometry" else [name]:
                if (value := getattr(self.config, setting)) != getattr(Config, setting):
                    raise ValueError(f"{flag(setting)} {as_text(value)}: {name} is to be searched; drop one of the two")
        if self.config.fold not in TUNING_FOLDS:
            raise ValueError(f"--fold {self.config.fold}: allowed for a search are {TUNING_FOLDS}; the others confirm")

    @property
    def searched(self) -> list[str]:
        return [name for name in SEARCHABLE if name in self.search.replace("-", "_").split(",")]

    @property
    def folder(self) -> Path:
        return Path(self.studies_dir).resolve() / "search" / self.study


# --- the search ------------------------------------------------------------------------------------------------------


def suggest(trial: optuna.Trial | FixedTrial, fixed: Config, searched: Collection[str]) -> Config:
    """The settings of a trial: those of `fixed`, but for what is `searched`, of which SPACE holds the ranges.

    A strength is asked for only where its regularisation is used.
    """

    def strength(name: str) -> float:
        low, high, log = SPACE[name]
        return trial.suggest_float(name, low, high, log=log)

    found = {"lr": strength("lr")} if "lr" in searched else {}
    for name, choices in KINDS.items():
        if name in searched:
            found[name] = trial.suggest_categorical(name, choices)
    for name in SWITCHED:
        if name in searched and trial.suggest_categorical(f"use_{name}", [False, True]):
            found |= {setting: strength(setting) for setting in (GEOMETRY if name == "geometry" else [name])}
    return replace(fixed, **found)


def trial_cost(trial: optuna.Trial, folder: Path, options: SearchOptions) -> float:
    """Trains one trial: its lowest validation cost. The test images stay aside."""
    config = suggest(trial, options.config, options.searched)

    def report_cost(row: dict, best: dict) -> None:
        trial.report(best["loss/val"], row["epoch"])
        if options.prune and trial.should_prune():
            (folder / "last.pt").unlink(missing_ok=True)  # nobody goes on with it
            raise optuna.TrialPruned

    result = train(config, folder, ("train", "val"), quiet=True, on_evaluation=report_cost)
    (folder / "last.pt").unlink(missing_ok=True)
    if result["status"] == "diverged":
        raise Failed(f"diverged after {result['step']} updates")
    trial.set_user_attr("error", result["best"]["error/val"])
    return result["best"]["loss/val"]


def open_study(options: SearchOptions) -> optuna.Study:
    """The study, begun or gone on with; in the command and in each of its workers."""
    journal = str(options.folder / "journal.log")  # Optuna's own lock outlives its owner
    try:
        storage = JournalStorage(cluster.Journal(journal, FileLock(f"{journal}.lock")))
        study = optuna.create_study(storage=storage, study_name=options.study, load_if_exists=True)
        words = [options.config.seed, len(study.trials)]
    except Exception as error:
        fault = f"{journal}: damaged or out of reach ({type(error).__name__})"
        raise StudyError(f"{fault}; take another --study") from None
    # asynchronous successive halving: at 40, 80, 160 ... epochs the better half of those that came so far goes on.
    # Replayed over 22 complete trials of 1000 epochs, this took 23 % of the epochs and lost no best one
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=40, reduction_factor=2)
    seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
    return study


def search(options: SearchOptions) -> optuna.Study:
    """Runs trials until `options.trials` are finished. Data set and device of its config are resolved."""
    settings = asdict(options.config) | {"data_sha256": data.load(options.config.data, options.config.data_dir).sha256}
    settings |= {"search": ",".join(options.searched), "prune": options.prune, "hidden": list(options.config.hidden)}
    with alone(options.folder):
        study = open_study(options)
        check_identity(options.folder, study.user_attrs.get("settings", settings), settings)
        study.set_user_attr("settings", settings)
        cluster.run_trials(
            partial(trial_cost, options=options), study, options.folder, trials=options.trials,
            settings_of=lambda trial: settings | asdict(suggest(trial, options.config, options.searched)),
            open_study=partial(open_study, options), workers=options.workers, scheduler=options.scheduler,
            describe=lambda study: f"best cost {study.best_value:.4f}" if complete(study) else "", preload=["search"],
        )  # fmt: skip
    return study


def complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


# --- report and confirmation ------------------------------------------------------------------------------------------


def describe(study: optuna.Study, options: SearchOptions) -> list[str]:
    """Paragraphs on the trials and the best one; StudyError if none is complete."""
    over = [trial for trial in study.trials if trial.state.is_finished()]
    reasons = [trial.user_attrs["reason"] for trial in over if trial.state == TrialState.FAIL]
    found = len(complete(study))
    counts = f"{len(over)} trials: {found} complete, {len(over) - found - len(reasons)} pruned, {len(reasons)} failed"
    counts += f", the last one: {reasons[-1]}" if reasons else ""
    if not found:
        raise StudyError(f"study {study.study_name}: {counts}; run more --trials")
    best = study.best_trial
    config = suggest(FixedTrial(best.params), options.config, options.searched)
    paragraphs = [
        f"# Study {study.study_name}",
        f"{counts}. The cost of a trial is the lowest validation cost of its run, on fold {options.config.fold}.",
        f"## The best: trial {best.number}, validation cost {best.value:.4f}, error {best.user_attrs['error']:.2%}",
        f"```sh\n{command(replace(config, histograms=Config.histograms))}\n```",
    ]
    for name, value in best.params.items():
        if name in SPACE and statistics.at_border(value, *SPACE[name]):
            space = "{:g} to {:g}".format(*SPACE[name])
            paragraphs.append(
                f"**Warning:** {name} {value:.3g} is at the border of its range, {space}; try a wider one."
            )
    return paragraphs


def confirm(study: optuna.Study, options: SearchOptions) -> list[str]:
    """Paragraphs on the best trial beside the settings given, on folds on which the search did not train."""
    best, folds = study.best_trial, COMPARISON_FOLDS[: options.confirm]
    methods = {"the settings given": options.config}
    methods[f"trial {best.number}"] = suggest(FixedTrial(best.params), options.config, options.searched)
    sha256 = study.user_attrs["settings"]["data_sha256"]
    payloads = [
        {"method": method, "fold": fold, "data_sha256": sha256, "config": asdict(replace(config, fold=fold, seed=fold))}
        for fold in folds
        for method, config in methods.items()
    ]
    place = {"workers": options.workers, "scheduler": options.scheduler, "preload": ["search"]}
    over = cluster.run_all(confirmed, payloads, options.folder / "confirm", label=lambda one: one["method"], **place)
    given, found = ([one.result for one in over[first::2]] for first in (0, 1))
    differences = statistics.paired_differences(*([run["error/test"] for run in runs] for runs in (found, given)))
    rows = []
    for method, runs, tested in zip(methods, (given, found), (None, *statistics.tested([differences])), strict=True):
        cost = np.mean([run["loss/val"] for run in runs])
        errors = (report.in_percent([run[f"error/{split}"] for run in runs]) for split in ("val", "test"))
        rows.append([method, f"{cost:.4f}", *errors, *report.difference_cells(tested)])
    header = ["", "validation cost", "val error %", "test error %", *report.DIFFERENCE_HEADER]
    note = "Each run at its lowest validation cost, that on fold k with seed k: means over the folds, 95 % intervals. "
    return [
        f"## Confirmed on folds {folds[0]} to {folds[-1]}, on which the search did not train",
        "\n".join(report.markdown_table(header, rows)),
        note + report.VERDICT_NOTE,
    ]


def confirmed(payload: dict, folder: Path) -> dict:
    """One run on all splits: its measurement at the lowest validation cost."""
    result = train(Config(**payload["config"]), folder, quiet=True)
    (folder / "last.pt").unlink(missing_ok=True)
    return result["best"]


# --- the command line ------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # that something is experimental, or that trials are few
    with errors_in_one_line(data.DataError, RunError, StudyError):
        options = parse(SearchOptions, argv)
        config, dataset = resolved(replace(options.config, histograms=0))
        warn(dataset)
        options = replace(options, config=config)
        study = search(options)
        text = describe(study, options) + (confirm(study, options) if options.confirm else [])
        if len(complete(study)) > 3:  # else Optuna cannot tell which settings matter
            with figures.reproducible_figures():
                axis = optuna.visualization.matplotlib.plot_param_importances(study, target_name="validation cost")
                axis.figure.set_layout_engine("constrained")  # else long names are cut off
                figures.save_figure(axis.figure, options.folder / "param_importances")
            text.append("![How much each setting matters](param_importances.png)")
        report.write_text(options.folder / "report.md", "\n\n".join(text) + "\n")
        print(*text, sep="\n\n")
        print(f"\nwritten to {options.folder / 'report.md'}")
        print(f"look at the runs: tensorboard --logdir {shlex.quote(str(options.folder / 'runs'))}")


if __name__ == "__main__":
    from search import main  # workers know it by its name

    main()
