"""Statistics of a comparison: means and their intervals, paired differences, and what may be said of them.

Errors are fractions. Unless said otherwise, intervals have 95 %, differences are of test errors and paired by fold, and
negative ones are improvements.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

BASELINE = "baseline"
WITHOUT = " - "  # "everything - noise" is "everything" without its part "noise": a row of the second table only
MARGIN = 0.0025  # differences smaller than that are as good as none
BORDER = 0.05  # of a range, on its own scale: what lies that near to an end may be better beyond it
LEAST_PAIRS = 6  # with fewer no two-sided signed-rank test can reach 5 %, so no p is shown


class ReportError(Exception):
    """Files that contradict each other; one line."""


# --- runs ------------------------------------------------------------------------------------------------------------


def by_method(rows: Iterable[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row)
    return found


def runs_by_method(rows: Iterable[dict]) -> dict[str, list[dict]]:
    """The rows of results.csv, those of a method in the order of their folds, which are the same for all methods."""
    found = {method: sorted(runs, key=lambda run: run["fold"]) for method, runs in by_method(rows).items()}
    folds = sorted({run["fold"] for runs in found.values() for run in runs})
    for method, runs in found.items():
        if [run["fold"] for run in runs] != folds:
            own = ", ".join(str(run["fold"]) for run in runs)
            raise ReportError(
                f"results.csv: {method!r} ran on the folds {own}, but a paired comparison needs every method once on "
                f"each of {', '.join(map(str, folds))}: run compare.py again"
            )
    return found


# --- statistics ------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A mean over folds, and half the widths of its two 95 % intervals; nan where there is too little to tell."""

    mean: float
    half: float  # over folds: other training images, initialisation and order, but the same test images
    both: float = math.nan  # over folds and test images: other test images as well


class Share(NamedTuple):
    """A share, and the ends of its 95 % interval."""

    share: float
    low: float
    high: float


def mean_and_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean of the n `values` and half the width of its interval, by Student's t with n - 1 degrees; nan for n = 1.

    Over folds, it covers what differs between runs: training images, initialisation, order. All runs share one test
    set, so it says nothing of other test images.
    """
    n = len(values)
    half = stats.t.ppf((1 + level) / 2, n - 1) * stats.sem(values) if n > 1 else math.nan
    return float(np.mean(values)), float(half)


def interval_over_both(missed: np.ndarray, resamples: int = 2000) -> float:
    """Half the width of the 95 % interval of the mean of `missed`, (folds, images), over folds and test images.

    It covers other training images, initialisations and orders, and other test images too. An entry is 1 for a wrong
    answer, or for a paired difference that of two such entries: -1, 0 or 1. Folds and images are drawn anew
    independently of each other, and each draw is weighed into the mean as w_fold^T M w_image (the pigeonhole bootstrap
    of Owen 2007). One fold fewer is drawn than there are, which makes the variance over folds unbiased (Rao and Wu
    1988), and the deviation of the resampled means is multiplied by Student's t for the folds, since these are few: so
    without any difference between images it is the interval of `mean_and_interval`. The seed is fixed.
    """
    folds, images = missed.shape
    if folds < 2:
        return math.nan
    of_folds, of_images = bootstrap_weights(folds, images, resamples)
    # counts up to 2**24 are exact in single precision: the same on every machine
    counts = (missed.astype(np.float32) @ of_images.T).astype(float)  # (folds, resamples)
    means = (of_folds.T * counts).sum(0) / ((folds - 1) * images)
    return float(stats.t.ppf(0.975, folds - 1) * means.std(ddof=1))


@lru_cache(maxsize=1)
def bootstrap_weights(folds: int, images: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each resample draws each fold and each image: (resamples, folds) and (resamples, images)."""
    rng = np.random.default_rng(0)
    of_folds = rng.multinomial(folds - 1, np.full(folds, 1 / folds), size=resamples)
    of_images = np.empty((resamples, images), np.float32)
    for row in of_images:
        row[:] = np.bincount(rng.integers(images, size=images), minlength=images)
    return of_folds, of_images


def share_won(differences: Sequence[float]) -> Share:
    """The share of pairs whose difference is negative, ties counted half, and its Clopper-Pearson interval.

    A share of n/2 wins and as many ties is not binomial; the ends, quantiles of beta distributions, then lie between
    those of the whole numbers beside it.
    """
    differences = np.asarray(differences)
    n, won = len(differences), (differences < 0).sum() + 0.5 * (differences == 0).sum()
    low = stats.beta.ppf(0.025, won, n - won + 1) if won > 0 else 0.0
    high = stats.beta.ppf(0.975, won + 1, n - won) if won < n else 1.0
    return Share(float(won / n), float(low), float(high))


