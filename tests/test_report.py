"""Statistics against enumeration and SciPy; tables by hand; a whole report of made-up runs."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from compare import METHODS, PARTS, SCHEDULES
from support import figures, report, statistics
from support.statistics import PLAIN, ReportError


def planned_run(method, schedule, fold, error):
    """As compare.py hands it to `write_runs`."""
    epochs = [0, 2, 10, 50, 100]
    curves = {f"loss/{split}": [2.3 / (1 + epoch) + error for epoch in epochs] for split in ("train", "val", "test")}
    last = {"epoch": 100, "loss/val": 9 * error, "loss/test": 10 * error, "error/val": 1.05 * error}
    last |= {"error/test": error, "calibration/test": error / 2, "temperature": 1.5, "tempered/test": 4 * error}
    best = last | {"epoch": 20, "error/test": 1.2 * error, "loss/test": 5 * error, "calibration/test": 0.01}
    result = {"seed": fold, "data": "mnist", "status": "finished", "seconds": 3.14159, "versions": {"torch": "2"}}
    return {
        "method": method, "schedule": schedule, "fold": fold, "command": f"python train.py --lr 0.{fold}",
        "result": result | {"last": last, "best": best}, "curves": {"epoch": epochs} | curves,
        "reliability": [[0, 0, 0], [10, 5, 4], [90, 80, 79]], "processor": "A, B",
        "begun": "2026-01-01T10:00:17+00:00", "ended": "2026-01-01T10:01:17+00:00",
    }  # fmt: skip


def row(method, fold, error, val_error=0.5, schedule="constant"):
    return report.result_row(planned_run(method, schedule, fold, error)) | {"error/val": val_error}


PLAIN_ERRORS = [0.080, 0.090, 0.070, 0.085, 0.075, 0.081]
BETTER = [0.060, 0.071, 0.052, 0.061, 0.058, 0.062]
WORSE = [0.081, 0.089, 0.073, 0.089, 0.080, 0.087]


def rows(schedule="constant"):
    """Out of order, as workers finish them; the order by test error is not that by validation error."""
    found = [row("worse", fold, error, 0.04, schedule) for fold, error in enumerate(WORSE, start=3)][::-1]
    found += [row(PLAIN, fold, error, 0.08, schedule) for fold, error in enumerate(PLAIN_ERRORS, start=3)]
    return found + [row("better", fold, error, 0.06, schedule) for fold, error in enumerate(BETTER, start=3)][::-1]


def cells(lines, *first):
    """By column of a Markdown table, the cells of the row that begins with the cells `first`."""
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    (found,) = (one for one in table if one[: len(first)] == list(first))
    return dict(zip(table[0], found, strict=True))


def write_comparison(folder, names=(PLAIN, "L2", "dropout", "dropout + L2", "everything"), folds=range(3, 11)):
    """All files of a comparison, seeded."""
    rng, runs = np.random.default_rng(0), []
    for (number, method), schedule, fold in itertools.product(enumerate(names), SCHEDULES, folds):
        runs.append(planned_run(method, schedule, fold, 0.08 - 0.01 * number + 0.002 * rng.normal()))
    report.write_runs(folder, runs)
    tuned, one = [], {"settings": {"lr": 0.001}, "border": "lr", "processors": ["A", "A"]}
    for method, schedule, trial in itertools.product(names[:3], SCHEDULES, range(18)):
        point = one | {
            "method": method,
            "schedule": schedule,
            "trial": trial,
            "origin": "L2" if trial > 15 else "design",
        }
        point |= {"command": f"python train.py --seed {trial}", "chosen": trial == 1}
        tuned.append(point | {"errors": [0.1 + 0.01 * trial] * (3 if trial < 4 else 1)})
    report.write_tuned(folder / "tuned.csv", tuned, ["lr", "l2"], (0, 1, 2))
    return runs


def test_the_interval_of_a_mean_is_student_s():
    values = [0.071, 0.069, 0.074, 0.080, 0.066]
    mean, half = statistics.mean_and_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=np.std(values, ddof=1) / 5**0.5)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert statistics.mean_and_interval([0.07])[0] == 0.07 and math.isnan(statistics.mean_and_interval([0.07])[1])


TIED = ([1, -1, 2, -3, 3, 4, 5], [3, -1, 1, 1, 0, 2, 0], [-1, 1, 1, 1, 1, 1, 2, -2])


def test_the_signed_rank_test_is_scipy_s():
    rng = np.random.default_rng(0)
    for n in (5, 6, 9, 17):
        differences = rng.normal(0.4, 1, n)
        exact = stats.wilcoxon(differences, method="exact").pvalue
        assert statistics.signed_rank_p(differences) == pytest.approx(exact)
    for differences in TIED:
        exact = stats.wilcoxon(differences, method=stats.PermutationMethod()).pvalue  # of all assignments of signs
        assert statistics.signed_rank_p(differences) == pytest.approx(exact)
    assert statistics.signed_rank_p([0.0, 0.0, 0.0]) == 1, "no difference is no evidence"


@pytest.mark.parametrize("level", [0.95, 0.90])
def test_the_interval_holds_what_the_test_does_not_reject(level):
    """Of shifts between any two means of pairs."""
    differences = np.random.default_rng(1).normal(0.5, 1, 8)
    estimate, low, high = statistics.hodges_lehmann(differences, level)
    means = sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(differences, 2))
    assert estimate == np.median(means)
    for shift in [means[0] - 1, *(np.mean(both) for both in itertools.pairwise(means)), means[-1] + 1]:
        assert (low < shift < high) == (stats.wilcoxon(differences - shift, method="exact").pvalue > 1 - level)


@pytest.mark.parametrize("differences", TIED)
@pytest.mark.parametrize("level", [0.95, 0.90])
def test_with_ties_the_interval_covers_at_least_as_often(differences, level):
    """Of a truth of 0, over all assignments of signs."""
    signs = itertools.product([1, -1], repeat=len(differences))
    found = [statistics.hodges_lehmann(np.multiply(differences, one), level)[1:] for one in signs]
    assert level <= np.mean([low <= 0 <= high for low, high in found]) <= 1


def test_an_interval_needs_six_folds():
    assert math.isnan(statistics.hodges_lehmann([-1, -2, -3, -4, -5])[1])
    assert statistics.hodges_lehmann([-1, -2, -3, -4, -5, -6]) == (-3.5, -6, -1), "all signs alike: the whole range"


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.5]) == [1.0, 1.0] and statistics.holm([]) == []


def test_verdicts():
    """In points, all eight pairs of a sign unless said otherwise."""
    spread = np.array([-3, -2, -1, -0.5, 0.5, 1, 2, 3]) / 100
    said = [
        statistics.tested([(mean + scale * spread) / 100])[0].verdict
        for mean, scale in ((-1.0, 1), (1.0, 1), (-0.15, 1), (0.15, 1), (0.001, 1), (0.001, 30))
    ]
    assert said == ["better", "worse", "better, < 0.25", "worse, < 0.25", "equal", "undecided"]
    assert statistics.verdict((-1.0 + spread) / 100, 0.06) == "undecided", "p is what was adjusted"
    few = ": too few folds"
    for n, tests, said in ((5, 1, few), (6, 1, ""), (6, 2, few), (11, 32, ""), (11, 52, few)):
        assert statistics.verdict(np.arange(1, n + 1) / 100, 0.5, tests) == f"undecided{said}"
    assert {one.verdict for one in statistics.tested([-np.arange(1, 7) / 100] * 2)} == {"undecided: too few folds"}
    assert statistics.tested([[-0.01, -0.02, 0.0, 0.03, 0.01, -0.01]])[0].won == 3.5, "a tie is half"


def test_equal_is_two_one_sided_tests():
    """The interval of 90 % is within the margin where both of SciPy's one-sided tests reject it at 5 %."""
    spread = np.array([-0.2, -0.13, -0.06, 0.01, 0.05, 0.11, 0.21]) / 100
    found = []
    for shift in np.linspace(-0.25, 0.25, 41) / 100:
        sides = [("less", statistics.MARGIN), ("greater", -statistics.MARGIN)]
        p = [stats.wilcoxon(spread + shift - end, alternative=side, method="exact").pvalue for side, end in sides]
        found.append(max(p) < 0.05)
        assert (statistics.verdict(spread + shift, 1.0) == "equal") == found[-1]
    assert set(found) == {True, False}


