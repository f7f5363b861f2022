"""Tables and figures of a comparison, from the files that it wrote; nothing here trains or chooses.

A folder holds results.csv, a row a run; curves.csv and reliability.csv, for two figures; or tuned.csv, a row a point
that was tried.
Errors are fractions in these files, and percent or percentage points in tables and figures.
"""

import contextlib
import csv
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from support import figures, statistics
from support.shell import replacing
from support.statistics import MARGIN, PLAIN, WITHOUT, Difference, ReportError

Groups = dict[tuple[str, str], list[dict]]  # by method and schedule, its runs, folds ascending
Pair = tuple[str, str, str]  # a method, the one that it is compared to, and the schedule of both


def write_text(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """A table with the columns of all `rows`; what a row lacks stays empty."""
    columns = dict.fromkeys(column for row in rows for column in row)
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict]:
    """Undoes `write_csv`; what looks like a number is one."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: read_number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def read_number(text: str) -> float | int | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


MEASURED = ("epoch", "loss/", "error/", "calibration/", "temperature", "tempered/")  # kept of a moment of a run


def write_runs(folder: Path, runs: Sequence[dict]) -> None:
    """results.csv, and of all folds together curves.csv and reliability.csv, from the runs of compare.py."""
    write_csv(folder / "results.csv", [result_row(run) for run in runs])
    curves, bins = [], []
    for (method, schedule), group in grouped(runs).items():
        name = {"method": method, "schedule": schedule}
        for split in ("train", "val", "test"):
            costs = zip(*(run["curves"][f"loss/{split}"] for run in group), strict=False)  # one may have ended early
            for epoch, found in zip(group[0]["curves"]["epoch"], costs, strict=False):
                spread = {"median": np.median(found), "low": min(found), "high": max(found)}
                spread = {key: float(f"{value:.4g}") for key, value in spread.items()}
                curves.append(name | {"split": split, "epoch": int(epoch)} | spread)
        kept = [run["reliability"] for run in group if "reliability" in run]
        for images, confidences, right in np.sum(kept, axis=0) if kept else ():
            if images:
                shares = {"confidence": round(confidences / images, 5), "right": round(right / images, 5)}
                bins.append(name | {"images": int(images)} | shares)
    write_csv(folder / "curves.csv", curves)
    if bins:  # not every run diverged
        write_csv(folder / "reliability.csv", bins)


def result_row(run: dict) -> dict:
    """What results.csv says of a run."""
    result, row = run["result"], {key: run[key] for key in ("method", "schedule", "fold", "command")}
    row |= {key: result[key] for key in ("seed", "data", "status")}
    for moment, prefix in (("last", ""), ("best", "best/")):
        row |= {prefix + key: value for key, value in result[moment].items() if key.startswith(MEASURED)}
    row |= {"seconds": round(result["seconds"], 1)}
    row |= {key: run[key][:16].replace("T", " ") for key in ("begun", "ended")}  # minutes will do
    return row | {"processor": run["processor"], "torch": result["versions"]["torch"]}


def write_tuned(path: Path, rows: Sequence[dict], settings: Sequence[str], folds: Sequence[int]) -> None:
    """tuned.csv: every point of `rows`, its `settings`, its errors on `folds` and where they were measured."""
    lines = []
    for row in rows:
        line = {key: row[key] for key in ("method", "schedule", "trial", "origin", "command")}
        line |= {name: row["settings"].get(name, "") for name in settings}
        errors = itertools.zip_longest(folds, row["errors"], fillvalue="")
        line |= {f"val_error_fold_{fold}": error for fold, error in errors}
        line |= {"chosen": int(row["chosen"]), "border": row["border"] if row["chosen"] else ""}
        lines.append(line | {"processor": "; ".join(dict.fromkeys(row["processors"]))})
    write_csv(path, lines)


# --- tables ----------------------------------------------------------------------------------------------------------


def grouped(rows: Sequence[dict]) -> Groups:
    """Runs, or the rows of results.csv; ReportError where methods ran on different folds."""
    found: Groups = {}
    for row in sorted(rows, key=lambda row: row["fold"]):
        found.setdefault((row["method"], row["schedule"]), []).append(row)
    folds = sorted({row["fold"] for row in rows})
    for (method, _), runs in found.items():
        if (own := [run["fold"] for run in runs]) != folds:
            ran, every = (", ".join(map(str, some)) for some in (own, folds))
            raise ReportError(f"{method!r} ran on the folds {ran}, others on {every}: run the command again")
    return found


def better_schedules(groups: Groups) -> dict[str, str]:
    """By method its better schedule, in the order of the validation error (median) under it: test chooses nothing."""
    found: dict[str, str] = {}
    for method, schedule in sorted(groups, key=lambda key: median(groups[key], "error/val")):
        if WITHOUT not in method:
            found.setdefault(method, schedule)
    return found


def beside_best_part(groups: Groups, parts: dict[str, Sequence[str]]) -> list[Pair]:
    """Every combination, the one of its `parts` with the lowest median validation error, and the schedule of both."""
    pairs = []
    for method, schedule in groups:
        if names := [part for part in parts.get(method, ()) if (part, schedule) in groups]:
            pairs.append((method, min(names, key=lambda part: median(groups[part, schedule], "error/val")), schedule))
    return pairs


def compare_pairs(groups: Groups, pairs: Sequence[Pair]) -> dict[Pair, Difference]:
    """What the test errors of each pair say; all `pairs` are one family of tests."""
    errors = [[[run["error/test"] for run in groups[name, schedule]] for name in both] for *both, schedule in pairs]
    return dict(zip(pairs, statistics.tested([statistics.paired_differences(*both) for both in errors]), strict=True))


def median(runs: Sequence[dict], column: str) -> float:
    """Over the folds; nan where no run has it."""
    values = [run[column] for run in runs if run.get(column, "") != ""]
    return float(np.median(values)) if values else np.nan


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> list[str]:
    """Lines of Markdown: a table, aligned so that it reads well on a terminal, numbers to the right; and a `note`."""
    columns = []
    for title, *cells in zip(header, *rows, strict=True):
        cells = [cell.replace("|", r"\|") for cell in cells]
        numbers = any(cells) and all(re.match(r"[-+]?\d|< |$", cell) for cell in cells)
        width = max(3, len(title), *map(len, cells))
        pad, rule = (str.rjust, "-" * (width - 1) + ":") if numbers else (str.ljust, "-" * width)
        columns.append([pad(title, width), rule, *(pad(cell, width) for cell in cells)])
    return [f"| {' | '.join(line)} |" for line in zip(*columns, strict=True)] + (["", note] if note else [])


def in_percent(values: Sequence[float]) -> str:
    """Mean of fractions and half the width of its interval, as 5.67 ± 0.27."""
    mean, half = statistics.mean_and_interval(values)
    return f"{100 * mean:.2f}" + (f" ± {100 * half:.2f}" if len(values) > 1 else "")


def at_median(runs: Sequence[dict], column: str, factor: float = 100, digits: int = 2) -> str:
    value = factor * median(runs, column)
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def median_and_mean(runs: Sequence[dict], column: str) -> str:
    """Of fractions in percent, the mean in brackets."""
    values = [100 * run[column] for run in runs]
    return f"{np.median(values):.2f} ({np.mean(values):.2f})"


DIFFERENCE_HEADER = ["difference in points", "won", "p", "verdict"]


def difference_cells(one: Difference | None) -> list[str]:
    """For DIFFERENCE_HEADER; empty for what is compared with nothing."""
    if one is None:
        return [""] * 4
    text, won = f"{100 * one.estimate:+.2f}", f"{one.won:g}/{one.n}"
    if one.n < statistics.LEAST_PAIRS:
        return [text, won, "", one.verdict]
    p = "< 0.001" if one.p < 0.001 else f"{one.p:.3f}"
    return [f"{text} [{100 * one.low:+.2f}, {100 * one.high:+.2f}]", won, p, one.verdict]


VERDICT_NOTE = (
    "Differences of test errors, paired by fold: Hodges-Lehmann estimate, with the 95 % interval of the exact signed-"
    "rank test. Won: folds with a lower error, ties half. p: of that test, corrected for the number of rows (Holm). "
    "The interval is not corrected, so it may leave out 0 where the verdict is undecided. "
    f"Better or worse: p < 0.05; equal: the 90 % interval is within ±{100 * MARGIN:g} points; < {100 * MARGIN:g}: both."
)
METHODS_NOTE = (
    "Test error after the last epoch: median over the folds, in brackets the mean; in the order of the validation "
    f'error under the better schedule. Difference to "{PLAIN}" under the same schedule; more of it in tests.md. All '
    "runs share one test set: an error of 5 % on 10,000 images has a binomial standard error of 0.22 points."
)
COSTS_NOTE = (
    "Medians over the folds, on test images: after the last epoch, and at the lowest validation cost (stopped). Cost: "
    "cross-entropy in nats. Calibration error: mean distance between confidence and share of right answers, in 15 bins "
    "of confidence. After T: the cost of logits / T, with the T that has the lowest cost on the validation images."
)
TUNING_NOTE = (
    "Mean error after the last epoch on the folds that tune. Taken over from: the optimum is that of another method, "
    "with what is added at its weakest. At a border: within a twentieth of an end of its range, to be widened."
)
BEST_NOTE = "Under the schedule with the lower validation error; medians over the folds. The command runs fold 0."
COMBINATIONS_NOTE = "Beside the part with the lowest validation error, smaller combinations included; median errors."


def method_tables(groups: Groups) -> dict[str, list[str]]:
    """By name of its file: both schedules side by side, the tests behind that, and a line a method for a reader."""
    order, schedules = better_schedules(groups), list(dict.fromkeys(schedule for _, schedule in groups))
    pairs = [(method, PLAIN, schedule) for method, schedule in groups if method in order and method != PLAIN]
    sides, tests, best, found = [], [], [], compare_pairs(groups, pairs)
    for method, better in order.items():
        sides.append([method])
        for schedule in schedules:
            runs, said = groups[method, schedule], difference_cells(found.get((method, PLAIN, schedule)))
            sides[-1] += [median_and_mean(runs, "error/test"), said[0], said[-1]]
            diverged = sum(run["status"] == "diverged" for run in runs)
            folds = f"{len(runs)} ({diverged} diverged)" if diverged else str(len(runs))
            val, seconds = median_and_mean(runs, "error/val"), at_median(runs, "seconds", 1, 0)
            tests.append([method, schedule, folds, val, *said, seconds])
        runs = groups[method, better]
        test = at_median(runs, "error/test"), at_median(runs, "loss/test", 1, 3)
        best.append([method, better, *test, f"`{runs[0]['command']}`"])
    header = [f"{name}, {schedule}" for schedule in schedules for name in ("error in %", "difference", "verdict")]
    below = ["method", "schedule", "folds", "validation error in %", *DIFFERENCE_HEADER, "s/run"]
    short = ["method", "better schedule", "test error in %", "test cost", "command"]
    return {
        "methods": markdown_table(["method", *header], sides, f"{provenance(groups)} {METHODS_NOTE}"),
        "tests": markdown_table(below, tests, f"Validation error: median and mean. {VERDICT_NOTE}"),
        "best": markdown_table(short, best, BEST_NOTE),
    }


def provenance(groups: Groups) -> str:
    """What ran where and when."""
    rows = [run for runs in groups.values() for run in runs]
    folds = {row["fold"] for row in rows}
    where = " and ".join(dict.fromkeys(f"{row['processor']} with PyTorch {row['torch']}" for row in rows))
    return (
        f"{len(rows)} runs on {rows[0]['data']}, {len(folds)} folds from {min(folds)} to {max(folds)}, the run on fold "
        f"k with seed k, on {where}; from {min(row['begun'] for row in rows)} to {max(row['ended'] for row in rows)} "
        f"UTC, {sum(row['seconds'] for row in rows) / 3600:.1f} hours of training in all."
    )


def costs_table(groups: Groups) -> list[str]:
    """Cost and calibration on test, after the last epoch and at the lowest validation cost."""
    columns = {  # factor and digits
        "error/test": ("error in %", 100, 2), "loss/test": ("cost", 1, 3),
        "calibration/test": ("calibration error in %", 100, 1), "tempered/test": ("cost after T", 1, 3),
        "temperature": ("T", 1, 2), "best/epoch": ("stopped after epoch", 1, 0),
        "best/error/test": ("error in %, stopped", 100, 2), "best/loss/test": ("cost, stopped", 1, 3),
        "best/calibration/test": ("calibration, stopped", 100, 1), "best/tempered/test": ("after T, stopped", 1, 3),
    }  # fmt: skip
    rows = [
        [method, schedule, *(at_median(runs, column, *how) for column, (_, *how) in columns.items())]
        for method in better_schedules(groups)
        for (name, schedule), runs in groups.items()
        if name == method
    ]
    return markdown_table(["method", "schedule", *(name for name, *_ in columns.values())], rows, COSTS_NOTE)


def combinations_table(groups: Groups, parts: dict[str, Sequence[str]]) -> list[str]:
    """Combinations beside their best part, and "everything" without each of its parts."""
    without = [(name, name.split(WITHOUT)[0], schedule) for name, schedule in groups if WITHOUT in name]
    lines = []
    for first, pairs in (("combination", beside_best_part(groups, parts)), ("without a part", without)):
        rows = []
        for (method, reference, schedule), one in compare_pairs(groups, pairs).items():
            errors = [at_median(groups[name, schedule], "error/test") for name in (method, reference)]
            rows.append([method, schedule, errors[0], reference, errors[1], *difference_cells(one)])
        header = [first, "schedule", "test error in %", "beside", "its test error in %", *DIFFERENCE_HEADER]
        lines += [*markdown_table(header, rows), ""] if rows else []
    return [*lines, f"{COMBINATIONS_NOTE} {VERDICT_NOTE}"] if lines else []


def write_report(folder: Path, parts: dict[str, Sequence[str]]) -> list[str]:
    """Writes the tables and figures of `folder`, `parts` being those of combinations; returns the tables' lines."""
    groups = grouped(read_csv(folder / "results.csv"))
    tables = method_tables(groups) | {"costs": costs_table(groups), "combinations": combinations_table(groups, parts)}
    tables = {name: lines for name, lines in tables.items() if lines}
    for name, lines in tables.items():
        write_text(folder / f"{name}.md", "\n".join(lines) + "\n")
    with figures.reproducible_figures():
        figures.save_figure(figures.draw_methods(groups, list(better_schedules(groups))), folder / "methods")
        if (curves := folder / "curves.csv").exists():
            figures.save_figure(figures.draw_costs(read_csv(curves), groups), folder / "curves")
        if (bins := folder / "reliability.csv").exists():
            figures.save_figure(figures.draw_reliability(read_csv(bins)), folder / "reliability")
    return [line for lines in tables.values() for line in (*lines, "")][:-1]


def write_tuning(folder: Path, methods: Sequence[str]) -> list[str]:
    """As `write_report`, of tuned.csv alone: what was chosen, and how far more points would still have helped."""
    rows, cells = read_csv(folder / "tuned.csv"), []
    for row in (row for row in rows if row["chosen"]):
        error = 100 * np.mean([row[column] for column in row if column.startswith("val_error_fold_")])
        origin = row["origin"].replace("design", "")
        cells.append([row["method"], row["schedule"], f"{error:.2f}", origin, row["border"], f"`{row['command']}`"])
    header = ["method", "schedule", "validation error in %", "taken over from", "at a border", "command"]
    lines = markdown_table(header, cells, TUNING_NOTE)
    write_text(folder / "tuning.md", "\n".join(lines) + "\n")
    with figures.reproducible_figures():
        figures.save_figure(figures.draw_tuning(rows, methods), folder / "tuning")
    return lines
