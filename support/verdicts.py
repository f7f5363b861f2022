"""Verdicts on the class's sentences, each by the rule in its judge's docstring; nothing here trains or draws.

`rows` are those of a sentence's file: method, value of the axis, schedule, fold, and what was measured. Intervals are
over folds, 95 % by Student's t, each by itself: they are not corrected for their number. What is neither shown nor
excluded is undecided. A judge returns the verdict, which may be "holds with a condition: ...", and the numbers that it
is from.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from support.statistics import MARGIN, PLAIN, Difference, by_method, mean_and_interval

HOLDS, HOLDS_NOT, UNDECIDED = "holds", "does not hold", "undecided"
RETUNED = " (retuned)"  # ends the name of a line whose settings were tuned at the largest fraction
CONSTANT = " (constant)"  # ends the name of a line that was tuned at a constant learning rate, not under one-cycle
COST = 0.1  # training cost, in nats, to which fast learning comes soon
SMALL = 1e-3  # absolute value of a weight that is as good as 0
TENTH, POINTS = 0.1, 100 * MARGIN  # the least fall that is relevant, of a ratio and in points


class Interval(NamedTuple):
    """A mean over folds and its 95 % interval; nan where there is too little to tell."""

    low: float
    mean: float
    high: float

    def __format__(self, form: str) -> str:
        return f"{self.mean:{form or '+.2f'}} [{self.low:{form or '+.2f'}}, {self.high:{form or '+.2f'}}]"


def interval(values: np.ndarray) -> Interval:
    found = values[~np.isnan(values)]
    mean, half = mean_and_interval(found) if len(found) else (math.nan, math.nan)
    return Interval(mean - half, mean, mean + half)


def ratio(a: np.ndarray, b: np.ndarray) -> Interval:
    """Of geometric means."""
    logs = interval(np.log(np.maximum(a, 1e-9)) - np.log(np.maximum(b, 1e-9)))
    return Interval(*np.exp(np.minimum(logs, 700)))  # two folds may tell as little as that


def by_value(rows: Sequence[dict], method: str, column: str, factor: float = 1.0) -> dict:
    """By value, ascending, what `column` holds: (folds,), those of all `rows`; nan for what is missing or empty."""
    folds, own = sorted({row["fold"] for row in rows}), by_method(rows)[method]
    found = {value: np.full(len(folds), math.nan) for value in sorted({row["value"] for row in own})}
    for row in own:
        if row.get(column, "") != "":
            found[row["value"]][folds.index(row["fold"])] = factor * row[column]
    return found


def falls(found: Interval, relevant: float, none: float = 0.0) -> str:
    """Whether it is below `none`: not if the interval excludes a `relevant` fall, undecided if neither is so."""
    return HOLDS if found.high < none else HOLDS_NOT if found.low > none - relevant else UNDECIDED


def overall(parts: dict[str, str], remarks: Sequence[str] = ()) -> str:
    """The word for a sentence of several `parts`, each with its own."""
    named = {word: ", ".join(name for name, own in parts.items() if own == word) for word in parts.values()}
    if HOLDS not in named:
        told = f"; not for {named[HOLDS_NOT]}" if HOLDS_NOT in named else ""
        return UNDECIDED + told if UNDECIDED in named else HOLDS_NOT
    said = {HOLDS: "only ", HOLDS_NOT: "not ", UNDECIDED: "undecided: "} if len(named) > 1 else {}
    conditions = [text + named[word] for word, text in said.items() if word in named] + list(remarks)
    return f"{HOLDS} with a condition: {'; '.join(conditions)}" if conditions else HOLDS


# --- judges: a docstring is the rule, and what it was before numbers were seen; both stand in the sentence's file ----


def judge_fraction(rows: Sequence[dict]) -> tuple[str, list[str]]:
    """A method has an effect if its test error over the plain network's is below 1, and none if above 0.9. Holds for
    methods with an effect at 5 % and none at the largest fraction, both retuned; does not for those with an effect at
    both, or with none at 5 %.
    Before: all as tuned at 5 %, with which the plain network did not converge at the largest; it did not hold."""
    parts, numbers = {}, []
    for method in [name for name in by_method(rows) if name != PLAIN and not name.endswith(RETUNED)]:
        words = []
        for more in ("", RETUNED):
            errors, plain = (by_value(rows, name + more, "error/test") for name in (method, PLAIN))
            value = max(errors) if more else 0.05
            found = ratio(errors[value], plain[value])
            words.append(falls(found, TENTH, 1.0))
            numbers.append(f"{method}{more}: ratio {found:.3g} at {value:g}")
        many = {HOLDS: HOLDS_NOT, HOLDS_NOT: HOLDS}.get(words[1], UNDECIDED)
        parts[method] = many if words[0] == HOLDS else words[0]
    return overall(parts), numbers


def judge_lambda(rows: Sequence[dict]) -> tuple[str, list[str]]:
    """Spearman's correlation of strength and the weights' rms, line by line: holds below 0, does not above -0.1; with a
    condition where the rms at some strength over that without a penalty is above 1.
    Before: Page's trend test, with a condition where a mean rose at any step; it held, but for five such lines."""
    parts, numbers, remarks = {}, [], []
    for method in by_method(rows):
        by_strength = by_value(rows, method, "rms")
        sizes = {strength: line for strength, line in by_strength.items() if not np.isnan(line).any()}  # none diverged
        lines = np.array(list(sizes.values())).T
        found = interval(np.array([stats.spearmanr(range(len(line)), line).statistic for line in lines]))
        means = [f"{line.mean():.3g} at {strength:g}" for strength, line in sizes.items()]
        numbers.append(f"{method}: correlation {found}, rms {', '.join(means[:2] + means[-1:])}")
        parts[method] = falls(found, 0.1)
        larger = {strength: ratio(line, by_strength[min(by_strength)]) for strength, line in sizes.items()}
        said = [f"{beside.mean:.2g} times at {strength:g}" for strength, beside in larger.items() if beside.low > 1]
        if said and parts[method] == HOLDS:
            remarks.append(f"they grow with {method}: {', '.join(said)}")
    return overall(parts, remarks), numbers


