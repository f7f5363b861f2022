"""The class's sentences, tested: each one is a sweep of one setting over values, for a few methods, on several folds.

    python sentences.py                  all seven
    python sentences.py dropout          one of them, by its name or its number
    python sentences.py 6 --folds 2      on fewer folds
    python sentences.py --report         rebuilds the published tables and figures, and trains nothing

The runs are shared by any number of workers and machines, and none is run twice. Methods are as compare.py tuned them.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

import compare
import data
from compare import AVERAGED, METHODS, NUISANCES, tuned_settings
from data import COMPARISON_FOLDS
from planned import (
    BASE,
    ONE_LOOK,
    dataset_of,
    folder_of_choice,
    other_settings,
    plan,
    run_all,
    study_folder,
)
from support import report, statistics, workers
from support.run import RunError, prepared
from support.shell import between, checked, errors_in_one_line, flag, given_flags, parse, refuse_given, wrong_arguments
from support.space import SPACE
from support.sweeps import write_report
from support.verdicts import COST
from train import Config

# --- the sentences ---------------------------------------------------------------------------------------------------


class Sweep(NamedTuple):
    """A line of a figure: `axis`, a setting of Config, over `values`.

    Two axes are none of Config: "networks", of which the outputs are averaged, and "masks" of dropout (0: none, the
    network as usual), over which the outputs of one network are averaged.
    """

    method: str  # name of the line
    axis: str
    values: tuple
    settings: dict  # what differs from the defaults of Config, or from what was tuned
    tuned: str = ""  # method of compare.py whose tuned settings hold


class Sentence(NamedTuple):
    name: str
    claim: str  # in our words
    sweeps: Sequence[Sweep]  # none: it is read off the results of compare.py
    drawn: Sequence[str]  # columns, a panel each
    x: str = "value"  # column
    log: bool = True  # whether x is logarithmic
    epochs: int = 0  # other than the default
    same_updates: bool = False  # as many as with the default fraction and batch size, as nearly as whole epochs allow


def as_tuned(methods: Sequence[str], axis: str, values: tuple) -> list[Sweep]:
    return [Sweep(method, axis, values, {}, method) for method in methods]


def normalised(axis: str, values: tuple, **more) -> list[Sweep]:
    norms = {"none": {}, "batch norm": {"norm": "batch"}, "layer norm": {"norm": "layer"}}
    return [Sweep(method, axis, values, settings | more) for method, settings in norms.items()]


def geometric(low: float, high: float, steps: int) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in np.geomspace(low, high, steps))


PENALTIES = {"L1": "l1", "L2": "l2", "weight decay": "weight_decay"}
STRENGTHS = {method: (0.0, *geometric(*SPACE[name][:2], 8)) for method, name in PENALTIES.items()}
AT_DEFAULT = {"lr": 1e-3, "schedule": "constant"} | ONE_LOOK

SENTENCES = (
    Sentence(
        "fraction",
        "Regularisation shows an effect only where the training images are few, such as 5 %.",
        as_tuned(
            ("baseline", "L2", "dropout", "batch norm", "geometric", "elastic"),
            "fraction",
            (0.005, 0.01, 0.05, 0.2, 0.5, 0.9),
        ),
        ("error/test", "ratio"),
        x="images",
        same_updates=True,
    ),
    Sentence(
        "lambda",
        "The stronger the penalty, the nearer the weights are to 0.",
        [
            *(Sweep(method, name, STRENGTHS[method], ONE_LOOK, method) for method, name in PENALTIES.items()),
            *(Sweep(f"{method} (lr 0.001)", name, STRENGTHS[method], AT_DEFAULT) for method, name in PENALTIES.items()),
        ],
        ("rms", "small", "loss/train", "error/test"),
    ),
    Sentence(
        "dropout",
        "Dropout comes close to averaging several networks that were trained apart, and costs less.",
        [
            Sweep("baseline", "networks", AVERAGED["baseline"], {}, "baseline"),
            Sweep("dropout", "masks", (0, 50), {}, "dropout"),
        ],
        ("error/test",),
        x="seconds",
    ),
    Sentence(
        "normalisation",
        "With centred and reduced inputs of its layers, a network learns faster and more stably.",
        normalised("lr", geometric(1e-4, 1e-1, 7), evaluations=30),
        ("epochs to cost", "never", "error/test"),
        epochs=300,
    ),
    Sentence(
        "batch-size",
        "Layer norm serves where there is little data to estimate mean and variance from.",
        normalised("batch_size", (2, 4, 10, 30, 100, 300)),
        ("error/test",),
        same_updates=True,
    ),
    Sentence(
        "rotation",
        "Transformations help as long as they do not change the class.",
        as_tuned(("baseline",), "rotate", (0.0, 5.0, 10.0, 15.0, 30.0, 60.0, 90.0, 180.0)),
        ("error/test", "6 and 9"),
        log=False,
    ),
    Sentence("combination", "Some methods can be combined.", [], ("effect",), log=False),
)

# --- settings --------------------------------------------------------------------------------------------------------

PUBLISHED = Path(__file__).parent / "figures" / "sentences"


@checked
class SentencesOptions:
    """Test the sentences of the table in sentences.py. A setting of train.py, given here, holds for all."""

    sentence: tyro.conf.Positional[str] = ""  # name or number of the only one
    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=lambda: BASE)
    folds: Annotated[int, between(2, len(COMPARISON_FOLDS))] = 5  # how many of those that compare
    report: bool = False  # train nothing: rebuild the published tables and figures from their files
    workers: Annotated[int, between(1, 1000)] = 2  # processes, with one thread each
    storage: str = field(default="", repr=False)  # URL of a database that machines share; by default a journal file
    studies_dir: str = "studies"  # folder of all studies; the runs are in its folder compare

    def __post_init__(self):
        chosen(self.sentence)


def chosen(text: str) -> list[Sentence]:
    names = {key: one for number, one in enumerate(SENTENCES, start=1) for key in (one.name, str(number))}
    if text and text not in names:
        allowed = ", ".join(f"{number} {one.name}" for number, one in enumerate(SENTENCES, start=1))
        raise ValueError(f"{text}: there is no such sentence; allowed are number or name: {allowed}")
    return [names[text]] if text else list(SENTENCES)


def refuse_what_is_ignored(options: SentencesOptions, argv: Sequence[str]) -> None:
    """Ends the program if one of the arguments, even with the value of its default, would change nothing."""
    if options.report and (len(given_flags(argv)) > 1 or options.sentence):
        wrong_arguments("--report: rebuilds what is published as it is; drop the other arguments")
    refused = dict.fromkeys(
        ("--fold", "--seed"), "the folds are the first ones that compare, each with its number as seed; see --folds"
    )
    for one in chosen(options.sentence):
        for sweep in one.sweeps:
            tuned = [*NUISANCES, *METHODS[sweep.tuned]] if sweep.tuned else []
            own = f"sentence {one.name} sets its own; drop it, or change SENTENCES in sentences.py"
            refused |= dict.fromkeys(map(flag, [sweep.axis, *sweep.settings, *tuned]), own)
    refuse_given(argv, refused)


# --- runs ------------------------------------------------------------------------------------------------------------

OF_A_RUN = ("networks", "masks")  # axes along which one run serves all values


def config_of(one: Sentence, sweep: Sweep, value: object, fold: int, base: Config) -> Config:
    """The settings of the run of `sweep` at `value`; `base` are those of all its runs."""
    settings = {} if sweep.axis in OF_A_RUN else {sweep.axis: value}
    config = replace(base, fold=fold, seed=fold, **settings)
    if one.epochs and config.epochs == BASE.epochs:
        return replace(config, epochs=one.epochs)
    return replace(config, epochs=epochs_of(config)) if one.same_updates else config


def epochs_of(config: Config) -> int:
    """The number of epochs with which `config` makes as many updates as it does with default fraction and batch."""

    def batches(fraction: float, batch_size: int) -> int:
        train, _ = data.split_indices(dataset_of(config).train_labels, config.fold, fraction)
        return math.ceil(len(train) / batch_size)

    updates = config.epochs * batches(BASE.fraction, BASE.batch_size)
    return max(1, round(updates / batches(config.fraction, config.batch_size)))


def rows_of(one: Sentence, options: SentencesOptions) -> list[dict]:
    """The rows of a sentence's file: what was measured, by method, value and fold; only what is missing is run."""
    planned = []
    for sweep in one.sweeps:
        kind = {sweep.axis: list(sweep.values)} if sweep.axis in OF_A_RUN else {}
        tuned = tuned_settings([sweep.tuned])[sweep.tuned] if sweep.tuned else {}
        base = replace(options.config, **(tuned | sweep.settings))
        for fold in COMPARISON_FOLDS[: options.folds]:
            for value in sweep.values:
                planned.append((sweep, value, fold, plan(config_of(one, sweep, value, fold, base), **kind)))
    planned.sort(key=lambda each: each[2])  # fold after fold
    rows = []
    for (sweep, value, fold, _), over in zip(planned, run_all([each[3] for each in planned], options), strict=True):
        measured = over.result[str(value)] if sweep.axis in OF_A_RUN else of_network(over.result)
        rows.append({"method": sweep.method, "axis": sweep.axis, "value": value, "fold": fold} | measured)
    return rows


