"""Verdicts on the class's sentences, each by a rule that its judge's first lines state; nothing here trains or draws.

`rows` are those of a sentence's file: method, value of the axis, fold, and what was measured. Unless said otherwise,
intervals have 95 % and are over folds (Student's t), and differences are paired by fold.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy import stats

from support import statistics

SHARE = 0.05  # of the training images, that the class learns from
COST = 0.1  # training cost, in nats, to which fast learning comes soon
SMALL = 1e-3  # absolute value of a weight that is as good as 0

# --- rows and intervals ----------------------------------------------------------------------------------------------

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


def paired(a: dict, b: dict) -> np.ndarray:
    """a - b on the folds that both have."""
    folds = sorted(a.keys() & b.keys())
    return statistics.paired_differences(*([one[fold] for fold in folds] for one in (a, b)))


def methods_of(rows: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def means(values: dict) -> dict:
    return {value: float(np.mean(list(folds.values()))) for value, folds in values.items()}


# --- judges ---------------------------------------------------------------------------------------------------------


def judge_fraction(rows: Sequence[dict]) -> Verdict:
    """An effect is an interval of log(error / baseline's) below 0. Holds if some method has one at 5 % and none at the
    largest fraction, where all intervals of the ratio lie in 0.9 to 1.1 (else undecided); holds not if none has one at
    5 %, or all those that do have one at the largest as well; else but for those that do."""
    base = series(rows, statistics.BASELINE, "error/test")
    few, many = min(base, key=lambda value: abs(value - SHARE)), max(base)
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
        points = interval(100 * paired(dropout[count], dropout[0]))
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
    epochs = max(row["epoch"] for row in rows)
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
    helped = interval(100 * paired(error[best], error[none]))
    harmed = interval(100 * paired(error[most], error[best]))
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
    """A combination gains if it is better than its better part by the signed-rank test of compare's tables, adjusted
    for the number of combinations (Holm). Holds if all gain, holds not if none does, else for those that do."""
    effects = {method: series(rows, method, "effect") for method in methods_of(rows)}

    def beside(other: str) -> list[np.ndarray]:
        return [paired(found, effects[other][whole]) for whole, found in effects["combination"].items()]

    gains = beside("better part")
    gained, numbers = [], []
    for whole, gain, extra, (_, word) in zip(
        effects["combination"], gains, beside("sum of both"), statistics.tested(gains), strict=True
    ):
        gain, extra = (interval(100 * one).text("+.2f") for one in (gain, extra))
        numbers.append(f"{whole}: {gain} points beside its better part ({word}), {extra} beside the sum")
        gained += [whole] * word.startswith("better")
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
