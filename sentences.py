"""The class's sentences, tested: each one is a sweep of one setting over values, for a few methods, on several folds.

    python sentences.py                  all seven
    python sentences.py dropout          one of them, by its name or its number
    python sentences.py 6 --folds 2      on fewer folds, which tell less
    python sentences.py --report         rebuilds the published tables and figures, and trains nothing

No run is made twice: the same command goes on where it was cut off. Methods are as compare.py tuned them.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro

import compare
import data
import planned
from compare import PARTS, tuned_settings
from data import COMPARISON_FOLDS, TUNING_FOLDS
from planned import BASE, ONE_LOOK, PlannedOptions, dataset_of, plan, run_plans
from support import cluster, report, shell
from support.run import RunError
from support.space import SPACE
from support.statistics import PLAIN, ReportError
from support.sweeps import write_sentences
from support.verdicts import CONSTANT, COST, RETUNED
from train import Config

# --- the sentences ---------------------------------------------------------------------------------------------------

SCHEDULE = "one-cycle"  # it anneals for every method, and no run ends on a jump


class Sweep(NamedTuple):
    """A line of a figure: `axis`, a setting of Config, over `values`.

    One axis is none of Config: "networks", whose outputs are averaged; a single run serves all its values.
    """

    method: str  # name of the line
    axis: str
    values: tuple
    settings: dict  # what differs from the defaults of Config, or from what was tuned
    tuned: str = ""  # method of compare.py whose settings hold, as tuned
    schedule: str = SCHEDULE  # under which it was tuned


class Sentence(NamedTuple):
    name: str
    claim: str  # in our words
    runs: str  # which ones it is judged on
    sweeps: Sequence[Sweep] = ()  # none: it is read off the published results of compare.py
    drawn: Sequence[str] = ()  # columns, a panel each
    log: bool = True  # whether the values are drawn on a logarithmic axis
    epochs: int = 0  # other than the default


def normalised(axis: str, values: tuple, **more) -> list[Sweep]:
    norms = {"none": {}, "batch norm": {"norm": "batch"}, "layer norm": {"norm": "layer"}}
    return [Sweep(method, axis, values, settings | more) for method, settings in norms.items()]


def spaced(low: float, high: float, steps: int) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in np.geomspace(low, high, steps))


AVERAGED = {PLAIN: (1, 2, 3, 5, 10), "dropout": (1, 5), "everything": (1, 5)}  # of how many networks
SHARES, LARGEST = (0.005, 0.01, 0.05, 0.2, 0.5, 0.9), 0.9
RETUNED_METHODS = (PLAIN, "L2", "dropout", "batch norm", "geometric", "elastic")
RETUNED_POINTS = 8  # of each one's design, tried anew at the largest fraction
PENALTIES = {  # the weakest is weak for Adam too, whose steps are as long however small a gradient is, down to 1e-8
    "L1": ("l1", (0.0, *spaced(1e-10, 1e-3, 8))),
    "L2": ("l2", (0.0, *spaced(1e-8, 1e-1, 8))),
    "weight decay": ("weight_decay", (0.0, *spaced(1e-5, 10, 7))),
}
AT_DEFAULT = {"lr": 1e-3, "schedule": "constant"} | ONE_LOOK

SENTENCES = (
    Sentence("fraction", "Regularisation shows an effect only where the training images are few, such as 5 %.",
        "About 10,000 updates under one-cycle, as tuned on 5 %; on 90 % also as retuned there, on the folds 0 to 2, "
        f"with {RETUNED_POINTS} points a method and those taken over (fraction-tuned.csv).",
        [Sweep(method, "fraction", SHARES, {}, method) for method in RETUNED_METHODS]
        + [Sweep(method + RETUNED, "fraction", (LARGEST,), {}, method) for method in RETUNED_METHODS],
        ("error/test", "ratio")),
    Sentence("lambda", "The stronger the penalty, the nearer the weights are to 0.",
        "Each penalty, but for its strength, as tuned under one-cycle, and at a constant learning rate of 0.001.",
        [Sweep(method, *axis, ONE_LOOK, method) for method, axis in PENALTIES.items()]
        + [Sweep(f"{method} (lr 0.001)", *axis, AT_DEFAULT) for method, axis in PENALTIES.items()],
        ("rms", "small", "loss/train", "error/test")),
    Sentence("dropout", "Dropout comes close to averaging several networks that were trained apart, and costs less.",
        "As tuned under each schedule, networks of one fold and other seeds; mean over disjoint groups of so many.",
        [Sweep(method, "networks", many, {}, method) for method, many in AVERAGED.items()]
        + [Sweep(one + CONSTANT, "networks", AVERAGED[one], {}, one, "constant") for one in (PLAIN, "dropout")],
        ("error/test",)),
    Sentence("normalisation", "With centred and reduced inputs of its layers, a network learns faster and more stably.",
        "300 epochs at a constant learning rate, otherwise the class's recipe.",
        normalised("lr", spaced(1e-4, 1, 9), evaluations=30), ("epochs to cost", "never", "error/test"), epochs=300),
    Sentence("batch-size", "Layer norm serves where there is little data to estimate mean and variance from.",
        "About 10,000 updates at a constant learning rate of 0.001, otherwise the class's recipe.",
        normalised("batch_size", (2, 4, 10, 30, 100, 300)), ("error/test",)),
    Sentence("rotation", "Transformations help as long as they do not change the class.",
        "The plain network, as tuned under one-cycle, with every training image turned by up to so many degrees.",
        [Sweep(PLAIN, "rotate", (0.0, 5.0, 10.0, 15.0, 30.0, 60.0, 90.0, 180.0), {}, PLAIN)],
        ("error/test", "6 and 9"), log=False),
    Sentence("combination", "Some methods can be combined.",
        "Those of compare.py, under both schedules, each method as tuned under it."),
)  # fmt: skip

PUBLISHED_SENTENCES = Path(__file__).parent / "figures" / "sentences"
NAMES = ("all", *(one.name for one in SENTENCES), *map(str, range(1, len(SENTENCES) + 1)))


@shell.checked
class SentencesOptions(PlannedOptions):
    """Test the sentences of the table in sentences.py."""

    sentence: tyro.conf.Positional[Literal[NAMES]] = "all"  # by name, or by number
    folds: Annotated[int, shell.between(2, len(COMPARISON_FOLDS))] = 5  # how many of those that compare


def chosen_sentences(text: str) -> list[Sentence]:
    return [one for number, one in enumerate(SENTENCES, start=1) if text in ("all", one.name, str(number))]


def config_of(one: Sentence, sweep: Sweep, value: object, fold: int, base: Config) -> Config:
    """The settings of the run of `sweep` at `value`; `base` are those of all its runs."""
    settings = {} if sweep.axis == "networks" else {sweep.axis: value}
    config = replace(base, fold=fold, seed=fold, **settings)
    if one.epochs and config.epochs == BASE.epochs:
        return replace(config, epochs=one.epochs)
    return replace(config, epochs=epochs_of(config)) if sweep.axis in ("fraction", "batch_size") else config


def epochs_of(config: Config) -> int:
    """With how many epochs it makes as many updates as with default fraction and batch, as nearly as they allow."""

    def batches(one: Config) -> int:
        return math.ceil(len(data.split_indices(labels, config.fold, one.fraction)[0]) / one.batch_size)

    labels = dataset_of(config).train_labels
    return max(1, round(config.epochs * batches(BASE) / batches(config)))


def retuned(options: SentencesOptions, path: Path) -> dict[str, dict]:
    """RETUNED_METHODS tuned on the LARGEST share of the images, on the folds that tune; writes every point to `path`.

    Tried are the first points of compare.py's design, the plain network's optimum with what a method adds at its
    weakest, and the method's own optimum at 5 %.
    """
    base = replace(options.config, fraction=LARGEST, **ONE_LOOK)
    base, known, rows, optima = replace(base, epochs=epochs_of(base)), {}, [], {}
    for stage in ((PLAIN,), RETUNED_METHODS[1:]):
        groups = []
        for method, own in tuned_settings(stage, SCHEDULE).items():
            group = compare.points(method, SCHEDULE, optima, base)
            group = [row for row in group if row["trial"] < RETUNED_POINTS or row["origin"] != "design"]
            own = {"settings": own, "command": compare.command_of(replace(base, **own)), "border": ""}
            groups.append([*group, group[0] | own | {"origin": "5 %", "trial": compare.POINTS + len(group)}])
        compare.measure(groups, known, base, options)
        rows += [row for group in groups for row in group]
        optima = {row["method"]: row["settings"] for row in rows if row["chosen"]}
    report.write_tuned(path, rows, list(SPACE), TUNING_FOLDS)
    return optima


def rows_of(one: Sentence, options: SentencesOptions, folder: Path) -> list[dict]:
    """What was measured, by method, value and fold; only what is missing is run."""
    optima, plans = {}, []
    if any(sweep.method.endswith(RETUNED) for sweep in one.sweeps):
        optima = retuned(options, folder / f"{one.name}-tuned.csv")
    for sweep in one.sweeps:
        tuned = tuned_settings([sweep.tuned], sweep.schedule)[sweep.tuned] if sweep.tuned else {}
        tuned = optima[sweep.tuned] if sweep.method.endswith(RETUNED) else tuned
        base = replace(options.config, **(tuned | sweep.settings))
        kind = {sweep.axis: list(sweep.values)} if sweep.axis == "networks" else {}
        row = {"method": sweep.method, "axis": sweep.axis, "schedule": base.schedule}
        for fold, value in itertools.product(COMPARISON_FOLDS[: options.folds], sweep.values):
            config = config_of(one, sweep, value, fold, base)
            plans.append((row | {"value": value, "fold": fold}, plan(config, **kind)))
    plans.sort(key=lambda each: each[0]["fold"])  # fold after fold
    found = run_plans([payload for _, payload in plans], options)
    return [
        row | (over.result[str(row["value"])] if row["axis"] == "networks" else of_network(over.result))
        for (row, _), over in zip(plans, found, strict=True)
    ]


def of_network(found: dict) -> dict:
    """What the figures need of a trained network. What is None cannot be told: it diverged, or never came there."""
    result, weights, confusions = found["result"], found.get("weights", {}), found.get("confusions")
    row = {"status": result["status"], "updates": result["step"]}
    row |= {name: result["last"][name] for name in ("epoch", "loss/train", "loss/test", "error/val", "error/test")}
    row |= {"seconds": result["seconds"], "epochs to cost": epochs_to(COST, found["curves"])}
    row |= {name: weights.get(name) for name in ("rms", "small")}
    return row | {"6 and 9": (confusions[6][9] + confusions[9][6]) / np.sum(confusions) if confusions else None}


def epochs_to(cost: float, curves: dict[str, list[float]]) -> float | None:
    """After how many epochs the training cost comes to `cost`: between two looks, by its logarithm; None for never."""
    epochs, losses = (np.array(curves[name]) for name in ("epoch", "loss/train"))
    if not (losses <= cost).any():
        return None
    first = int(np.argmax(losses <= cost))
    both = slice(max(0, first - 1), first + 1)
    return float(np.interp(-math.log(cost), -np.log(np.maximum(losses[both], 1e-30)), epochs[both]))


def main(argv: Sequence[str] | None = None) -> None:
    with shell.errors_in_one_line(data.DataError, RunError, cluster.StudyError, ReportError):
        options = shell.parse(SentencesOptions, argv)
        options = options if options.report else planned.prepared(options)
        folder = PUBLISHED_SENTENCES if options.report else planned.results_folder(options, "sentences")
        groups, results = {}, compare.PUBLISHED / "results.csv"
        as_published = options.report or (options.data == "mnist" and options.epochs == BASE.epochs)
        if results.exists() and as_published:
            groups = report.grouped(report.read_csv(results))
        for one in chosen_sentences(options.sentence):
            if one.sweeps and not options.report:
                report.write_csv(folder / f"{one.name}.csv", rows_of(one, options, folder))
            elif not one.sweeps and not groups:
                print(f"{one.name}: left out; it is read off the published results of compare.py")
        print("\n".join(write_sentences(folder, SENTENCES, groups, PARTS)))
        if not options.report:
            print(f"\ntables and figures: {folder}")
            print(f"the runs:           tensorboard --logdir {planned.study_folder(options) / 'runs'}")


if __name__ == "__main__":
    main()