def of_network(found: dict) -> dict:
    """What the figures need of a trained network. What is None cannot be told: it diverged, or never came there."""
    result, last = found["result"], found["result"]["last"]
    row = {"status": result["status"], "images": result["sizes"]["train"], "updates": result["step"]}
    row |= {name: last[name] for name in ("epoch", "loss/train", "error/val", "error/test")}
    row |= {"seconds": result["seconds"], "epochs to cost": epochs_to(COST, found["curves"])}
    row |= {name: found.get("weights", {}).get(name) for name in ("rms", "small")}
    for digit, answer in ((6, 9), (9, 6)):
        row[f"{digit} as {answer}"] = found["confusions"][digit][answer] if "confusions" in found else None
    return row


def epochs_to(cost: float, curves: dict[str, list[float]]) -> float | None:
    """After how many epochs the training cost comes to `cost`: between two looks, by its logarithm; None for never."""
    looks = list(zip(curves["epoch"], curves["loss/train"], strict=True))
    for (before, high), (after, low) in zip([looks[0], *looks], looks, strict=False):
        if low <= cost:
            high, low = math.log(high), math.log(max(low, 1e-30))
            share = (high - math.log(cost)) / (high - low) if high > low else 1.0
            return before + share * (after - before)
    return None


def combinations(path: Path) -> list[dict]:
    """Rows of the last sentence: by combination of two parts and fold, what each changes in the baseline's error.

    Read off the results.csv of compare.py; the better part is the one with the lower mean validation error.
    """
    groups = statistics.runs_by_method(report.read_csv(path, ("error/val", "error/test"))) if path.exists() else {}
    rows = []
    for whole, parts in compare.PARTS.items():
        if len(parts) != 2 or not {whole, *parts, statistics.BASELINE} <= groups.keys():
            continue
        parts = sorted(parts, key=lambda part: np.mean([run["error/val"] for run in groups[part]]))
        for four in zip(*(groups[name] for name in (statistics.BASELINE, *parts, whole)), strict=True):
            baseline, better, other, both = (run["error/test"] for run in four)
            effects = {"better part": better - baseline, "other part": other - baseline}
            effects |= {"sum of both": better + other - 2 * baseline, "combination": both - baseline}
            fold = four[0]["fold"]
            rows += [{"method": m, "value": whole, "fold": fold, "effect": e} for m, e in effects.items()]
    return rows


