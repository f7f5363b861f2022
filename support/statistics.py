"""Statistics of a comparison: means and their intervals, paired differences, and what may be said of them.

Errors are fractions. Differences are of test errors and paired by fold; negative ones are improvements.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.special import comb

PLAIN = "plain, tuned"  # the network without regularisation, to which all methods are compared
WITHOUT = " - "  # "everything - noise" is "everything" without its part "noise", and no method of its own
MARGIN = 0.0025  # differences smaller than that are as good as none
BORDER = 0.05  # of a range, on its own scale: what lies that near to an end may be better beyond it
LEAST_PAIRS = 6  # with fewer no two-sided signed-rank test can reach 5 %, and there is no interval


class ReportError(Exception):
    """Files that contradict each other; one line."""


def by_method(rows: Iterable[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row)
    return found


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of `values` and half the width of its 95 % interval, by Student's t; the half is nan for a single value."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * stats.sem(values) if n > 1 else math.nan
    return float(np.mean(values)), float(half)


def expected_best(errors: Sequence[float]) -> list[float]:
    """For k = 1 to n, the lowest one of k of the n `errors`, as the mean over all choices of k (Tang et al. 2020)."""
    places = np.arange(1, len(errors) + 1)  # the i-th lowest is the best of C(n - i, k - 1) of the C(n, k) choices
    return [float(np.sort(errors) @ comb(len(errors) - places, k - 1) / comb(len(errors), k)) for k in places]


def at_border(value: float, low: float, high: float, log: bool) -> bool:
    """Whether `value` lies within BORDER of an end of the range from `low` to `high`, on its own scale."""
    low, value, high = (math.log(x) if log else x for x in (low, value, high))
    return not BORDER <= (value - low) / (high - low) <= 1 - BORDER


class Difference(NamedTuple):
    """What `n` paired differences say; nan where there are too few to tell."""

    estimate: float  # Hodges-Lehmann
    low: float  # its interval
    high: float
    p: float  # of the signed-rank test, adjusted for the number of tests
    won: float  # folds with a negative difference; a tie is half
    n: int
    verdict: str


def paired_differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """a - b, rounded, so that equal differences of two fractions are equal numbers, and count as ties."""
    return np.round(np.subtract(a, b), 12)


def tested(family: Sequence[Sequence[float]]) -> list[Difference]:
    """What each of a `family` of paired differences says, its p adjusted for their number."""
    found, adjusted = [], holm([signed_rank_p(differences) for differences in family])
    for differences, p in zip(map(np.asarray, family), adjusted, strict=True):
        n, won = len(differences), float((differences < 0).sum() + 0.5 * (differences == 0).sum())
        found.append(Difference(*hodges_lehmann(differences), p, won, n, verdict(differences, p, len(family))))
    return found


def hodges_lehmann(differences: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """The median of the means of all pairs, each value with itself as well; and the ends of its interval.

    The interval is what the exact signed-rank test does not reject, and ends at means of pairs (Hodges and Lehmann
    1963). Its ends belong to it, so with ties it covers the truth at least as often (Noether 1967). The ends are nan
    where not even the range of all is wide enough: of fewer than 6 differences at 95 %, 5 at 90 %.
    """
    means = np.sort([(a + b) / 2 for a, b in combinations_with_replacement(differences, 2)])
    sums = rank_sums(range(1, len(differences) + 1))
    place = int(len(sums) * (1 - level) / 2)
    cut = int(np.partition(sums, place)[place])  # so many sums, the lowest ones, are too rare together
    return float(np.median(means)), *(map(float, (means[cut - 1], means[-cut])) if cut else (math.nan, math.nan))


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p of the signed-rank test (Wilcoxon 1945), zeros left out; exact with ties too, unlike SciPy's."""
    ranks = signed_ranks(differences)
    sums, seen = rank_sums(abs(ranks)), ranks[ranks > 0].sum()
    return min(1.0, 2 * float(min((sums <= seen).mean(), (sums >= seen).mean())))


def signed_ranks(differences: Sequence[float]) -> np.ndarray:
    """Ranks of the sizes of the differences other than 0, with their signs; equal sizes share their mean rank."""
    differences = np.asarray(differences, float)
    differences = differences[differences != 0]
    return np.sign(differences) * stats.rankdata(abs(differences))


def rank_sums(ranks: Iterable[float]) -> np.ndarray:
    """The sum of the positive ones of n `ranks`, under each of the 2**n assignments of signs; n is at most 17 folds."""
    sums = np.zeros(1)
    for rank in ranks:
        sums = np.concatenate([sums, sums + rank])
    return sums


def holm(p_values: Sequence[float]) -> list[float]:
    """`p_values` adjusted for their number, in the same order (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdict(differences: Sequence[float], p: float, tests: int = 1) -> str:
    """`differences` in words, with `p` from their signed-rank test, adjusted for how many `tests` are made.

    "better" or "worse", the sign of the sum of ranks, if p is below 5 %; "equal" if the 90 % interval lies within
    MARGIN (two one-sided tests at 5 % each, Schuirmann 1987); else "undecided". A difference can be clear and small at
    once: "better, < 0.25". Folds are too few where not even differences of one sign could make p so low.
    """
    n = len(differences)
    _, low, high = hodges_lehmann(differences, 0.90)
    small = n >= LEAST_PAIRS and low > -MARGIN and high < MARGIN
    if p < 0.05:
        word = "better" if signed_ranks(differences).sum() < 0 else "worse"
        return f"{word}, < {100 * MARGIN:g}" if small else word
    return "equal" if small else "undecided" if tests * 2.0 ** (1 - n) < 0.05 else "undecided: too few folds"
