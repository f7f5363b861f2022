import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from test_train import ROOT

import compare
import report


def test_the_interval_is_student_s():
    values = [0.071, 0.069, 0.074, 0.080, 0.066]
    mean, half = report.mean_and_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=np.std(values, ddof=1) / 5**0.5)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert half == pytest.approx(2.776445 * 0.0053385 / 5**0.5, rel=1e-4)  # a table of t, and the deviation by hand


def test_holm_by_hand():
    assert report.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert report.holm([0.6, 0.5]) == [1.0, 1.0]
    assert report.holm([]) == []


def test_ties_are_half_an_improvement():
    assert report.probability_of_improvement([-0.1, -0.2, 0.0, 0.3]) == 0.625


def row(method, fold, test_error, val_error=0.5, **more):
    common = {"settings": f"--{method}", "data": "mnist", "status": "finished", "seconds": 10.0}
    times = {"begun": "2026-01-01 10:00", "ended": "2026-01-01 11:00"}
    return common | times | {"method": method, "fold": fold, "test_error": test_error, "val_error": val_error} | more


BASELINE = [0.080, 0.090, 0.070, 0.085, 0.075, 0.081]
BETTER = [0.060, 0.071, 0.052, 0.061, 0.058, 0.062]
WORSE = [0.081, 0.089, 0.073, 0.089, 0.080, 0.087]


def rows():
    """Out of order, as workers finish them; the order by test error is not that by validation error."""
    found = [row("worse", fold, error, 0.04) for fold, error in enumerate(WORSE, start=3)][::-1]
    found += [row("baseline", fold, error, 0.08) for fold, error in enumerate(BASELINE, start=3)]
    return found + [row("better", fold, error, 0.06) for fold, error in enumerate(BETTER, start=3)][::-1]


def test_a_summary_is_scipy_s():
    table = report.summarize(rows())
    assert [line["method"] for line in table] == ["worse", "better", "baseline"], "not ordered by validation"
    worse, better, baseline = table
    assert [line["n"] for line in table] == [6, 6, 6] and "p" not in baseline
    differences = np.subtract(BETTER, BASELINE)
    interval = stats.ttest_rel(BETTER, BASELINE).confidence_interval(0.95)
    mean, half = better["difference"]
    assert mean == pytest.approx(differences.mean())
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high))
    assert better["improvement"] == 1 and worse["improvement"] == pytest.approx(1 / 6)
    assert better["p"] == pytest.approx(2 * 2 / 2**6)  # all six signs alike: 2 of 2**6, times two methods
    assert worse["p"] == pytest.approx(max(better["p"], stats.wilcoxon(WORSE, BASELINE).pvalue))


def test_the_pairs_are_those_of_a_fold():
    shuffled = sorted(rows(), key=lambda one: one["test_error"])
    for one, other in zip(report.summarize(shuffled), report.summarize(rows()), strict=True):
        assert one.get("difference") == pytest.approx(other.get("difference"))


def test_a_diverged_run_is_counted_and_named():
    found = rows()
    found[0] |= {"status": "diverged", "test_error": 0.9}
    lines = report.table_lines(report.summarize(found), found)
    assert any(line.startswith("| worse |") and "6 (1 diverged)" in line for line in lines)


def test_what_is_written_is_read(tmp_path):
    written = [{"method": "a, b", "n": 3, "error": 0.1 + 0.2, "settings": ""}]
    report.write_csv(tmp_path / "x.csv", written)
    assert report.read_csv(tmp_path / "x.csv") == written


# --- the published comparison


def published(name):
    return report.read_csv(compare.PUBLISHED / f"{name}.csv")


def test_the_published_report_follows_from_its_results(tmp_path, monkeypatch, capsys):
    for path in compare.PUBLISHED.glob("*.csv"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(compare, "PUBLISHED", tmp_path)
    compare.main(["--report"])
    table = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out == table == (ROOT / "figures/compare/table.md").read_text()
    figures = sorted(path.name for path in tmp_path.glob("*.*g"))
    assert figures == [f"{name}.{kind}" for name in ("costs", "errors", "histograms") for kind in ("png", "svg")]
    for path in figures:
        assert (tmp_path / path).read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_the_published_runs_are_those_of_the_table_of_methods():
    found = {(one["method"], one["fold"]): one for one in published("results")}
    assert set(found) == {(method, fold) for method in compare.METHODS for fold in compare.COMPARISON_FOLDS}
    assert {one["data"] for one in found.values()} == {"mnist"}
    for (method, _), one in found.items():
        assert one["settings"] == compare.settings_text(compare.Config(**compare.METHODS[method]))


def test_the_methods_are_tuned_as_published():
    trials = published("tuned")
    for method, settings in compare.METHODS.items():
        of_method = [trial for trial in trials if trial["method"] == method]
        complete = [trial for trial in of_method if trial["val_error_fold_2"] != ""]
        best = min(complete, key=lambda trial: sum(trial[f"val_error_fold_{fold}"] for fold in (0, 1, 2)))
        assert len(of_method) == 8 and best["chosen"] == 1
        assert {name: best[name] for name in compare.tuned_settings(method)} == {
            name: settings[name] for name in compare.tuned_settings(method)
        }
        assert [trial["trial"] for trial in of_method] == list(range(8))
        for trial, candidate in zip(of_method, compare.candidates(method, 8), strict=True):
            assert all(trial[name] == candidate[name] for name in compare.tuned_settings(method))


def test_the_readme_shows_the_published_table():
    lines = (compare.PUBLISHED / "table.md").read_text().splitlines()
    readme = Path(ROOT / "README.md").read_text()
    for line in lines[2:]:
        if line.startswith("|"):
            _, method, _, _, val_error, test_error, *_ = (cell.strip() for cell in line.split("|"))
            cells = map(re.escape, (f"| {method} |", val_error, test_error))
            assert re.search(".*".join(cells), readme), f"{method}: {test_error}"
