"""Statistics, tables and figures of a comparison, from the files that it wrote; nothing here trains or chooses.

A folder holds: results.csv, a row a run; missed.npz, which test images each run got wrong; tuned.csv, a row a tuning
trial; ensembles.csv, a row a mean of several networks; sklearn.csv, a row a check by scikit-learn's network; curves.csv
and histograms.csv, for two of the figures.
Errors are fractions in the files, and percent or percentage points in tables and figures. Unless said otherwise,
intervals have 95 %, differences are of test errors and paired by fold, and negative ones are improvements.
"""

import base64
import contextlib
import csv
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from support.shell import replacing

BASELINE = "baseline"
WITHOUT = " - "  # "everything - noise" is "everything" without its part "noise": a row of the second table only
MARGIN = 0.0025  # differences smaller than that are as good as none
LEAST_PAIRS = 6  # with fewer no two-sided signed-rank test can reach 5 %, so no p is shown


class ReportError(Exception):
    """Files that contradict each other; one line."""


# --- files -----------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """A table with the columns of its first row; what a later row lacks stays empty."""
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path, needed: Sequence[str] = ()) -> list[dict]:
    """Undoes `write_csv`; what looks like a number is one. ReportError if a column that is `needed` is not there."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]
    for column in needed:
        if rows and column not in rows[0]:
            raise ReportError(f"{path}: has no column {column}; write it again with compare.py")
    return rows


def number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def write_runs(folder: Path, runs: Sequence[dict], drawn: Sequence[str]) -> None:
    """results.csv, missed.npz, curves.csv and histograms.csv (of the methods `drawn`) from what `runs` returned.

    A run has method, settings, fold, begun and ended; `result`, that of training; `curves`, measurements by column;
    unless it diverged, which test images it `missed`, packed; and perhaps `histograms`, buckets by tag. Those of a
    method stand together, folds ascending.
    """
    rows, bins, curves, missed = [], [], [], {}
    for run in runs:
        result = run["result"]
        last, best = (
            {name: row[name] for name in row if name.startswith(("epoch", "loss/", "error/"))}
            for row in (result["last"], result["best"])
        )
        rows.append(
            {key: run[key] for key in ("method", "settings", "fold")}
            | {key: result[key] for key in ("seed", "data", "status")}
            | last
            | {f"best/{name}": value for name, value in best.items()}
            | {"seconds": round(result["seconds"], 1)}
            | {key: run[key][:16].replace("T", " ") for key in ("begun", "ended")}  # minutes will do
        )
        for tag, histogram in run.get("histograms", {}).items() if run["method"] in drawn else ():
            for left, right, count in histogram:
                bins.append({"method": run["method"], "tag": tag, "left": left, "right": right, "count": count})
    for method, group in by_method(runs).items():
        if all("missed" in run for run in group):
            missed[method] = np.array([unpacked(run["missed"], run["result"]["sizes"]["test"]) for run in group])
        for split in ("train", "val"):
            costs = zip(*(run["curves"][f"loss/{split}"] for run in group), strict=False)  # one may have ended early
            for epoch, found in zip(group[0]["curves"]["epoch"], costs, strict=False):
                spread = {"mean": np.mean(found), "low": min(found), "high": max(found)}
                spread = {key: float(f"{value:.4g}") for key, value in spread.items()}
                curves.append({"method": method, "split": split, "epoch": int(epoch)} | spread)
    for name, lines in (("results", rows), ("curves", curves), ("histograms", bins)):
        if lines:
            write_csv(folder / f"{name}.csv", lines)
    write_missed(folder / "missed.npz", missed)


def write_tuned(path: Path, rows: Sequence[dict], settings: Sequence[str], folds: Sequence[int]) -> None:
    """tuned.csv: every point of `rows`, its `settings`, its errors on `folds`, if chosen, and at which borders."""
    lines = []
    for row in rows:
        line = {key: row[key] for key in ("method", "trial", "origin")}
        line |= {name: row["settings"].get(name, "") for name in settings}
        errors = itertools.zip_longest(folds, row["errors"], fillvalue="")
        line |= {f"val_error_fold_{fold}": error for fold, error in errors}
        lines.append(line | {"chosen": int(row["chosen"]), "border": row["border"]})
    write_csv(path, lines)


def packed(missed: np.ndarray) -> str:
    """Booleans (N,) as text that JSON can hold."""
    return base64.b64encode(zlib.compress(np.packbits(missed).tobytes())).decode()


def unpacked(text: str, n: int) -> np.ndarray:
    """Undoes `packed`."""
    return np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8))[:n].astype(bool)


def buckets(values: np.ndarray, bins: int) -> list[tuple[float, float, int]]:
    """A histogram: left and right end of each bucket, and how many values are in it."""
    counts, edges = np.histogram(values, bins)
    edges = [float(f"{edge:.6g}") for edge in edges]
    return [(*ends, int(count)) for ends, count in zip(itertools.pairwise(edges), counts, strict=True)]


def write_missed(path: Path, missed: dict[str, np.ndarray]) -> None:
    """Which test images were answered wrongly: by method (folds, images) of booleans, folds ascending. One bit each."""
    with replacing(path) as beside, beside.open("wb") as file:  # NumPy would add .npz to a name that lacks it
        np.savez_compressed(file, **{method: np.packbits(rows, axis=1) for method, rows in missed.items()})


def read_missed(path: Path, rows: Sequence[dict]) -> dict[str, np.ndarray]:
    """Undoes `write_missed` for the methods of `rows`, those of results.csv, whose errors it has to bear out."""
    groups = runs_by_method(rows)
    with np.load(path) as file:
        bits = {method: np.unpackbits(file[method], axis=1) for method in file.files if method in groups}
    errors = {method: np.array([run["error/test"] for run in groups[method]]) for method in bits}
    # the last byte of a row may be padded: how many images there are is what makes counts of the errors
    wrong, share = sum(int(found.sum()) for found in bits.values()), sum(error.sum() for error in errors.values())
    for method, found in bits.items():
        images = round(wrong / share) if wrong else found.shape[1]
        bits[method] = found[:, :images]
        if len(found) != len(errors[method]) or not np.allclose(found.sum(1) / images, errors[method], atol=1e-6):
            raise ReportError(
                f"{path}: the missed images of {method!r} do not make the test errors of results.csv; "
                "both must come from the same runs: write them again with compare.py"
            )
    return bits


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


# --- what the tables say ---------------------------------------------------------------------------------------------


def summarize(rows: Sequence[dict], missed: dict, tuned: Sequence[dict] = ()) -> list[dict]:
    """First table: a row a method and its difference to the baseline, in the order of the validation error.

    `rows`, `missed` and `tuned` are those of results.csv, `read_missed` and tuned.csv. The validation error has no
    interval over images: its images are nearly all that do not train, 57,000, and differ from fold to fold.
    """
    groups = runs_by_method(rows)
    if BASELINE not in groups:
        raise ReportError(f"results.csv: no run of {BASELINE!r}, to which all methods are compared: run it as well")
    borders = {row["method"]: row.get("border", "") for row in tuned if row["chosen"]}
    table = [
        {
            "method": method,
            "settings": runs[0]["settings"],
            "n": len(runs),
            "diverged": sum(run["status"] == "diverged" for run in runs),
            "val": estimate([run["error/val"] for run in runs]),
            "test": estimate([run["error/test"] for run in runs], missed.get(method)),
            "seconds": float(np.mean([run["seconds"] for run in runs])),
            "border": borders.get(method, ""),
        }
        for method, runs in groups.items()
        if WITHOUT not in method
    ]
    others = [row["method"] for row in table if row["method"] != BASELINE]
    pairs = {pair["method"]: pair for pair in compare([(method, BASELINE) for method in others], groups, missed)}
    return sorted((row | pairs.get(row["method"], {}) for row in table), key=lambda row: row["val"].mean)


def beside_best_part(rows: Sequence[dict], missed: dict, parts: dict[str, Sequence[str]]) -> list[dict]:
    """Second table: every combination beside the one of its `parts` that has the lowest mean validation error."""
    groups = runs_by_method(rows)
    val = {method: np.mean([run["error/val"] for run in runs]) for method, runs in groups.items()}
    run = {whole: [part for part in names if part in groups] for whole, names in parts.items() if whole in groups}
    return compare([(whole, min(names, key=val.get)) for whole, names in run.items() if names], groups, missed)


def without_parts(rows: Sequence[dict], missed: dict) -> list[dict]:
    """Second table, below: "everything - noise" beside "everything", and so on; a worse one lost a part that helps."""
    groups = runs_by_method(rows)
    pairs = [(method, method.split(WITHOUT)[0]) for method in groups if WITHOUT in method]
    return compare([pair for pair in pairs if pair[1] in groups], groups, missed)


def ensembles(rows: Sequence[dict]) -> list[dict]:
    """Third table: by method, the error of one network (mean over several), and of the mean of their outputs.

    `rows` have the columns method, fold, networks, error/one and error/mean.
    """
    return [
        {"method": method, "n": len(runs), "networks": runs[0]["networks"]}
        | {key: estimate([run[f"error/{key}"] for run in runs]) for key in ("one", "mean")}
        | {"difference": estimate([run["error/mean"] - run["error/one"] for run in runs])}
        for method, runs in by_method(rows).items()
    ]


def estimate(values: Sequence[float], missed: np.ndarray | None = None) -> Estimate:
    return Estimate(*mean_and_interval(values), math.nan if missed is None else interval_over_both(missed))


def compare(pairs: Sequence[tuple[str, str]], groups: dict[str, list[dict]], missed: dict) -> list[dict]:
    """Each first method of `pairs` beside the second one, all of them one family of tests."""
    found = []
    for method, reference in pairs:
        errors = [[run["error/test"] for run in groups[name]] for name in (method, reference)]
        # rounded, so that equal differences of two fractions are equal numbers, and count as ties
        differences = np.round(np.subtract(*errors), 12)
        images = [missed.get(name) for name in (method, reference)]
        # one bit each, without a sign
        difference = None if any(one is None for one in images) else images[0].astype(np.int8) - images[1]
        found.append(
            {"method": method, "reference": reference, "pairs": len(differences)}
            | {"test": estimate(errors[0], images[0]), "reference test": estimate(errors[1], images[1])}
            | {"difference": estimate(differences, difference), "differences": differences}
            | {"won": share_won(differences), "p": wilcoxon(differences)}
        )
    for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
        row |= {"p": p, "verdict": verdict(row.pop("differences"), p)}
    return found


# --- tables ----------------------------------------------------------------------------------------------------------


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for a terminal: columns aligned, those of numbers to the right."""
    right = numeric_columns(rows, len(header))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{'>' if r else '<'}{w}}" for cell, r, w in zip(row, right, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for a Markdown file."""
    rules = ["---:" if right else "---" for right in numeric_columns(rows, len(header))]
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, rules, *rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]