def judge_dropout(rows: Sequence[dict]) -> tuple[str, list[str]]:
    """Dropout's test error less that of two plain networks' mean output, under each schedule: holds below 0, does not
    above 0; with a condition if dropout takes the time of two or more.
    Before: how many networks equal it, read off a curve, was to be 2 or more, with schedules mixed; it held."""
    parts, numbers = {}, []
    for schedule, line in (("one-cycle", ""), ("constant", CONSTANT)):
        plain, dropout = (by_value(rows, method + line, "error/test", 100) for method in (PLAIN, "dropout"))
        beside = {count: interval(dropout[1] - errors) for count, errors in plain.items()}
        numbers += [f"{schedule}: dropout beside the mean of {n} plain: {found} points" for n, found in beside.items()]
        parts[schedule] = falls(beside[2], 0)
    time = by_value(rows, "dropout", "seconds")[1].mean() / by_value(rows, PLAIN, "seconds")[1].mean()
    numbers.append(takes := f"it takes the time of {time:.1f} networks")
    for method in by_method(rows):
        errors = by_value(rows, method, "error/test", 100)
        several = max(errors)
        numbers.append(f"{method}: mean of {several} beside one: {interval(errors[several] - errors[1])} points")
    return overall(parts, [takes] * bool(time >= 2)), numbers


def judge_normalisation(rows: Sequence[dict]) -> tuple[str, list[str]]:
    """Faster: a norm's epochs to the cost over none's, at each fold's best rate, are below 1; does not hold above 0.9.
    More stable: at two rates or more, and none the other way, more of its runs come there (Fisher's exact test, p <
    0.05); does not hold if at no rate, and on average it comes there at fewer than one rate more.
    Before: batch norm alone, and more stable by the mean share of rates, which a single rate decided; it held."""
    epochs, best, came, numbers, parts = max(row["epoch"] for row in rows), {}, {}, [], {}
    for method in by_method(rows):
        by_rate = by_value(rows, method, "epochs to cost")
        reached = np.array(list(by_rate.values()))  # (rates, folds)
        best[method], came[method] = np.nan_to_num(reached, nan=epochs).min(0), np.isfinite(reached).astype(int)
        numbers.append(f"{method}: cost {COST:g} after {best[method].mean():.1f} epochs at the best rate")
    for norm in (method for method in best if method != "none"):
        faster, gains, clear = ratio(best[norm], best["none"]), came[norm] - came["none"], {}
        for rate, gain, *pair in zip(by_rate, gains.sum(1), came[norm], came["none"], strict=True):
            if stats.fisher_exact([[ends.sum(), (1 - ends).sum()] for ends in pair]).pvalue < 0.05:
                clear[f"{rate:g}"] = gain > 0
        rates = ", ".join(f"{rate} ({'more' if gain else 'fewer'})" for rate, gain in clear.items()) or "none"
        numbers.append(
            f"{norm} beside none: epochs times {faster:.3g}; rates at which more or fewer come there: {rates}"
        )
        little = not any(clear.values()) and interval(gains.sum(0)).high < 1
        stable = HOLDS if len(clear) > 1 and all(clear.values()) else HOLDS_NOT if little else UNDECIDED
        once = f" (at one rate only, {''.join(clear)})" if list(clear.values()) == [True] else ""
        parts |= {f"faster with {norm}": falls(faster, TENTH, 1.0), f"more stable with {norm}{once}": stable}
    return overall(parts), numbers


