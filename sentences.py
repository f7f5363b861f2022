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
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from pydantic.dataclasses import dataclass
from scipy import stats

import compare
import data
import observe
from compare import (
    BASE,
    FOLDS,
    MACHINE,
    METHODS,
    NUISANCES,
    dataset_of,
    folder_of_choice,
    label,
    once,
    other_settings,
    outputs,
    plan,
    tuned_settings,
)
from model import Dropout
from regularizers import penalized_weights
from support import figures, report, statistics, workers
from support.folder import RunError, read_rows
from support.shell import as_text, between, errors_in_one_line, flag, parse, wrong_arguments
from train import SETTINGS, SPACE, Config, machine, resolve, train, trained_model, warn

# --- the sentences ---------------------------------------------------------------------------------------------------


class Sweep(NamedTuple):
    """A line of a figure: `axis`, a setting of Config, over `values`, on the first `folds` of those that compare.

    Two axes are none of Config: "networks", of which the outputs are averaged, and "masks" of dropout (0: none, the
    network as usual), over which the outputs of one network are averaged.
    """

    method: str  # name of the line
    axis: str
    values: tuple
    settings: dict  # what differs from the defaults of Config, or from what was tuned
    tuned: str = ""  # method of compare.py whose tuned settings hold
    folds: int = 5


class Sentence(NamedTuple):
    name: str
    claim: str  # in our words
    sweeps: Sequence[Sweep]  # none: it is read off the results of compare.py
    drawn: Sequence[str]  # columns, a panel each
    x: str = "value"  # column
    log: bool = True  # whether x is logarithmic
    epochs: int = 0  # other than the default
    same_updates: bool = False  # as many as with the default fraction and batch size, as nearly as whole epochs allow


def as_tuned(methods: Sequence[str], axis: str, values: tuple, folds: int = 5) -> list[Sweep]:
    return [Sweep(method, axis, values, {}, method, folds) for method in methods]


def normalised(axis: str, values: tuple, **more) -> list[Sweep]:
    norms = {"none": {}, "batch norm": {"norm": "batch"}, "layer norm": {"norm": "layer"}}
    return [Sweep(method, axis, values, settings | more) for method, settings in norms.items()]


def geometric(low: float, high: float, steps: int) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in np.geomspace(low, high, steps))


FEW, MANY = (0.005, 0.01, 0.05), (0.2, 0.5, 0.9)
ON_FRACTIONS = ("baseline", "L2", "dropout", "batch norm", "geometric", "elastic")
PENALTIES = {"L1": "l1", "L2": "l2", "weight decay": "weight_decay"}
STRENGTHS = {method: (0.0, *geometric(*SPACE[name][:2], 8)) for method, name in PENALTIES.items()}
AT_DEFAULT = {"lr": 1e-3, "schedule": "constant"}
COST = 0.1  # training cost, in nats, to which fast learning comes soon
SMALL = 1e-3  # absolute value of a weight that is as good as 0