# --- the command line ------------------------------------------------------------------------------------------------


def results_folder(options: SentencesOptions) -> Path:
    """One for each choice of settings, data and folds, so that no quick look touches another's files."""
    folds = [f"folds={options.folds}"] if options.folds != SentencesOptions.folds else []
    return folder_of_choice(Path(options.studies_dir) / "sentences", other_settings(options.config) + folds)


def compared(options: SentencesOptions) -> Path:
    """The results of compare.py with these settings and on these data: the published ones, or else its own."""
    if options.report or not other_settings(options.config):
        return compare.PUBLISHED / "results.csv"
    mine = compare.CompareOptions(options.config, studies_dir=options.studies_dir)
    return compare.results_folder(mine) / "results.csv"


def write_rows(folder: Path, chosen: Sequence[Sentence], options: SentencesOptions) -> None:
    """The CSV file of each sentence; none where compare.py has no results."""
    for one in chosen:
        results = None if one.sweeps else compared(options)
        if rows := combinations(results) if results else rows_of(one, options):
            report.write_csv(folder / f"{one.name}.csv", rows)
        elif not options.report:
            print(f"{one.name}: left out, since {results} is missing; run python compare.py with these settings")


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    with errors_in_one_line(data.DataError, RunError, workers.StudyError, statistics.ReportError):
        options = parse(SentencesOptions, argv)
        refuse_what_is_ignored(options, argv)
        if options.report:
            PUBLISHED.mkdir(parents=True, exist_ok=True)
            write_rows(PUBLISHED, [one for one in SENTENCES if not one.sweeps], options)
            print("\n".join(write_report(PUBLISHED, SENTENCES, list(METHODS))))
            return
        options = prepared(options)
        folder = results_folder(options)
        write_rows(folder, chosen(options.sentence), options)
        print("\n".join(write_report(folder, SENTENCES, list(METHODS))))
        print(f"\ntables and figures: {folder}")
        print(f"the runs:           tensorboard --logdir {study_folder(options) / 'runs'}")


if __name__ == "__main__":
    main()