def test_one_diverged_run_does_not_turn_a_verdict():
    """The mean is worse for one run that diverged; test and estimate, which go by ranks, say better."""
    (found,) = statistics.tested([[-0.01 - fold / 1e4 for fold in range(16)] + [0.80]])
    assert found.verdict == "better" and -0.012 < found.estimate < -0.01 and found.high < 0


def test_equal_differences_of_fractions_are_ties():
    a, b = statistics.paired_differences([0.071, 0.082], [0.061, 0.072])
    assert a == b and 0.071 - 0.061 != 0.082 - 0.072


def test_the_expected_best_is_that_of_all_choices():
    errors = [0.07, 0.05, 0.09, 0.05, 0.2, 0.06]
    best = statistics.expected_best(errors)
    for k in range(1, 7):
        assert best[k - 1] == pytest.approx(np.mean([min(choice) for choice in itertools.combinations(errors, k)]))


def test_optima_at_borders_are_named():
    logarithmic = [statistics.at_border(value, 1e-4, 1e-2, True) for value in (1.2e-4, 1e-3, 8.1e-3)]
    linear = [statistics.at_border(value, 0.0, 1.0, False) for value in (0.04, 0.06, 0.5, 0.96)]
    assert (logarithmic, linear) == ([True, False, True], [True, False, False, True])


