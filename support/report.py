"""Tables and figures of a comparison, from the files that it wrote; nothing here trains or chooses.

A folder holds: results.csv, a row a run; missed.npz, which test images each run got wrong; ensembles.csv, a row a mean
of several networks; sklearn.csv, a row a check by scikit-learn's network; curves.csv and histograms.csv, for two of the
figures. Another one holds tuned.csv, a row a point that was tried.
Errors are fractions in the files, and percent or percentage points in tables and figures. Unless said otherwise,
intervals have 95 %, differences are of test errors and paired by fold, and negative ones are improvements.
"""

import base64
import csv
import itertools
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from support import figures
from support.shell import replacing
from support.statistics import (
    BASELINE,
    LEAST_PAIRS,
    MARGIN,
    WITHOUT,
    Estimate,
    ReportError,
    by_method,
    interval_over_both,
    mean_and_interval,
    paired_differences,
    percent,
    points,
    runs_by_method,
    share_won,
    tested,
)

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
    """tuned.csv: every point of `rows`, its `settings` and its errors on `folds`, if chosen, and at which borders.

    `command` is all that it sets, as arguments of train.py.
    """
    lines = []
    for row in rows:
        line = {key: row[key] for key in ("method", "trial", "origin", "command")}
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


# --- what the tables say ---------------------------------------------------------------------------------------------