SENTENCES = (
    Sentence(
        "fraction",
        "Regularisation shows an effect only where the training images are few, such as 5 %.",
        [*as_tuned(ON_FRACTIONS, "fraction", FEW), *as_tuned(ON_FRACTIONS, "fraction", MANY, folds=3)],
        ("error/test", "ratio"),
        x="images",
        same_updates=True,
    ),
    Sentence(
        "lambda",
        "The stronger the penalty, the nearer the weights are to 0.",
        [
            *(Sweep(method, name, STRENGTHS[method], {}, method) for method, name in PENALTIES.items()),
            *(Sweep(f"{method}, lr 0.001", name, STRENGTHS[method], AT_DEFAULT) for method, name in PENALTIES.items()),
        ],
        ("rms", "small", "loss/train", "error/test"),
    ),
    Sentence(
        "dropout",
        "Dropout comes close to averaging several networks that were trained apart, and costs less.",
        [
            Sweep("baseline", "networks", (1, 2, 3, 5, 10), {}, "baseline"),
            Sweep("dropout", "masks", (0, 50), {}, "dropout"),
        ],
        ("error/test",),
        x="seconds",
    ),
    Sentence(
        "normalisation",
        "With centred and reduced inputs of its layers, a network learns faster and more stably.",
        normalised("lr", geometric(1e-4, 1e-1, 7), evaluations=30),
        ("epochs to cost", "diverged", "error/test"),
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


@dataclass(frozen=True, config=SETTINGS)
class SentencesOptions:
    """Test the sentences of the table in sentences.py. A setting of train.py, given here, holds for all."""

    sentence: tyro.conf.Positional[str] = ""  # name or number of the only one
    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=lambda: BASE)
    folds: Annotated[int, between(2, len(FOLDS))] = len(FOLDS)  # at most; the table may say fewer
    report: bool = False  # train nothing: rebuild the published tables and figures from their files
    workers: Annotated[int, between(1, 1000)] = 2  # processes, with one thread each
    storage: str = field(default="", repr=False)  # URL of a database that machines share; by default a journal file
    studies_dir: str = "studies"  # folder of all studies; this one is kept in its folder sentences

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
    given = [word.split("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    if options.report and (len(given) > 1 or options.sentence):
        wrong_arguments("--report: rebuilds what is published as it is; drop the other arguments")
    refused = dict.fromkeys(("--fold", "--seed"), "the folds are those of the table, each with its number as seed")
    for one in chosen(options.sentence):
        for sweep in one.sweeps:
            tuned = [*NUISANCES, *METHODS[sweep.tuned]] if sweep.tuned else []
            own = f"sentence {one.name} sets its own; drop it, or change SENTENCES in sentences.py"
            refused |= dict.fromkeys(map(flag, [sweep.axis, *sweep.settings, *tuned]), own)
    for name in given:
        if name in refused:
            wrong_arguments(f"{name}: {refused[name]}")


# --- runs ------------------------------------------------------------------------------------------------------------

OF_A_RUN = ("networks", "masks")  # axes along which one run serves all values


def config_of(one: Sentence, sweep: Sweep, value: object, fold: int, options: SentencesOptions) -> Config:
    """The settings of the run of `sweep` at `value`."""
    settings = (tuned_settings([sweep.tuned])[sweep.tuned] if sweep.tuned else {}) | sweep.settings
    settings |= {} if sweep.axis in OF_A_RUN else {sweep.axis: value}
    config = replace(options.config, fold=fold, seed=fold, **settings)
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


def runs_of(one: Sentence, options: SentencesOptions) -> list[dict]:
    """The rows of a sentence's file: what was measured, by method, value and fold; only what is missing is run."""
    plans = []
    for sweep in one.sweeps:
        kind = {sweep.axis: list(sweep.values)} if sweep.axis in OF_A_RUN else {"measured": True}
        for fold in FOLDS[: min(sweep.folds, options.folds)]:
            for value in sweep.values:
                plans.append((sweep, value, fold, plan(config_of(one, sweep, value, fold, options), **kind)))
    plans.sort(key=lambda planned: planned[2])  # fold after fold
    place = workers.Place(sentences_folder(options), "sentences", options.storage)
    function = partial(run, where={name: getattr(options.config, name) for name in MACHINE})
    more = {"workers": options.workers, "label": label, "preload": ["sentences"]}
    found = workers.run_planned(place, function, [payload for *_, payload in plans], **more)
    rows = []
    for sweep, value, fold, payload in plans:
        over = found[workers.digest(payload)]
        if over.reason:
            raise RunError(over.reason)
        measured = over.result[str(value)] if sweep.axis in OF_A_RUN else over.result
        rows.append({"method": sweep.method, "axis": sweep.axis, "value": value, "fold": fold} | measured)
    return rows


def run(payload: dict, folder: Path, where: dict) -> dict:
    """One planned run, in a worker, on the data and the device `where`."""

    def measured(config: Config) -> dict:
        if "networks" in payload:
            return averaged_networks(config, folder, payload["networks"])
        if "masks" in payload:
            return averaged_masks(config, folder, payload["masks"])
        return one_network(config, folder)

    return once(payload, folder, where, measured)


def one_network(config: Config, folder: Path) -> dict:
    """Trains a network; what the figures need of it. What is None cannot be told: it diverged, or never came there."""
    result = train(config, folder, quiet=True)
    rows, last = read_rows(folder), result["last"]
    found = {"status": result["status"], "images": result["sizes"]["train"], "updates": result["step"]}
    found |= {name: last[name] for name in ("loss/train", "error/val", "error/test")}
    found |= {"seconds": result["seconds"], "epochs": config.epochs, "epochs to cost": epochs_to(COST, rows)}
    found |= dict.fromkeys(("rms", "small", "6 as 9", "9 as 6"))
    if result["status"] != "diverged":  # else the last weights are not those of the last measurement
        model = trained_model(config, dataset_of(config), folder / "last.pt")
        weights = torch.cat([weight.detach().flatten() for weight in penalized_weights(model)])
        logits, labels = outputs(config, model)
        answers = logits.argmax(dim=1)
        found |= {"rms": observe.rms(weights), "small": (weights.abs() < SMALL).double().mean().item()}
        for digit, answer in ((6, 9), (9, 6)):
            found[f"{digit} as {answer}"] = int(((labels == digit) & (answers == answer)).sum())
    return found


def epochs_to(cost: float, rows: Sequence[dict]) -> float | None:
    """After how many epochs the training cost comes to `cost`: between two looks, by its logarithm; None for never."""
    for before, after in zip([rows[0], *rows], rows, strict=False):
        if after["loss/train"] <= cost:
            high, low = math.log(before["loss/train"]), math.log(max(after["loss/train"], 1e-30))
            share = (high - math.log(cost)) / (high - low) if high > low else 1.0
            return before["epoch"] + share * (after["epoch"] - before["epoch"])
    return None


def averaged_networks(config: Config, folder: Path, counts: Sequence[int]) -> dict[str, dict]:
    """By k of `counts`: test error of the mean softmax output of k networks, which differ in their seeds.

    It is itself a mean over as many groups of k as max(counts) networks make; `one` are the errors of each network.
    """
    shares, seconds = [], []
    for network in range(1, max(counts) + 1):
        config_of_one = replace(config, seed=config.seed + 100 * network)  # other seeds than those of the folds
        share, _, took, labels = trained_outputs(config_of_one, folder / f"network-{network}")
        shares.append(share)
        seconds.append(took)
    found = {}
    for k in counts:
        groups = [shares[start : start + k] for start in range(0, len(shares) - k + 1, k)]
        errors = [wrong(torch.stack(group).mean(0), labels) for group in groups]
        found[str(k)] = {"error/test": float(np.mean(errors)), "seconds": k * float(np.mean(seconds))}
        found[str(k)] |= {"deviation": float(np.std(errors, ddof=1)) if len(errors) > 1 else None, "n": len(errors)}
    return found


def averaged_masks(config: Config, folder: Path, counts: Sequence[int]) -> dict[str, dict]:
    """By count: test error of the mean softmax output over so many masks of dropout; 0 is the network as usual."""
    usual, model, seconds, labels = trained_outputs(config, folder)
    images, _ = data.split_tensors(dataset_of(config), "test", config.fold, torch.device(config.device))
    for module in model.modules():
        module.training = isinstance(module, Dropout)
    torch.manual_seed(config.seed)
    with torch.no_grad(), machine(config):
        drawn = [model(images).softmax(dim=1).cpu() for _ in range(max(counts))]
    shares = {count: torch.stack(drawn[:count]).mean(0) if count else usual for count in counts}
    more = {"seconds": seconds, "deviation": None, "n": 1}
    return {str(count): {"error/test": wrong(share, labels)} | more for count, share in shares.items()}


def trained_outputs(config: Config, folder: Path):
    """Trains a network; softmax outputs (N, classes) for the test images, the network, seconds, and labels (N,)."""
    result = train(config, folder, quiet=True)
    if result["status"] == "diverged":
        raise workers.Failed(f"{folder}: its cost became infinite or NaN")
    model = trained_model(config, dataset_of(config), folder / "last.pt")
    logits, labels = outputs(config, model)
    return logits.softmax(dim=1), model, result["seconds"], labels


def wrong(shares: torch.Tensor, labels: torch.Tensor) -> float:
    return (shares.argmax(dim=1) != labels).double().mean().item()


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


# --- verdicts --------------------------------------------------------------------------------------------------------

HOLDS, HOLDS_NOT, UNDECIDED = "holds", "does not hold", "undecided"


class Verdict(NamedTuple):
    """In words, and the numbers that it is from. A third word is `with_condition`."""

    word: str
    numbers: list[str]


class Interval(NamedTuple):
    """A mean over folds and its 95 % interval (Student's t)."""

    low: float
    mean: float
    high: float

    def text(self, form: str = ".3g") -> str:
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


def interval(values: Sequence[float]) -> Interval:
    mean, half = statistics.mean_and_interval(values)
    return Interval(mean - half, mean, mean + half)


def with_condition(text: str) -> str:
    return f"holds with a condition: {text}"


def series(rows: Sequence[dict], method: str, column: str) -> dict:
    """By value, then by fold, what `column` holds; empty cells are left out."""
    found: dict = {}
    for row in rows:
        if row["method"] == method and row.get(column) not in (None, ""):
            found.setdefault(row["value"], {})[row["fold"]] = row[column]
    return found


def paired(a: dict, b: dict) -> list[float]:
    """a - b on the folds that both have."""
    return [a[fold] - b[fold] for fold in sorted(a.keys() & b.keys())]


def methods_of(rows: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def means(values: dict) -> dict:
    return {value: float(np.mean(list(folds.values()))) for value, folds in values.items()}


def judge_fraction(rows: Sequence[dict]) -> Verdict:
    """An effect is an interval of log(error / baseline's) below 0. Holds if some method has one at 5 % and none at the
    largest fraction, where all intervals of the ratio lie in 0.9 to 1.1 (else undecided); holds not if none has one at
    5 %, or all those that do have one at the largest as well; else but for those that do."""
    base = series(rows, statistics.BASELINE, "error/test")
    few, many = min(base, key=lambda value: abs(value - BASE.fraction)), max(base)
    images = {row["value"]: row["images"] for row in rows}
    curve = sorted((mean, images[value]) for value, mean in means(base).items())
    effects, close, numbers = {few: [], many: []}, True, []
    for method in methods_of(rows):
        if method == statistics.BASELINE:
            continue
        errors = series(rows, method, "error/test")
        for value in (few, many):
            logs = [{fold: math.log(max(e, 1e-9)) for fold, e in one[value].items()} for one in (errors, base)]
            found = interval(paired(*logs))
            if found.high < 0:
                effects[value].append(method)
            elif value == many and not (math.log(0.9) < found.low and found.high < math.log(1.1)):
                close = False
            numbers.append(f"{method}: ratio {Interval(*map(math.exp, found)).text()} at {value:g}")
        error = means(errors)[few]
        logs = np.log([[max(e, 1e-9), n] for e, n in curve])
        worth = f"about {math.exp(np.interp(math.log(max(error, 1e-9)), *logs.T)):.0f}"
        worth = f"more than {curve[0][1]}" if error < curve[0][0] else worth
        numbers.append(f"{method}: with {images[few]} images as good as the baseline with {worth}")
    lasting = [method for method in effects[few] if method in effects[many]]
    if not effects[few] or lasting == effects[few]:
        return Verdict(HOLDS_NOT, numbers)
    if effects[many]:
        return Verdict(with_condition(f"not for {', '.join(effects[many])}"), numbers)
    return Verdict(HOLDS if close else UNDECIDED, numbers)


def judge_lambda(rows: Sequence[dict]) -> Verdict:
    """Page's trend test of the weights' rms, falling over the strengths, adjusted for the number of lines (Holm). Holds
    if each line has p < 0.05 and its mean falls at each step, holds not if none has; else but for the others."""
    p, rising, numbers = {}, [], []
    for method in methods_of(rows):
        sizes = series(rows, method, "rms")
        folds = sorted({row["fold"] for row in rows if row["method"] == method})
        strengths = [strength for strength in sorted(sizes) if len(sizes[strength]) == len(folds)]  # none diverged
        table = np.array([[sizes[strength][fold] for strength in strengths] for fold in folds])
        falling = range(len(strengths), 0, -1)
        p[method] = stats.page_trend_test(table, predicted_ranks=falling).pvalue if len(strengths) > 2 else 1.0
        if (np.diff(table.mean(0)) >= 0).any():
            rising.append(method)
        if len(strengths) < 2:
            continue
        jump = Interval(*map(math.exp, interval(np.log(table[:, 1] / table[:, 0]))))
        numbers.append(f"{method}: rms times {jump.text()} from {strengths[0]:g} to {strengths[1]:g}")
    p = dict(zip(p, statistics.holm(list(p.values())), strict=True))
    numbers += [f"{method}: Page's p {value:.2g}, adjusted" for method, value in p.items()]
    flat = [method for method, value in p.items() if value >= 0.05]
    if len(flat) == len(p):
        return Verdict(HOLDS_NOT, numbers)
    reasons = [f"no trend for {', '.join(flat)}"] * bool(flat)
    reasons += [f"not at every step for {', '.join(m for m in rising if m not in flat)}"] * bool(
        set(rising) - set(flat)
    )
    return Verdict(with_condition("; ".join(reasons)) if reasons else HOLDS, numbers)


def judge_dropout(rows: Sequence[dict]) -> Verdict:
    """k is how many networks' average equals dropout. Holds if the bootstrap interval of k lies above 1, k is at least
    2, and dropout takes less time than k networks; holds not if the interval reaches 1; else but for what lacks."""
    errors, dropout = series(rows, "baseline", "error/test"), series(rows, "dropout", "error/test")
    counts, folds = sorted(errors), sorted(dropout[0])
    table = np.array([[errors[k][fold] for k in counts] for fold in folds])
    own = np.array([dropout[0][fold] for fold in folds])

    def equal(index) -> float:
        # more networks are no worse: the running minimum makes the curve invertible
        curve = np.minimum.accumulate(table[index].mean(0))
        gains, first = np.unique(-curve, return_index=True)
        return float(math.exp(np.interp(-own[index].mean(), gains, np.log(counts)[first])))

    k = equal(np.arange(len(folds)))
    rng = np.random.default_rng(0)
    draws = [equal(rng.integers(len(folds), size=len(folds))) for _ in range(2000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    seconds = {method: means(series(rows, method, "seconds")) for method in ("baseline", "dropout")}
    networks = seconds["dropout"][0] / seconds["baseline"][1]
    numbers = [f"equal at k = {k:.1f} [{low:.1f}, {high:.1f}] networks of at most {counts[-1]}"]
    numbers += [f"dropout takes the time of {networks:.1f} networks"]
    for count in sorted(dropout)[1:]:
        points = interval([100 * one for one in paired(dropout[count], dropout[0])])
        numbers.append(f"mean over {count} masks beside no masks: {points.text('+.2f')} points")
    spread = series(rows, "baseline", "deviation").get(1, {})
    if spread:
        of_seed = float(np.mean(np.square(list(spread.values()))))
        n = next(row["n"] for row in rows if row["method"] == "baseline" and row["value"] == 1)
        of_fold = max(0.0, float(np.var(table[:, 0], ddof=1)) - of_seed / n)
        by_fold, by_seed = (100 * math.sqrt(variance) for variance in (of_fold, of_seed))
        numbers.append(f"deviation of one network in points: {by_fold:.2f} by fold, {by_seed:.2f} by seed")
    if low <= 1 + 1e-6:
        return Verdict(HOLDS_NOT, numbers)
    reasons = ["as good as fewer than 2 networks"] * (k < 2)
    reasons += [f"it takes the time of {networks:.1f}"] * (networks >= k)
    return Verdict(with_condition("; ".join(reasons)) if reasons else HOLDS, numbers)


def judge_normalisation(rows: Sequence[dict]) -> Verdict:
    """Batch norm beside none. Faster: at each fold's best rate, the interval of the log ratio of the epochs to the cost
    lies below 0 (never is as many as were trained). More stable: that of the difference of the shares of rates that get
    there lies above 0. Holds if both, holds not if neither, else but for one."""
    epochs = max(row["epochs"] for row in rows)
    folds = sorted({row["fold"] for row in rows})
    best, share, numbers = {}, {}, []
    for method in methods_of(rows):
        own = [row for row in rows if row["method"] == method]
        reached = {fold: [row["epochs to cost"] for row in own if row["fold"] == fold] for fold in folds}
        there = {fold: [one for one in found if one not in (None, "")] for fold, found in reached.items()}
        best[method] = {fold: math.log(max(min(there[fold], default=epochs), 1e-3)) for fold in folds}
        share[method] = {fold: len(there[fold]) / len(reached[fold]) for fold in folds}
        diverged = np.mean([row["status"] == "diverged" for row in own])
        mean, there = (np.mean(list(one[method].values())) for one in (best, share))
        text = f"{method}: cost {COST:g} after {math.exp(mean):.1f} epochs at best, at {there:.0%} of the rates"
        numbers.append(f"{text}; {diverged:.0%} diverged")
    ratio = interval(paired(best["batch norm"], best["none"]))
    more = interval(paired(share["batch norm"], share["none"]))
    numbers.append(
        f"batch norm beside none: epochs times {Interval(*map(math.exp, ratio)).text()}, share {more.text('+.2f')}"
    )
    faster, stabler = ratio.high < 0, more.low > 0
    if faster and stabler:
        return Verdict(HOLDS, numbers)
    if not faster and not stabler:
        return Verdict(HOLDS_NOT, numbers)
    return Verdict(with_condition("faster, not more stable" if faster else "more stable, not faster"), numbers)


def judge_batch_size(rows: Sequence[dict]) -> Verdict:
    """Layer norm's error less batch norm's. Holds if its interval lies below 0 at the smallest batch and not at the
    largest; holds not if it does not at the smallest; else with the condition that it is better at the largest too."""
    layer, batch = (series(rows, method, "error/test") for method in ("layer norm", "batch norm"))
    found = {size: interval(paired(layer[size], batch[size])) for size in sorted(layer)}
    numbers = [f"batch {size}: {Interval(*(100 * x for x in one)).text('+.2f')} points" for size, one in found.items()]
    sizes = list(found)
    for a, b in pairwise(sizes):
        low, high = found[a].mean, found[b].mean
        if low * high < 0:
            numbers.append(f"they cross at a batch of {a * (b / a) ** (low / (low - high)):.0f}")
    if found[sizes[0]].high >= 0:
        return Verdict(HOLDS_NOT, numbers)
    return Verdict(with_condition("better in large batches too") if found[sizes[-1]].high < 0 else HOLDS, numbers)


def judge_rotation(rows: Sequence[dict]) -> Verdict:
    """Helps: at the angle of the lowest validation error, the interval of the test error less that at 0 lies below 0.
    Harms: from there to the largest angle, both the test error and the confusions of 6 and 9 rise, with their intervals
    above 0. Holds if both, holds not if it does not help, else with the condition that the largest does no harm."""
    (method,) = methods_of(rows)
    error, confused = series(rows, method, "error/test"), series(rows, method, "6 and 9")
    val = means(series(rows, method, "error/val"))
    best, none, most = min(val, key=val.get), min(val), max(val)
    helped = interval([100 * one for one in paired(error[best], error[none])])
    harmed = interval([100 * one for one in paired(error[most], error[best])])
    more = interval(paired(confused[most], confused[best]))
    numbers = [f"up to {best:g} degrees beside none: {helped.text('+.2f')} points"]
    numbers += [
        f"up to {most:g} beside {best:g}: {harmed.text('+.2f')} points, {more.text('+.1f')} confusions of 6 and 9"
    ]
    if helped.high >= 0:
        return Verdict(HOLDS_NOT, numbers)
    harm = harmed.low > 0 and more.low > 0
    return Verdict(HOLDS if harm else with_condition(f"up to {most:g} degrees do no harm either"), numbers)


def judge_combination(rows: Sequence[dict]) -> Verdict:
    """A combination gains if the interval of its error less that of its better part lies below 0. Holds if all gain,
    holds not if none does, else for those that do."""
    effects = {method: series(rows, method, "effect") for method in methods_of(rows)}
    gained, numbers = [], []
    for whole, found in effects["combination"].items():
        gain = interval([100 * one for one in paired(found, effects["better part"][whole])])
        extra = interval([100 * one for one in paired(found, effects["sum of both"][whole])])
        numbers.append(
            f"{whole}: {gain.text('+.2f')} points beside its better part, {extra.text('+.2f')} beside the sum"
        )
        gained += [whole] * (gain.high < 0)
    if not gained:
        return Verdict(HOLDS_NOT, numbers)
    return Verdict(HOLDS if len(gained) == len(numbers) else with_condition(f"only {', '.join(gained)}"), numbers)


JUDGES = {
    "fraction": judge_fraction,
    "lambda": judge_lambda,
    "dropout": judge_dropout,
    "normalisation": judge_normalisation,
    "batch-size": judge_batch_size,
    "rotation": judge_rotation,
    "combination": judge_combination,
}

# --- tables and figures ----------------------------------------------------------------------------------------------

# Of a column: what it is, by how much it is multiplied, and its scale.
LABELS = {
    "error/test": ("test error in %", 100, "log"),
    "ratio": ("test error over the baseline's", 1, "log"),
    "rms": ("root mean square of the weights", 1, "log"),
    "small": (f"share of weights below {SMALL:g}", 1, "linear"),
    "loss/train": ("training cost in nats", 1, "log"),
    "epochs to cost": (f"epochs to a training cost of {COST:g}", 1, "log"),
    "diverged": ("share of runs diverged", 1, "linear"),
    "6 and 9": ("confusions of 6 and 9", 1, "linear"),
    "effect": ("change of the test error in points", 100, "linear"),
}
X_LABELS = {"images": "training images", "seconds": "seconds of training"}


def derived(rows: Sequence[dict]) -> list[dict]:
    """`rows` with the columns that follow from others: ratio, diverged, and 6 and 9."""
    base = series(rows, statistics.BASELINE, "error/test")
    found = []
    for row in rows:
        row = dict(row)
        if (reference := base.get(row["value"], {}).get(row["fold"])) and "error/test" in row:
            row["ratio"] = row["error/test"] / reference
        if "status" in row:
            row["diverged"] = int(row["status"] == "diverged")
        if row.get("6 as 9") not in (None, ""):
            row["6 and 9"] = row["6 as 9"] + row["9 as 6"]
        found.append(row)
    return found


def draw(one: Sentence, rows: Sequence[dict]):
    """A panel for each column that is drawn: means and 95 % intervals over folds, a line a method."""
    figure, axes = figures.panels(len(one.drawn), 2, 4.6, 3.4)
    colour = figures.colours(list(METHODS))
    for column, axis in zip(one.drawn, axes, strict=True):
        text, factor, scale = LABELS[column]
        axis.set_xscale("log" if one.log else "linear")  # here, since it takes away the names of places
        positive = False
        for number, method in enumerate(methods_of(rows)):
            values = series(rows, method, column)
            at = means(series(rows, method, one.x)) if one.x != "value" else {value: value for value in values}
            if any(isinstance(value, str) for value in values):
                at = {value: place + 0.08 * number for place, value in enumerate(values)}
            estimates = [statistics.mean_and_interval(list(values[value].values())) for value in values]
            x = np.array([at[value] for value in values], float)
            if one.log and (x > 0).any():  # 0 stands to the left of all others
                x = np.where(x > 0, x, min(x[x > 0]) / 3)
            y, half = (factor * np.array(column) for column in zip(*estimates, strict=True)) if estimates else ([], [])
            positive |= any(mean > 0 for mean in y)
            parent, _, variant = method.partition(",")
            style = "o" if values and isinstance(next(iter(values)), str) else "o--" if variant else "o-"
            shade = colour.get(parent, "#000000" if parent == "none" else figures.PALETTE[number])
            axis.errorbar(x, y, half, fmt=style, markersize=4, capsize=2, linewidth=1.2, color=shade, label=method)
            if style == "o":
                axis.set_xticks(range(len(at)), at, rotation=20, ha="right", fontsize=8)
        axis.set_yscale(scale if positive else "linear")
        axis.set_ylabel(text)
        axis.set_xlabel(
            X_LABELS.get(one.x, "" if not one.sweeps else ", ".join(dict.fromkeys(s.axis for s in one.sweeps)))
        )
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    return figure


def table(one: Sentence, rows: Sequence[dict]) -> list[str]:
    """Means and intervals of what is drawn, as Markdown."""
    cells = []
    for method in methods_of(rows):
        for value in dict.fromkeys(row["value"] for row in rows if row["method"] == method):
            folds = [row for row in rows if (row["method"], row["value"]) == (method, value)]
            line = [method, as_text(value), str(len(folds))]
            for column in one.drawn:
                found = [LABELS[column][1] * row[column] for row in folds if row.get(column) not in (None, "")]
                mean, half = statistics.mean_and_interval(found) if found else (math.nan, math.nan)
                line.append("" if not found else f"{mean:.4g}" if math.isnan(half) else f"{mean:.4g} ± {half:.2g}")
            cells.append(line)
    return report.markdown_table(["method", "value", "folds", *(LABELS[column][0] for column in one.drawn)], cells)


def write_report(folder: Path) -> list[str]:
    """Writes the tables and figures that follow from the CSV files in `folder` beside them.

    Returns the verdicts' lines for a terminal. What has no file is left out. From the same files come the same bytes.
    """
    cells = []
    for number, one in enumerate(SENTENCES, start=1):
        path = folder / f"{one.name}.csv"
        if not path.exists():
            continue
        rows = derived(report.read_csv(path))
        verdict = JUDGES[one.name](rows)
        rule = " ".join(JUDGES[one.name].__doc__.split())
        lines = [f"**{one.claim}** It {verdict.word}." if verdict.word != UNDECIDED else f"**{one.claim}** Undecided."]
        lines += ["", *(f"- {text}" for text in verdict.numbers), "", f"Rule: {rule}", "", *table(one, rows)]
        report.write_text(folder / f"{one.name}.md", "\n".join(lines) + "\n")
        with figures.reproducible_figures():
            figures.save_figure(draw(one, rows), folder / one.name)
        cells.append([f"{number} {one.name}", one.claim, verdict.word])
    if not cells:
        return [f"no results in {folder} yet: run python sentences.py, and copy its CSV files there"]
    header = ["sentence", "claim", "verdict"]
    note = (
        'A sentence that "does not hold" is one that these runs do not bear out; the rules stand in each one\'s file.'
    )
    report.write_text(folder / "verdicts.md", "\n".join([*report.markdown_table(header, cells), "", note]) + "\n")
    return report.text_table([header[0], header[2]], [[name, word] for name, _, word in cells])


# --- the command line ------------------------------------------------------------------------------------------------


def sentences_folder(options: SentencesOptions) -> Path:
    return Path(options.studies_dir) / "sentences"


def results_folder(options: SentencesOptions) -> Path:
    """One for each choice of settings, data and folds, so that no quick look touches another's files."""
    folds = [f"folds={options.folds}"] if options.folds != len(FOLDS) else []
    return folder_of_choice(sentences_folder(options), other_settings(options.config) + folds)


def write_rows(folder: Path, chosen: Sequence[Sentence], options: SentencesOptions) -> None:
    """The CSV file of each sentence; none where compare.py has no results."""
    for one in chosen:
        if rows := runs_of(one, options) if one.sweeps else combinations(compare.PUBLISHED / "results.csv"):
            report.write_csv(folder / f"{one.name}.csv", rows)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    with errors_in_one_line(data.DataError, RunError, workers.StudyError, statistics.ReportError):
        options = parse(SentencesOptions, argv)
        refuse_what_is_ignored(options, argv)
        if options.report:
            PUBLISHED.mkdir(parents=True, exist_ok=True)
            write_rows(PUBLISHED, [one for one in SENTENCES if not one.sweeps], options)
            print("\n".join(write_report(PUBLISHED)))
            return
        dataset = dataset_of(options.config)
        warn(dataset)
        options = replace(options, config=resolve(options.config, dataset))
        folder = results_folder(options)
        write_rows(folder, chosen(options.sentence), options)
        print("\n".join(write_report(folder)))
        print(f"\ntables and figures: {folder}")
        print(f"the runs:           tensorboard --logdir {sentences_folder(options) / 'runs'}")


if __name__ == "__main__":
    main()