def test_a_table_by_hand():
    header, lines = ["method", "error", "settings", "p"], [["L2", "6.22 ± 0.19", "a|b", "< 0.001"]]
    assert report.markdown_table(header, [*lines, ["elastic", "", "--lr", ""]]) == [
        "| method  |       error | settings |       p |",
        "| ------- | ----------: | -------- | ------: |",
        r"| L2      | 6.22 ± 0.19 | a\|b     | < 0.001 |",
        "| elastic |             | --lr     |         |",
    ]


def test_cells_by_hand():
    assert report.in_percent([0.06, 0.062]) == "6.10 ± 1.27" and report.in_percent([0.0622]) == "6.22"
    found = statistics.Difference(-0.0123, -0.02, -0.001, 0.0004, 16.5, 17, "better")
    assert report.difference_cells(found) == ["-1.23 [-2.00, -0.10]", "16.5/17", "< 0.001", "better"]
    assert report.difference_cells(found._replace(n=5, p=0.06)) == ["-1.23", "16.5/5", "", "better"]
    assert report.difference_cells(None) == [""] * 4


def test_both_schedules_stand_side_by_side():
    """Each difference is to the plain network under the same schedule; medians and means over the folds."""
    cycle = [one | {"error/test": one["error/test"] + 0.1 * (one["method"] == PLAIN)} for one in rows("one-cycle")]
    cycle = [one | {"error/val": one["error/val"] + 0.01} for one in cycle]
    tables = report.method_tables(report.grouped(rows() + cycle))
    names = [line.split(" | ")[0].strip("| ") for line in tables["methods"] if line.startswith("|")]
    assert names[2:] == ["worse", "better", PLAIN], "not in the order of the validation error"
    better, plain = (cells(tables["methods"], name) for name in ("better", PLAIN))
    assert better["error in %, constant"] == better["error in %, one-cycle"] == "6.05 (6.07)"
    assert better["difference, constant"].startswith("-1.9") and better["difference, one-cycle"].startswith("-11.9")
    assert (plain["difference, constant"], plain["error in %, one-cycle"]) == ("", "18.05 (18.02)")
    worse = cells(tables["tests"], "worse", "constant")
    four = [statistics.signed_rank_p(np.round(np.subtract(WORSE, PLAIN_ERRORS), 9)), *[2 / 2**6] * 3]
    assert worse["p"] == f"{statistics.holm(four)[0]:.3f}", "both schedules are one family of tests"
    assert (worse["won"], worse["folds"], worse["verdict"]) == ("1/6", "6", "undecided: too few folds")
    best = list(cells(tables["best"], "better").values())
    assert best == ["better", "constant", "6.05", "0.605", "`python train.py --lr 0.3`"], "the lower validation error"