def summarize(rows: Sequence[dict], missed: dict) -> list[dict]:
    """First table: a row a method and its difference to the baseline, in the order of the validation error.

    `rows` and `missed` are those of results.csv and `read_missed`. The validation error has no interval over images:
    its images are nearly all that do not train, 57,000, and differ from fold to fold.
    """
    groups = runs_by_method(rows)
    if BASELINE not in groups:
        raise ReportError(f"results.csv: no run of {BASELINE!r}, to which all methods are compared: run it as well")
    table = [
        {
            "method": method,
            "n": len(runs),
            "diverged": sum(run["status"] == "diverged" for run in runs),
            "val": estimate([run["error/val"] for run in runs]),
            "test": estimate([run["error/test"] for run in runs], missed.get(method)),
            "seconds": float(np.mean([run["seconds"] for run in runs])),
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
        differences = paired_differences(*errors)
        images = [missed.get(name) for name in (method, reference)]
        # one bit each, without a sign
        difference = None if any(one is None for one in images) else images[0].astype(np.int8) - images[1]
        found.append(
            {"method": method, "reference": reference, "pairs": len(differences)}
            | {"test": estimate(errors[0], images[0]), "reference test": estimate(errors[1], images[1])}
            | {"difference": estimate(differences, difference), "differences": differences}
            | {"won": share_won(differences)}
        )
    for row, (p, word) in zip(found, tested([row.pop("differences") for row in found]), strict=True):
        row |= {"p": p, "verdict": word}
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
    header += ["folds won", "p", "verdict", "s/run"]
    narrow = ["method", "val %", "test error %", "to baseline", "won", "p", "verdict"]
    cells, narrow_cells = [], []
    for row in table:
        n = f"{row['n']} ({row['diverged']} diverged)" if row["diverged"] else str(row["n"])
        cells.append([row["method"], n, percent(row["val"]), percent(row["test"]), *paired_cells(row)])
        cells[-1].append(f"{row['seconds']:.0f}")
        narrow_cells.append([row["method"], f"{100 * row['val'].mean:.2f}", percent(row["test"], both=False)])
        narrow_cells[-1] += paired_cells(row, narrow=True)
    markdown = [*markdown_table(header, cells), "", methods_note(table, rows)]
    text = [*text_table(narrow, narrow_cells), "", "± is the 95 % interval over the folds; won is the share of them."]
    for row in table:
        if row["diverged"]:
            text.append(f"{row['method']}: {row['diverged']} of {row['n']} runs diverged")
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


def tuning_tables(rows: Sequence[dict]) -> tuple[list[str], list[str]]:
    """What was chosen of the `rows` of tuned.csv, as Markdown and for a terminal."""
    cells = []
    for method, tried in by_method(rows).items():
        for row in tried:
            if row["chosen"]:
                errors = [row[column] for column in row if column.startswith("val_error_fold_")]
                origin = row["origin"] if row["origin"] != "design" else ""
                cells.append([method, f"{100 * np.mean(errors):.2f}", str(len(tried)), origin, row["border"]])
                cells[-1].append(row["command"])
    header = ["method", "validation error in %", "points", "taken over from", "at a border", "settings of train.py"]
    note = (
        "Mean error after the last epoch on the folds that tune. Taken over from: the optimum is that of another "
        "method, with what is added at its weakest; else it is of the method's own design. At a border: what lies "
        "within a twentieth of an end of its range."
    )
    markdown = [*markdown_table(header, [[*row[:-1], f"`{row[-1]}`"] for row in cells]), "", note]
    text = text_table(["method", "val %", *header[2:]], cells)
    if any(row[4] for row in cells):
        text += ["WARNING: a setting was chosen at a border of its range; widen it (WIDER, WEAKENED) and tune again"]
    return markdown, text


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


# --- all of it -------------------------------------------------------------------------------------------------------


def write_report(folder: Path, methods: Sequence[str], parts: dict[str, Sequence[str]]) -> list[str]:
    """Writes the tables (Markdown) and figures (PNG) that follow from the files in `folder` beside them.

    Returns the tables' lines for a terminal of 100 columns. Only results.csv has to be there. `methods` are all there
    are, for their colours; `parts` are, by combination, the methods and smaller combinations of which it is made. From
    the same files come the same tables.
    """
    tables = {}  # by name of file, for the file and for the terminal
    found = {path.name for path in folder.iterdir()}

    def rows_of(name: str, *needed: str) -> list[dict]:
        return read_csv(folder / name, needed) if name in found else []

    rows = rows_of("results.csv", "error/val", "error/test")
    curves, histograms = rows_of("curves.csv"), rows_of("histograms.csv")
    missed = read_missed(folder / "missed.npz", rows) if "missed.npz" in found else {}
    table = summarize(rows, missed)
    beside, without = beside_best_part(rows, missed, parts), without_parts(rows, missed)
    means, check = ensembles(rows_of("ensembles.csv")), rows_of("sklearn.csv")
    tables["methods"] = methods_tables(table, rows)
    if beside or without:
        tables["combinations"] = combinations_tables(beside, without)
    if means:
        tables["ensembles"] = ensembles_tables(means)
    if check:
        tables["sklearn"] = check_tables(check)
    for name, (markdown, _) in tables.items():
        write_text(folder / f"{name}.md", "\n".join(markdown) + "\n")

    colour = figures.colours(methods)
    with figures.reproducible_figures():
        figures.save_figure(figures.draw_errors(table, rows, colour), folder / "errors")
        if curves:
            figures.save_figure(figures.draw_costs(table, curves, colour), folder / "costs")
        if histograms:
            figures.save_figure(figures.draw_histograms(histograms, colour), folder / "histograms")
        if beside or without:
            figures.save_figure(figures.draw_combinations(table, without, parts, colour), folder / "combinations")
    texts = [text for _, text in tables.values()]
    return [line for number, text in enumerate(texts) for line in ([""] if number else []) + text]


def write_tuning(folder: Path, methods: Sequence[str]) -> list[str]:
    """As `write_report`, of tuned.csv alone: what was chosen, and how far more points would still have helped."""
    rows = read_csv(folder / "tuned.csv", ("command", "chosen", "val_error_fold_0"))
    markdown, text = tuning_tables(rows)
    write_text(folder / "tuning.md", "\n".join(markdown) + "\n")
    with figures.reproducible_figures():
        figures.save_figure(figures.draw_tuning(rows, methods, figures.colours(methods)), folder / "tuning")
    return text