def numeric_columns(rows: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """Which columns hold, besides empty cells, only what begins like a number; without any cell, none."""
    cells = [[row[column] for row in rows if row[column]] for column in range(columns)]
    return [bool(column) and all(re.match(r"[-+]?\d|< ", cell) for cell in column) for column in cells]


def percent(value: Estimate, both: bool = True) -> str:
    """5.67 ± 0.27 (± 0.45), without what cannot be told."""
    return with_intervals(f"{100 * value.mean:.2f}", value, both)


def points(value: Estimate, both: bool = True) -> str:
    """As `percent`, with its sign."""
    return with_intervals(f"{100 * value.mean:+.2f}", value, both)


def with_intervals(text: str, value: Estimate, both: bool) -> str:
    text += "" if math.isnan(value.half) else f" ± {100 * value.half:.2f}"
    return text if math.isnan(value.both) or not both else f"{text} (± {100 * value.both:.2f})"


def paired_cells(row: dict, narrow: bool = False) -> list[str]:
    """Difference, folds won, p, verdict; empty for the baseline. `narrow` leaves out intervals."""
    if "difference" not in row:
        return [""] * 4
    share, low, high = row["won"]
    p = "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
    return [
        points(row["difference"], both=not narrow),
        f"{share:.2f}" if narrow else f"{share:.2f} [{low:.2f}, {high:.2f}]",
        p if row["pairs"] >= LEAST_PAIRS else "",
        row["verdict"],
    ]


def methods_tables(table: Sequence[dict], rows: Sequence[dict]) -> tuple[list[str], list[str]]:
    """The first table as Markdown and for a terminal of 100 columns; `rows` are those of results.csv."""
    header = ["method", "n", "validation error in %", "test error in %", "difference to the baseline in points"]
    header += ["folds won", "p", "verdict", "s/run", "chosen at a border"]
    narrow = ["method", "val %", "test error %", "to baseline", "won", "p", "verdict"]
    cells, narrow_cells = [], []
    for row in table:
        n = f"{row['n']} ({row['diverged']} diverged)" if row["diverged"] else str(row["n"])
        cells.append([row["method"], n, percent(row["val"]), percent(row["test"]), *paired_cells(row)])
        cells[-1] += [f"{row['seconds']:.0f}", row["border"]]
        narrow_cells.append([row["method"], f"{100 * row['val'].mean:.2f}", percent(row["test"], both=False)])
        narrow_cells[-1] += paired_cells(row, narrow=True)
    markdown = [*markdown_table(header, cells), "", methods_note(table, rows)]
    text = [*text_table(narrow, narrow_cells), "", "± is the 95 % interval over the folds; won is the share of them."]
    for row in table:
        if row["diverged"]:
            text.append(f"{row['method']}: {row['diverged']} of {row['n']} runs diverged")
        if row["border"]:
            text.append(f"{row['method']}: tuned to a border of its range ({row['border']}); widen it and tune again")
    return markdown, text


def methods_note(table: Sequence[dict], rows: Sequence[dict]) -> str:
    used = {row["method"] for row in table}
    rows = [row for row in rows if row["method"] in used]
    folds = sorted({row["fold"] for row in rows})
    consecutive = folds == list(range(folds[0], folds[-1] + 1))
    named = f"{folds[0]} to {folds[-1]}" if consecutive and len(folds) > 1 else ", ".join(map(str, folds))
    seeds = ", the run on fold k with seed k" if all(row["seed"] == row["fold"] for row in rows) else ""
    begun, ended = min(row["begun"] for row in rows), max(row["ended"] for row in rows)
    hours = sum(row["seconds"] for row in rows) / 3600
    return (
        f"{len(rows)} runs on {rows[0]['data']}, folds {named}{seeds}; from {begun} to {ended} UTC, {hours:.1f} hours "
        "of training in all. Errors after the last epoch, mean over the folds, in the order of the validation error. "
        f"{INTERVALS_NOTE} Folds won: the share of folds on which the method beats the baseline, ties counted half, "
        f"with its Clopper-Pearson interval. {VERDICT_NOTE}"
    )


INTERVALS_NOTE = (
    "± is the 95 % interval over folds (Student's t): it covers other training images, initialisations and orders, "
    "not other test images, which all runs share; in brackets, the interval over folds and test images together "
    "(bootstrap of both)."
)
VERDICT_NOTE = (
    "p is the exact signed-rank test of Wilcoxon, paired by fold, corrected for the number of rows (Holm). Verdict: "
    f"better or worse where p < 0.05, equal where the 90 % interval of the difference lies within ±{100 * MARGIN:g} "
    f'points, else undecided; the first speaks of the sign and the second of the size, and "by under {100 * MARGIN:g}" '
    "means that both hold."
)


def settings_table(table: Sequence[dict]) -> list[str]:
    """The methods' settings, as Markdown."""
    cells = [[row["method"], f"`{row['settings']}`" if row["settings"] else "", row["border"]] for row in table]
    return markdown_table(["method", "settings of `train.py`", "chosen at a border"], cells)


def combinations_tables(beside: Sequence[dict], without: Sequence[dict]) -> tuple[list[str], list[str]]:
    """The second table, of `beside_best_part` and `without_parts`, as Markdown and for a terminal."""
    markdown, text = [], []
    for table, first, second in ((beside, "combination", "best part"), (without, "without a part", "whole")):
        if not table:
            continue
        header = [first, "test error in %", second, "its test error in %", "difference in points", "folds won", "p"]
        cells = [
            [row["method"], percent(row["test"]), row["reference"], percent(row["reference test"]), *paired_cells(row)]
            for row in table
        ]
        markdown += [*markdown_table([*header, "verdict"], cells), ""]
        narrow = [[row["method"], row["reference"], *paired_cells(row, narrow=True)] for row in table]
        text += [*text_table([first, second, "difference", "won", "p", "verdict"], narrow), ""]
    note = (
        "The best part is the one with the lowest validation error, among the methods of which the combination is "
        f"made and smaller combinations of them. {INTERVALS_NOTE} {VERDICT_NOTE}"
    )
    return [*markdown, note], text[:-1]


def check_tables(rows: Sequence[dict]) -> tuple[list[str], list[str]]:
    """This repository beside scikit-learn's network, of the rows of sklearn.csv, as Markdown and for a terminal."""
    header = ["L2 penalty", "folds", "test error here in %", "scikit-learn's in %", "difference in points"]
    cells = []
    for penalty in dict.fromkeys(row["l2"] for row in rows):
        errors = [[row[f"error/{who}"] for row in rows if row["l2"] == penalty] for who in ("ours", "sklearn")]
        cells.append([f"{penalty:g}", str(len(errors[0])), *(percent(estimate(one)) for one in errors)])
        cells[-1].append(points(estimate(np.subtract(*errors))))
    note = (
        "The same network, trained on the same images here and by scikit-learn's MLPClassifier, which initialises as "
        "Glorot does: hence `--init glorot`, and the learning rate of the class's recipe. Mean over the folds and 95 % "
        "interval over them (Student's t), the difference paired by fold."
    )
    return [*markdown_table(header, cells), "", note], text_table(header, cells)


def ensembles_tables(table: Sequence[dict]) -> tuple[list[str], list[str]]:
    """The third table as Markdown and for a terminal."""
    header = ["method", "folds", "networks", "one network, error in %", "their mean, error in %", "difference"]
    cells = [
        [row["method"], *(str(row[key]) for key in ("n", "networks")), *(percent(row[key]) for key in ("one", "mean"))]
        for row in table
    ]
    for line, row in zip(cells, table, strict=True):
        line.append(points(row["difference"]))
    note = (
        "Test errors of one network, mean over the networks of a fold, and of the mean of the networks' outputs; mean "
        "over the folds and 95 % interval over them (Student's t), the difference in points and paired by fold."
    )
    return [*markdown_table(header, cells), "", note], text_table(header, cells)


# --- figures ---------------------------------------------------------------------------------------------------------


# At least 24 apart in CIELAB, also from black and silver, and none too pale for a thin line on white.
PALETTE = (
    "#5f7f9f", "#d9a066", "#f58231", "#2f9e44", "#9a6324", "#e83ed8", "#3f63d8", "#1fb5d8", "#911eb4",
    "#e0b400", "#86c127", "#800000", "#10107a", "#0b7a75", "#f08cae", "#7a7a00", "#a58be8", "#e6194b",
)  # fmt: skip


def colours(methods: Sequence[str]) -> dict[str, str]:
    """One colour a method, the same in every figure; `methods` are all there are, whichever were run."""
    others = [method for method in methods if method != BASELINE]
    return {method: PALETTE[index % len(PALETTE)] for index, method in enumerate(others)} | {BASELINE: "#000000"}


def panels(number: int, columns: int, width: float, height: float, **more):
    """A figure of `number` axes in rows of `columns`, each `width` by `height` inches, and the axes."""
    from matplotlib.figure import Figure

    columns = min(columns, number)
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(width * columns + 0.6, height * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **more)
    for place in range(number, lines * columns):
        axes.flat[place].axis("off")
        axes.flat[place - columns].tick_params(labelbottom=True)
    return figure, axes.flat[:number]


def draw_estimate(axis, place: float, value: Estimate, shade: str) -> None:
    """A diamond with the interval over folds as a thick line, and the one over folds and test images as a thin one."""
    mean, half, both = (100 * one for one in value)
    axis.errorbar(mean, place, xerr=half, fmt="none", elinewidth=2.6, color="black", zorder=3)
    axis.errorbar(mean, place, xerr=both, fmt="none", elinewidth=0.9, capsize=4, color="black", zorder=3)
    axis.plot(mean, place, "D", markersize=5, color=shade, markeredgecolor="black", zorder=4)


def draw_errors(table: Sequence[dict], rows: Sequence[dict], colour: dict):
    """The test error of every run as a dot, and mean and intervals of every method, in the order of `table`."""
    figure, (axis,) = panels(1, 1, 8.4, 0.36 * len(table) + 0.4)
    groups = by_method(rows)
    for place, row in enumerate(table):
        errors = 100 * np.array([run["error/test"] for run in groups[row["method"]]])
        spread = place + 0.22 * np.linspace(-1, 1, len(errors))  # by fold, so that dots do not hide each other
        shade = colour.get(row["method"], "grey")
        axis.plot(errors, spread, "o", markersize=4, alpha=0.7, markeredgewidth=0, color=shade)
        draw_estimate(axis, place, row["test"], shade)
        axis.text(1.01, place, percent(row["test"]), transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    axis.set_yticks(range(len(table)), [row["method"] for row in table])
    axis.set_ylim(len(table) - 0.4, -0.6)
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks = [tick for tick in (0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 80) if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel(
        "test error in %: every run, and the mean with its 95 % interval\n"
        "over folds (thick) and over folds and test images (thin)"
    )
    return figure


def draw_costs(table: Sequence[dict], curves: Sequence[dict], colour: dict):
    """Costs on training and validation images over the epochs: one panel a method, the baseline grey in each."""
    from matplotlib.lines import Line2D

    groups = by_method(curves)
    methods = [row["method"] for row in table if row["method"] in groups]
    figure, axes = panels(len(methods), 5, 2.3, 1.9, sharex=True, sharey=True)

    def draw(axis, method: str, shade, **more) -> None:
        for split, style in (("train", "--"), ("val", "-")):
            points = [row for row in groups[method] if row["split"] == split and row["epoch"] > 0]
            epochs, mean, low, high = ([row[key] for row in points] for key in ("epoch", "mean", "low", "high"))
            axis.plot(epochs, mean, style, color=shade, **more)
            axis.fill_between(epochs, low, high, color=shade, alpha=0.2, linewidth=0)

    for axis, method in zip(axes, methods, strict=True):
        if method != BASELINE and BASELINE in groups:
            draw(axis, BASELINE, "silver", linewidth=1)
        draw(axis, method, colour.get(method, "grey"), linewidth=1.6)
        axis.set_title(method, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].set_xscale("log")
    axes[0].set_yscale("log")
    axes[0].set_ylim(bottom=max(1e-4, axes[0].get_ylim()[0]))
    keys = [
        Line2D([], [], color="black", linestyle="-", label="validation: mean and range over the folds"),
        Line2D([], [], color="black", linestyle="--", label="training"),
        Line2D([], [], color="silver", linestyle="-", label="the baseline's"),
    ]
    figure.legend(handles=keys, loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("cross-entropy in nats", fontsize=10)
    return figure


def draw_histograms(histograms: Sequence[dict], colour: dict):
    """Weights of every linear layer, and entropy of the output on test images, after the last epoch."""
    groups = by_method(histograms)
    methods = list(groups)
    figure, axes = panels(2 * len(methods), len(methods), 2.3, 2.2, sharex="row", sharey="row")
    upper, lower = axes[: len(methods)], axes[len(methods) :]

    def buckets(method: str, tag: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Left and right end of each, and the share of all values in it."""
        found = [row for row in groups[method] if row["tag"] == tag]
        left, right, counts = (np.array([row[key] for row in found], float) for key in ("left", "right", "count"))
        return left, right, counts / counts.sum()

    def draw_weights(axis, method: str, layer: str, **more) -> None:
        left, right, shares = buckets(method, f"weights/{layer}")
        axis.stairs(shares / (right - left), [*left, right[-1]], label=layer, **more)

    def draw_entropy(axis, method: str, tag: str, **more) -> None:
        left, right, shares = buckets(method, tag)
        shares, edges = np.histogram((left + right) / 2, bins=40, range=(0, top), weights=shares)
        axis.stairs(shares, edges, **more)

    def reach(method: str, layer: str) -> float:
        """Within which all but a thousandth of the weights lie."""
        left, right, shares = buckets(method, f"weights/{layer}")
        distance = np.maximum(abs(left), abs(right))
        nearest = np.argsort(distance, kind="stable")
        return distance[nearest][np.searchsorted(np.cumsum(shares[nearest]), 0.999)]

    top = max(row["right"] for row in histograms if row["tag"].startswith("entropy/"))
    layers = [
        tag.removeprefix("weights/") for tag in dict.fromkeys(row["tag"] for row in histograms) if "weights/" in tag
    ]
    limit = max(reach(method, layer) for method in methods for layer in layers)

    for above, below, method in zip(upper, lower, methods, strict=True):
        shade = colour.get(method, "grey")
        for layer, style in zip(layers, itertools.cycle(("-", "--", "-.", ":"))):
            draw_weights(above, method, layer, color=shade, linestyle=style)
        draw_entropy(below, method, "entropy/untrained", color="grey", hatch="////", label="before training")
        draw_entropy(below, method, "entropy/test", color=shade, fill=True, alpha=0.6, label="after training")
        above.set_title(method, fontsize=10)
        above.set_xlabel("weight", fontsize=9)
        below.set_xlabel("entropy of the output in nats", fontsize=9)
    for axis in axes:
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    upper[0].set_ylabel("density of the weights")
    lower[0].set_ylabel("share of the images")
    upper[-1].legend(fontsize=7)
    lower[-1].legend(fontsize=7)
    upper[0].set_xlim(-limit, limit)
    return figure


def draw_combinations(table: Sequence[dict], without: Sequence[dict], parts: dict[str, Sequence[str]], colour: dict):
    """A panel a combination: its test error with both intervals, above those of its parts; and what it is without."""
    tests = {row["method"]: row["test"] for row in [*table, *without]}
    wholes = {whole: [name for name in names if name in tests] for whole, names in parts.items() if whole in tests}
    groups = [[whole, *sorted(names, key=lambda name: tests[name].mean)] for whole, names in wholes.items() if names]
    for whole in dict.fromkeys(row["reference"] for row in without):
        names = [row["method"] for row in without if row["reference"] == whole]
        groups.append([whole, *sorted(names, key=lambda name: tests[name].mean)])
    groups.sort(key=len)
    lines = [max(map(len, groups[start : start + 3])) for start in range(0, len(groups), 3)]
    heights = [0.24 * line + 0.4 for line in lines]
    shape = {"gridspec_kw": {"height_ratios": heights}}
    figure, axes = panels(len(groups), 3, 3.6, sum(heights) / len(heights) + 0.2, **shape)
    for number, (axis, names) in enumerate(zip(axes, groups, strict=True)):
        for place, name in enumerate(names):
            draw_estimate(axis, place, tests[name], colour.get(name, "silver"))
        axis.axvspan(*(100 * (tests[names[0]].mean + side * MARGIN) for side in (-1, 1)), color="grey", alpha=0.2)
        labels = [name.replace(f"{names[0]}{WITHOUT}", "without ") for name in names]
        axis.set_yticks(range(len(names)), labels, fontsize=9)
        axis.get_yticklabels()[0].set_fontweight("bold")
        axis.set_ylim(lines[number // 3] - 0.4, -0.6)
        axis.grid(axis="x", alpha=0.3)
    figure.supxlabel(
        "test error in %: mean and 95 % interval over folds (thick),\n"
        "over folds and test images (thin); grey: within\n"
        f"{100 * MARGIN:g} points of the combination",
        fontsize=9,  # it has to fit below a single panel
    )
    return figure


def draw_tuning(tuned: Sequence[dict], methods: Sequence[str], colour: dict):
    """By method, the expected best validation error of k of its points, on the first fold, where all of them ran.

    Only the points of the method's own design: those taken over from its parts were not drawn from its space.
    """
    designs = {
        method: [
            100 * row["val_error_fold_0"]
            for row in trials
            if row.get("origin", "design") == "design" and row["val_error_fold_0"] != ""
        ]
        for method, trials in by_method(tuned).items()
    }
    named = [method for method in dict.fromkeys([*methods, *designs]) if designs.get(method)]
    figure, axes = panels(len(named), 5, 2.3, 1.9, sharex=True)
    for axis, method in zip(axes, named, strict=True):
        best = expected_best(designs[method])
        axis.plot(range(1, len(best) + 1), best, "o-", markersize=3, color=colour.get(method, "grey"))
        axis.set_title(method, fontsize=10)
        # all panels span the same ratio, so that a slope means the same relative gain in each
        axis.set_yscale("log")
        axis.set_ylim(best[-1] * 0.96, best[-1] * 1.5)
        ticks = np.linspace(best[-1], best[-1] * 1.4, 4)
        axis.set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        half = (len(best) + 1) // 2
        text = f"from {half} to {len(best)}: {best[-1] - best[half - 1]:+.2f}"
        axis.text(0.96, 0.93, text, transform=axis.transAxes, ha="right", va="top", fontsize=8)
    axes[0].set_xticks([k for k in (1, 4, 8, 12, 16, 24, 32) if k <= max(map(len, designs.values()))])
    figure.supxlabel("random points tried; in each panel, what the second half of them gained, in points", fontsize=10)
    figure.supylabel("expected best validation error in %", fontsize=10)
    return figure


# --- all of it -------------------------------------------------------------------------------------------------------


def write_report(folder: Path, methods: Sequence[str], parts: dict[str, Sequence[str]]) -> list[str]:
    """Writes the tables (Markdown) and figures (PNG, SVG) that follow from the files in `folder` beside them.

    Returns the tables' lines for a terminal of 100 columns. Only results.csv has to be there. `methods` are all there
    are, for their colours; `parts` are, by combination, the methods and smaller combinations of which it is made. From
    the same files come the same bytes.
    """
    tables = {}  # by name of file, for the file and for the terminal
    found = {path.name for path in folder.iterdir()}

    def rows_of(name: str, *needed: str) -> list[dict]:
        return read_csv(folder / name, needed) if name in found else []

    rows, tuned = rows_of("results.csv", "error/val", "error/test"), rows_of("tuned.csv", "chosen", "val_error_fold_0")
    curves, histograms = rows_of("curves.csv"), rows_of("histograms.csv")
    missed = read_missed(folder / "missed.npz", rows) if "missed.npz" in found else {}
    table = summarize(rows, missed, tuned)
    beside, without = beside_best_part(rows, missed, parts), without_parts(rows, missed)
    means, check = ensembles(rows_of("ensembles.csv")), rows_of("sklearn.csv")
    tables["methods"] = methods_tables(table, rows)
    tables["settings"] = settings_table(table), []
    if beside or without:
        tables["combinations"] = combinations_tables(beside, without)
    if means:
        tables["ensembles"] = ensembles_tables(means)
    if check:
        tables["sklearn"] = check_tables(check)
    for name, (markdown, _) in tables.items():
        write_text(folder / f"{name}.md", "\n".join(markdown) + "\n")

    colour = colours(methods)
    with reproducible_figures():
        save_figure(draw_errors(table, rows, colour), folder / "errors")
        if curves:
            save_figure(draw_costs(table, curves, colour), folder / "costs")
        if histograms:
            save_figure(draw_histograms(histograms, colour), folder / "histograms")
        if beside or without:
            save_figure(draw_combinations(table, without, parts, colour), folder / "combinations")
        if tuned:
            save_figure(draw_tuning(tuned, methods, colour), folder / "tuning")
    texts = [text for _, text in tables.values() if text]
    return [line for number, text in enumerate(texts) for line in ([""] if number else []) + text]


@contextlib.contextmanager
def reproducible_figures() -> Iterator[None]:
    """Inside, figures look alike and are the same files everywhere, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "report"
        yield


def save_figure(figure, path: Path) -> None:
    """`figure` as PNG and as SVG, without a date."""
    for kind, more in (("png", {"dpi": 120}), ("svg", {"metadata": {"Date": None}})):
        with replacing(path.with_name(f"{path.name}.{kind}")) as beside:
            figure.savefig(beside, format=kind, **more)
        figure.set_layout_engine("none")  # it is laid out by now, which takes longest