def test_costs_by_hand_and_without_those_of_a_diverged_run():
    found = rows()
    found[0] |= {"status": "diverged", "calibration/test": "", "tempered/test": ""}  # worse, on the last fold
    groups = report.grouped(found)
    table = report.costs_table(groups)
    assert cells(report.method_tables(groups)["tests"], "worse")["folds"] == "6 (1 diverged)"
    assert cells(table, "worse")["cost after T"] == f"{4 * np.median(WORSE[:-1]):.3f}"
    line = list(cells(table, "better", "constant").values())
    assert line[2:7] == ["6.05", "0.605", "3.0", "0.242", "1.50"]
    assert line[7:] == ["20", "7.26", "0.302", "1.0", "0.242"], "where it would be stopped"


def test_missing_runs_are_named():
    with pytest.raises(ReportError, match=r"'worse' ran on the folds 3, 4, 5, 6, 7, others on 3, 4, 5, 6, 7, 8"):
        report.grouped(rows()[1:])


def test_the_best_part_is_chosen_by_validation_under_the_same_schedule():
    """L2 is better on test images, dropout on validation images, but not with one-cycle."""
    errors = {PLAIN: (0.08, 0.08), "L2": (0.05, 0.07), "dropout": (0.06, 0.06), "dropout + L2": (0.055, 0.055)}
    found = []
    for schedule, (name, (test, val)), fold in itertools.product(SCHEDULES, errors.items(), range(3, 10)):
        val = 0.13 - val if schedule == "one-cycle" and "+" not in name else val
        found.append(row(name, fold, test + fold / 1e4, val, schedule))
    groups = report.grouped(found)
    parts = {"dropout + L2": ["L2", "dropout", "noise"], "absent": ["L2"]}
    pairs = report.beside_best_part(groups, parts)
    assert pairs == [("dropout + L2", "dropout", "constant"), ("dropout + L2", "L2", "one-cycle")]
    line = cells(report.combinations_table(groups, parts), "dropout + L2", "constant")
    assert (line["beside"], line["won"], line["p"], line["verdict"]) == ("dropout", "7/7", "0.031", "better")
    assert line["difference in points"] == "-0.50 [-0.50, -0.50]"


def test_everything_without_a_part_stands_beside_everything_alone():
    names = {PLAIN: 0.08, "everything": 0.012, "everything - noise": 0.02, "everything - L2": 0.0121}
    found = [row(name, fold, error + fold / 1e4) for name, error in names.items() for fold in range(3, 10)]
    lines = report.combinations_table(report.grouped(found), {})
    noise, penalty = (cells(lines, f"everything - {part}") for part in ("noise", "L2"))
    assert (noise["beside"], noise["verdict"], penalty["verdict"]) == ("everything", "worse", "worse, < 0.25")
    assert penalty["p"] == noise["p"] == f"{2 * 2 / 2**7:.3f}", "two tests are one family"
    assert list(report.better_schedules(report.grouped(found))) == [PLAIN, "everything"]