def judge_batch_size(rows: Sequence[dict]) -> tuple[str, list[str]]:
    """At the smallest batch, layer norm's test error less batch norm's: holds below 0, does not above -0.25 points;
    with a condition where it is not better than none, or better than batch norm in the largest batch as well.
    Before: layer norm was compared with batch norm alone; it held."""
    layer, batch, none = (by_value(rows, name, "error/test", 100) for name in ("layer norm", "batch norm", "none"))
    pairs = ((layer, batch), (layer, none), (batch, none))
    beside = {size: [interval(one[size] - other[size]) for one, other in pairs] for size in none}
    text = "batch {}: layer norm {} points beside batch norm, {} beside none; batch norm {} beside none"
    numbers = [text.format(size, *found) for size, found in beside.items()]
    versus_batch, versus_none, failing = beside[min(none)]
    fails = f"it is batch norm that fails at {min(none)}, " * (failing.low > 0)
    remarks = [f"{fails}layer norm is not shown to beat none there"] * (not versus_none.high < 0)
    remarks += ["better in the largest batch too"] * (beside[max(none)][0].high < 0)
    return overall({"": falls(versus_batch, POINTS)}, remarks), numbers


def judge_rotation(rows: Sequence[dict]) -> tuple[str, list[str]]:
    """The test error at the angle of the lowest validation error less that without: holds below 0, does not above -0.25
    points; with a condition unless half of the points lost at the largest angle are confusions of 6 and 9.
    Before: error and confusions both had to rise, however few these were; it held."""
    error, val, confused = (by_value(rows, PLAIN, name, 100) for name in ("error/test", "error/val", "6 and 9"))
    best, none, most = min(val, key=lambda angle: val[angle].mean()), min(val), max(val)
    beside = {angle: interval(found - error[none]) for angle, found in error.items()}
    numbers = [f"up to {angle:g} degrees beside none: {found} points" for angle, found in beside.items()][1:]
    lost, sixes = (one[most] - one[best] for one in (error, confused))
    share = f"{100 * sixes.mean() / lost.mean():.0f} %" if interval(lost).low > 0 else "no clear share"
    numbers.append(f"up to {most:g} beside {best:g}: {interval(lost)} points, of confusions {interval(sixes)}, {share}")
    half = interval(lost).low > 0 and interval(lost / 2 - sixes).high < 0
    remarks = [f"confusions of 6 and 9 are {share} of the points lost up to {most:g} degrees"] * (not half)
    return overall({"": falls(beside[best], POINTS)}, remarks), numbers


def judge_combination(found: dict[tuple[str, str, str], Difference]) -> tuple[str, list[str]]:
    """A combination beside its best part, by the signed-rank test of compare's tables, adjusted for their number
    (Holm): holds for the better ones, does not for those equal or worse.
    Before: what was undecided counted as no gain, and schedules were mixed; it held for three of six."""
    words: dict[str, dict[str, str]] = {}  # by combination and schedule
    parts, numbers = {}, []
    for (name, part, schedule), one in found.items():
        points = Interval(*(100 * x for x in (one.low, one.estimate, one.high)))
        numbers.append(f"{name} beside {part}, {schedule}: {points} points, {one.verdict}")
        word = HOLDS if "better" in one.verdict else UNDECIDED if UNDECIDED in one.verdict else HOLDS_NOT
        words.setdefault(name, {})[schedule] = word
    for name, own in words.items():
        alike = len(set(own.values())) == 1
        parts |= {name if alike else f"{name} ({schedule})": word for schedule, word in own.items()}
    return overall(parts), numbers


JUDGES = {
    "fraction": judge_fraction, "lambda": judge_lambda, "dropout": judge_dropout, "normalisation": judge_normalisation,
    "batch-size": judge_batch_size, "rotation": judge_rotation, "combination": judge_combination,
}  # fmt: skip
