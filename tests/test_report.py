import itertools
import math
import re

import numpy as np
import pytest
from scipy import stats

from support import report

# --- synthetic comparisons


def row(method, fold, error, val_error=0.5, **more):
    common = {"method": method, "settings": f"--{method}", "fold": fold, "seed": fold, "data": "mnist"}
    common |= {"status": "finished", "error/val": val_error, "error/test": error, "seconds": 10.0}
    return common | {"begun": "2026-01-01 10:00", "ended": "2026-01-01 11:00"} | more


BASELINE = [0.080, 0.090, 0.070, 0.085, 0.075, 0.081]
BETTER = [0.060, 0.071, 0.052, 0.061, 0.058, 0.062]
WORSE = [0.081, 0.089, 0.073, 0.089, 0.080, 0.087]


def rows():
    """Out of order, as workers finish them; the order by test error is not that by validation error."""
    found = [row("worse", fold, error, 0.04) for fold, error in enumerate(WORSE, start=3)][::-1]
    found += [row("baseline", fold, error, 0.08) for fold, error in enumerate(BASELINE, start=3)]
    return found + [row("better", fold, error, 0.06) for fold, error in enumerate(BETTER, start=3)][::-1]


METHODS = {  # and about how large their errors may be
    "the class's recipe": 0.081, "baseline": 0.069, "He initialisation": 0.067, "L1": 0.065, "L2": 0.063,
    "weight decay": 0.066, "dropout": 0.060, "batch norm": 0.057, "layer norm": 0.058, "noise": 0.037,
    "geometric": 0.023, "elastic": 0.0175, "dropout + L2": 0.0525, "batch norm + L2": 0.0485,
    "layer norm + L2": 0.052, "batch norm + dropout": 0.056, "He + L2": 0.061, "batch norm + geometric": 0.0206,
    "everything": 0.0114,
}  # fmt: skip
PARTS = {
    "dropout + L2": ["dropout", "L2"],
    "batch norm + L2": ["batch norm", "L2"],
    "layer norm + L2": ["layer norm", "L2"],
    "batch norm + dropout": ["batch norm", "dropout"],
    "He + L2": ["He initialisation", "L2"],
    "batch norm + geometric": ["batch norm", "geometric"],
    "everything": ["batch norm", "L2", "noise", "geometric", "elastic", "batch norm + L2", "batch norm + geometric"],
}
WITHOUT = {"noise": 0.0124, "geometric": 0.014, "elastic": 0.0135, "L2": 0.0116, "batch norm": 0.0135}


def write_comparison(folder, folds=17, images=1003):
    """All files of a comparison of nineteen methods, seeded."""
    rng = np.random.default_rng(0)
    methods = METHODS | {f"everything - {part}": error for part, error in WITHOUT.items()}
    hard = rng.gamma(0.3, 1 / 0.3, images)  # images differ in how often they are missed
    results, missed, curves, histograms, tuned = [], {}, [], [], []
    for method, error in methods.items():
        chance = np.minimum(0.95, error * hard * rng.normal(1, 0.05, (folds, 1)))
        missed[method] = rng.random((folds, images)) < chance
        for fold, wrong in enumerate(missed[method].mean(1), start=3):
            more = {"settings": "--lr 0.003 --l2 0.0001"}
            results.append(row(method, fold, wrong, wrong * 1.05 + 0.001, **more))
    results[0]["status"] = "diverged"
    for method, error in METHODS.items():
        for split, end in (("train", 0.02 * error), ("val", 10 * error)):
            for epoch in (0, 2, 5, 12, 30, 80, 200, 500, 1000):
                cost = end + (2.3 - end) * math.exp(-math.log1p(epoch))
                part = {"mean": cost, "low": 0.8 * cost, "high": 1.2 * cost}
                curves.append({"method": method, "split": split, "epoch": epoch} | part)
        for trial in range(18):
            errors = error * np.exp(rng.gamma(1.5, 0.15, 3)) if trial < 16 else (error, error, error)
            columns = {"method": method, "trial": trial, "lr": 0.001, "origin": "design" if trial < 16 else "L2"}
            columns |= {f"val_error_fold_{fold}": one if trial < 4 or not fold else "" for fold, one in enumerate(errors)}
            tuned.append(columns | {"chosen": int(trial == 1), "border": "lr" if method == "L1" else ""})
    for method in ("baseline", "L1", "L2", "dropout", "batch norm", "everything"):
        edges = np.linspace(-0.6, 0.6, 41)
        for tag in (*(f"weights/{layer}" for layer in report.LAYERS), "entropy/untrained", "entropy/test"):
            ends = edges if tag.startswith("weights") else np.linspace(0, 2.3, 41)
            sizes = np.exp(-8 * abs(ends[:-1])) if tag != "entropy/untrained" else ends[:-1] > 2.2
            for left, right, size in zip(ends, ends[1:], sizes, strict=False):
                count = {"left": left, "right": right, "count": int(10_000 * size)}
                histograms.append({"method": method, "tag": tag} | count)
    ensembles = [
        {"method": method, "fold": fold, "networks": 5, "error/one": METHODS[method] + 0.0004 * fold}
        | {"error/mean": 0.85 * METHODS[method] + 0.0003 * fold}
        for method in ("baseline", "dropout", "everything")
        for fold in range(3, 8)
    ]
    files = {"results": results, "curves": curves, "histograms": histograms, "tuned": tuned, "ensembles": ensembles}
    for name, lines in files.items():
        report.write_csv(folder / f"{name}.csv", lines)
    report.write_missed(folder / "missed.npz", missed)
    return missed