def test_runs_become_files(tmp_path):
    runs = write_comparison(tmp_path)
    del runs[0]["reliability"]  # it diverged
    runs[0]["curves"] = {name: values[:3] for name, values in runs[0]["curves"].items()}
    runs[0]["result"]["last"] = {"epoch": 10, "error/test": 0.9, "error/val": 0.9, "loss/test": 9.0, "loss/val": 9.0}
    report.write_runs(tmp_path, runs)
    first, second = report.read_csv(tmp_path / "results.csv")[:2]
    assert (first["calibration/test"], first["error/test"]) == ("", 0.9) and second["best/calibration/test"] == 0.01
    assert (second["begun"], second["processor"], second["seconds"]) == ("2026-01-01 10:00", "A, B", 3.1)
    bins = report.read_csv(tmp_path / "reliability.csv")
    assert bins[0] == {"method": PLAIN, "schedule": "constant", "images": 70, "confidence": 0.5, "right": 0.4}
    curves = report.read_csv(tmp_path / "curves.csv")
    assert [one["epoch"] for one in curves if one["split"] == "val"][:4] == [0, 2, 10, 0], "as far as all went"
    assert curves[1]["low"] < curves[1]["median"] < curves[1]["high"]


def test_a_report(tmp_path):
    write_comparison(tmp_path)
    given = {path.name for path in tmp_path.iterdir()}
    lines = report.write_report(tmp_path, PARTS)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name not in given}
    tables = ("methods", "tests", "best", "costs", "combinations")
    assert set(written) == {f"{name}.md" for name in tables} | {"methods.png", "curves.png", "reliability.png"}
    assert all(content.startswith(b"\x89PNG") for name, content in written.items() if name.endswith(".png"))
    assert "nan" not in "\n".join(lines) and "8 folds from 3 to 10" in written["methods.md"].decode()


def test_a_report_of_results_alone_on_one_fold(tmp_path):
    report.write_csv(tmp_path / "results.csv", [one for one in rows() if one["fold"] == 3])
    lines = report.write_report(tmp_path, PARTS)
    names = {"methods.md", "tests.md", "best.md", "costs.md", "methods.png", "results.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names and "nan" not in "".join(lines)


def test_the_report_of_a_tuning(tmp_path):
    write_comparison(tmp_path)
    lines = report.write_tuning(tmp_path, list(METHODS))
    assert lines == (tmp_path / "tuning.md").read_text().splitlines() and (tmp_path / "tuning.png").exists()
    line = list(cells(lines, "L2", "one-cycle").values())
    assert line == ["L2", "one-cycle", "11.00", "", "lr", "`python train.py --seed 1`"]
    rows = report.read_csv(tmp_path / "tuned.csv")
    assert rows[1] == {
        "method": PLAIN, "schedule": "constant", "trial": 1, "origin": "design", "command": "python train.py --seed 1",
        "lr": 0.001, "l2": "", **dict.fromkeys([f"val_error_fold_{fold}" for fold in (0, 1, 2)], 0.11),
        "chosen": 1, "border": "lr", "processor": "A",
    }  # fmt: skip
    assert (rows[4]["val_error_fold_0"], rows[4]["val_error_fold_1"], rows[4]["border"]) == (0.14, "", "")


def test_only_points_of_the_design_say_how_tuning_went():
    errors = (("constant", 0.09), ("constant", 0.07), ("constant", 0.08), ("one-cycle", 0.05))
    one = {"method": "L2", "origin": "design"}
    tuned = [one | {"schedule": schedule, "val_error_fold_0": error} for schedule, error in errors]
    others = [{"origin": PLAIN, "val_error_fold_0": 0.01}, {"method": "L1", "val_error_fold_0": ""}]
    (axis,) = figures.draw_tuning(tuned + [tuned[0] | other for other in others], ["L1", "L2"]).axes
    assert axis.lines[0].get_ydata() == pytest.approx([8, 100 * (0.07 + 0.07 + 0.08) / 3, 7])
    assert axis.lines[1].get_ydata() == pytest.approx([5])