def signed_ranks(differences: Sequence[float]) -> np.ndarray:
    """Ranks of the sizes of the differences other than 0, with their signs; equal sizes share their mean rank."""
    differences = np.asarray(differences, float)
    differences = differences[differences != 0]
    return np.sign(differences) * stats.rankdata(abs(differences))


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of the signed-rank test (Wilcoxon 1945), zeros left out.

    It is exact, with ties too: `counts` are the numbers of the 2**n assignments of signs by their sum of positive
    ranks, where SciPy's exact method supposes that no two ranks are equal.
    """
    ranks = signed_ranks(differences)
    doubled = (2 * abs(ranks)).astype(int)  # whole numbers, although mean ranks may end in a half
    counts = np.ones(1)
    for rank in doubled:
        counts = np.concatenate([counts, np.zeros(rank)]) + np.concatenate([np.zeros(rank), counts])
    positive = doubled[ranks > 0].sum()
    smaller = min(positive, doubled.sum() - positive)
    return min(1.0, float(2 * counts[: smaller + 1].sum() / 2.0 ** len(ranks)))


def holm(p_values: Sequence[float]) -> list[float]:
    """`p_values` adjusted for their number, in the same order (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdict(differences: Sequence[float], p: float) -> str:
    """`differences` in words, with `p` from their signed-rank test, adjusted for how many are made.

    "better" or "worse", the sign of the sum of ranks, if p is below 5 %; "equal" if the 90 % interval of the mean
    difference lies within ±0.25 points (two one-sided tests at 5 % each, Schuirmann 1987); else "undecided".
    "better" speaks of the sign and "equal" of the size, so a difference may be both, and neither rule wins:
    "better, by under 0.25".
    """
    mean, half = mean_and_interval(differences, 0.90)
    small = abs(mean) + half < MARGIN
    if p < 0.05:
        word = "better" if signed_ranks(differences).sum() < 0 else "worse"
        return f"{word}, by under {100 * MARGIN:g}" if small else word
    return "equal" if small else "undecided"


def paired_differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """a - b, rounded, so that equal differences of two fractions are equal numbers, and count as ties."""
    return np.round(np.subtract(a, b), 12)


def tested(family: Sequence[Sequence[float]]) -> list[tuple[float, str]]:
    """By paired differences of a `family` of tests: p of the signed-rank test, adjusted for their number; verdict."""
    adjusted = holm([wilcoxon(differences) for differences in family])
    return [(p, verdict(differences, p)) for differences, p in zip(family, adjusted, strict=True)]


def expected_best(errors: Sequence[float]) -> list[float]:
    """For k = 1 to n: the mean, over all choices of k of the n `errors`, of the lowest one of the choice.

    The unbiased estimator (Tang et al. 2020, "Showing your work doesn't always work") of the best of k random trials
    (Dodge et al. 2019): the i-th lowest error is the best of C(n - i, k - 1) of the C(n, k) choices.
    """
    n = len(errors)
    return [
        sum(math.comb(n - i, k - 1) * error for i, error in enumerate(sorted(errors), start=1)) / math.comb(n, k)
        for k in range(1, n + 1)
    ]


def at_border(value: float, low: float, high: float, log: bool) -> bool:
    """Whether `value` lies within BORDER of an end of the range from `low` to `high`, on its own scale."""
    low, value, high = (math.log(x) if log else x for x in (low, value, high))
    return not BORDER <= (value - low) / (high - low) <= 1 - BORDER


# --- as text ---------------------------------------------------------------------------------------------------------


def percent(value: Estimate, both: bool = True) -> str:
    """5.67 ± 0.27 (± 0.45), without what cannot be told."""
    return with_intervals(f"{100 * value.mean:.2f}", value, both)


def points(value: Estimate, both: bool = True) -> str:
    """As `percent`, with its sign."""
    return with_intervals(f"{100 * value.mean:+.2f}", value, both)


def with_intervals(text: str, value: Estimate, both: bool) -> str:
    text += "" if math.isnan(value.half) else f" ± {100 * value.half:.2f}"
    return text if math.isnan(value.both) or not both else f"{text} (± {100 * value.both:.2f})"
