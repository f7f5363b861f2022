import itertools
import math

import numpy as np
import pytest
from scipy import stats

from support import figures, report, statistics

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


LAYERS = ("linear1", "linear2", "linear3", "linear4")
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


SOME = ("baseline", "L1", "L2", "dropout", "dropout + L2", "everything")


def write_comparison(folder, names=SOME, folds=17, images=1003):
    """All files of a comparison of the methods `names`, and of everything without its parts, seeded."""
    rng = np.random.default_rng(0)
    kept = {name: METHODS[name] for name in names}
    methods = kept | {f"everything - {part}": error for part, error in WITHOUT.items()}
    hard = rng.gamma(0.3, 1 / 0.3, images)  # images differ in how often they are missed
    results, missed, curves, histograms, tuned = [], {}, [], [], []
    for method, error in methods.items():
        chance = np.minimum(0.95, error * hard * rng.normal(1, 0.05, (folds, 1)))
        missed[method] = rng.random((folds, images)) < chance
        for fold, wrong in enumerate(missed[method].mean(1), start=3):
            more = {"settings": "--lr 0.003 --l2 0.0001"}
            results.append(row(method, fold, wrong, wrong * 1.05 + 0.001, **more))
    results[0]["status"] = "diverged"
    for method, error in kept.items():
        for split, end in (("train", 0.02 * error), ("val", 10 * error)):
            for epoch in (0, 2, 5, 12, 30, 80, 200, 500, 1000):
                cost = end + (2.3 - end) * math.exp(-math.log1p(epoch))
                part = {"mean": cost, "low": 0.8 * cost, "high": 1.2 * cost}
                curves.append({"method": method, "split": split, "epoch": epoch} | part)
        for trial in range(18):
            errors = error * np.exp(rng.gamma(1.5, 0.15, 3)) if trial < 16 else (error, error, error)
            columns = {"method": method, "trial": trial, "lr": 0.001, "origin": "design" if trial < 16 else "L2"}
            columns["command"] = f"--lr 0.001 --seed {trial}"
            for fold, one in enumerate(errors):
                columns[f"val_error_fold_{fold}"] = one if trial < 4 or not fold else ""
            tuned.append(columns | {"chosen": int(trial == 1), "border": "lr" if method == "L1" else ""})
    for method in ("baseline", "L1", "everything"):
        edges = np.linspace(-0.6, 0.6, 41)
        for tag in (*(f"weights/{layer}" for layer in LAYERS), "entropy/untrained", "entropy/test"):
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


# --- statistics


def test_the_interval_is_student_s():
    values = [0.071, 0.069, 0.074, 0.080, 0.066]
    mean, half = statistics.mean_and_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=np.std(values, ddof=1) / 5**0.5)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert half == pytest.approx(2.776445 * 0.0053385 / 5**0.5, rel=1e-4)  # a table of t, and the deviation by hand
    assert statistics.mean_and_interval(values, 0.90)[1] == pytest.approx(half * 2.131847 / 2.776445, rel=1e-5)
    assert statistics.mean_and_interval([0.07])[0] == 0.07 and math.isnan(statistics.mean_and_interval([0.07])[1])


def test_over_folds_alone_both_intervals_are_one():
    """Every image of a fold alike: nothing but the folds varies."""
    shares = np.array([1, 0, 0, 1, 0, 0, 0, 0, 1.0])
    missed = np.repeat(shares[:, None], 50, axis=1)
    assert statistics.interval_over_both(missed) == pytest.approx(statistics.mean_and_interval(shares)[1], rel=0.05)


def test_over_images_alone_the_interval_is_binomial():
    """Every fold alike: nothing but the images varies; t instead of the normal distribution is the folds' due."""
    missed = np.repeat((np.arange(2000) < 100)[None], 17, axis=0)
    expected = stats.t.ppf(0.975, 16) * (0.05 * 0.95 / 2000) ** 0.5
    assert statistics.interval_over_both(missed) == pytest.approx(expected, rel=0.05)
    assert math.isnan(statistics.interval_over_both(missed[:1]))


def test_the_bootstrap_of_both_is_one_by_index():
    """The product with weights against a loop that draws rows and columns; entries of a difference may be -1."""
    rng = np.random.default_rng(1)
    hard = rng.random(300) ** 4
    missed = (rng.random((8, 300)) < hard).astype(np.int8) - (rng.random((8, 300)) < 0.5 * hard)
    means = [
        missed[np.ix_(rng.integers(8, size=7), rng.integers(300, size=300))].mean() for _ in range(4000)
    ]  # fmt: skip
    half = statistics.interval_over_both(missed)
    assert half == pytest.approx(stats.t.ppf(0.975, 7) * np.std(means), rel=0.06)
    assert half == statistics.interval_over_both(missed), "not seeded"


def test_the_interval_over_both_covers_the_truth():
    """Errors whose mean over all folds and images is known: an image is easy or hard, and a fold is good or bad."""
    rng = np.random.default_rng(2)
    covered, by_folds_alone = 0, 0
    for _ in range(200):
        chance = rng.choice([0.0, 0.4], (1, 400), p=[0.8, 0.2]) * rng.uniform(0.7, 1.3, (10, 1))
        missed = rng.random((10, 400)) < chance
        off = abs(missed.mean() - 0.08)
        covered += off < statistics.interval_over_both(missed, 200)
        by_folds_alone += off < statistics.mean_and_interval(missed.mean(1))[1]
    assert covered / 200 > 0.93
    assert by_folds_alone / 200 < 0.85, "images made no difference: this tests nothing"


def test_the_signed_rank_test_is_scipy_s():
    rng = np.random.default_rng(0)
    for n in (5, 6, 9, 17):
        differences = rng.normal(0.4, 1, n)
        assert statistics.wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
    assert statistics.wilcoxon([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6]) == pytest.approx(2 / 2**6)


@pytest.mark.parametrize("differences", [[1, -1, 2, -3, 3, 4, 5], [3, -1, 1, 1, 0, 2], [-1, 1, 1, 1, 1, 1, 2, -2]])
def test_the_signed_rank_test_is_exact_with_ties(differences):
    ranks = stats.rankdata(np.abs([one for one in differences if one]))
    seen = sum(rank for rank, one in zip(ranks, filter(None, differences), strict=True) if one > 0)
    sums = [sum(itertools.compress(ranks, signs)) for signs in itertools.product([0, 1], repeat=len(ranks))]
    one_sided = min(np.mean([one <= seen for one in sums]), np.mean([one >= seen for one in sums]))
    assert statistics.wilcoxon(differences) == pytest.approx(min(1, 2 * one_sided))


def test_no_difference_is_no_evidence():
    assert statistics.wilcoxon([0.0, 0.0, 0.0]) == 1


def test_optima_at_borders_are_named():
    """Of the logarithm of the range, where that is its scale."""
    lr, dropout = (1e-4, 1e-2, True), (0.0, 1.0, False)
    named = [statistics.at_border(value, *lr) for value in (1.2e-4, 1e-3, 8.1e-3)]
    named += [statistics.at_border(value, *dropout) for value in (0.04, 0.06, 0.5, 0.96)]
    assert named == [True, False, True, True, False, False, True]


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.5]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_the_share_of_folds_won_is_clopper_and_pearson_s():
    for won in (0, 5, 16, 17):
        share = statistics.share_won([-1] * won + [1] * (17 - won))
        exact = stats.binomtest(won, 17).proportion_ci(0.95, method="exact")
        assert share == pytest.approx((won / 17, exact.low, exact.high))
    assert statistics.share_won([-0.1, -0.2, 0.0, 0.3]).share == 0.625, "a tie is half"
    below, tied, above = (
        statistics.share_won([-1] * won + rest) for won, rest in ((9, [1] * 8), (9, [0] + [1] * 7), (10, [1] * 7))
    )
    assert below < tied < above and below.high < tied.high < above.high


def test_verdicts():
    """In points, all eight pairs of a sign unless said otherwise."""
    spread = np.array([-3, -2, -1, -0.5, 0.5, 1, 2, 3]) / 100
    said = {}
    for mean, scale in ((-1.0, 1), (1.0, 1), (-0.15, 1), (0.15, 1), (0.001, 1), (0.001, 30)):
        differences = (mean + scale * spread) / 100
        said[mean, scale] = statistics.verdict(differences, statistics.wilcoxon(differences))
    assert list(said.values()) == [
        "better", "worse", "better, by under 0.25", "worse, by under 0.25", "equal", "undecided",
    ]  # fmt: skip
    assert statistics.verdict((-1.0 + spread) / 100, 0.06) == "undecided", "p is what was adjusted"
    assert statistics.verdict([-0.01], 1.0) == "undecided", "of one pair nothing can be said"


def test_equal_is_two_one_sided_tests():
    """The largest mean whose 90 % interval lies within the margin is that at which a one-sided test has p = 5 %."""
    spread = np.array([-0.2, -0.1, 0.0, 0.1, 0.2]) / 100
    reach = statistics.MARGIN - 2.131847 * np.std(spread, ddof=1) / 5**0.5
    assert statistics.verdict(spread + 0.99 * reach, 1.0) == "equal"
    assert statistics.verdict(spread + 1.01 * reach, 1.0) == "undecided"
    assert stats.ttest_1samp(spread + reach, statistics.MARGIN, alternative="less").pvalue == pytest.approx(
        0.05, rel=1e-5
    )


def test_one_diverged_run_does_not_turn_a_verdict():
    """The mean is worse for one run that diverged; the test, which goes by ranks, says better, and so do the words."""
    differences = [-0.01 - fold / 1e4 for fold in range(16)] + [0.80]
    assert np.mean(differences) > 0
    assert statistics.verdict(differences, statistics.wilcoxon(differences)) == "better"


def test_the_expected_best_is_that_of_all_choices():
    errors = [0.07, 0.05, 0.09, 0.05, 0.2, 0.06]
    best = statistics.expected_best(errors)
    for k in range(1, 7):
        assert best[k - 1] == pytest.approx(np.mean([min(choice) for choice in itertools.combinations(errors, k)]))
    assert best[0] == pytest.approx(np.mean(errors)) and best[5] == 0.05 and len(best) == 6


# --- the tables' numbers


def test_a_summary_is_scipy_s():
    table = report.summarize(rows(), {})
    assert [line["method"] for line in table] == ["worse", "better", "baseline"], "not ordered by validation"
    worse, better, baseline = table
    assert [line["n"] for line in table] == [6, 6, 6] and "p" not in baseline
    differences = np.subtract(BETTER, BASELINE)
    interval = stats.ttest_rel(BETTER, BASELINE).confidence_interval(0.95)
    mean, half, both = better["difference"]
    assert mean == pytest.approx(differences.mean()) and math.isnan(both)
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high))
    assert better["won"].share == 1 and worse["won"].share == pytest.approx(1 / 6)
    assert better["p"] == pytest.approx(2 * 2 / 2**6)  # all six signs alike: 2 of 2**6, times two methods
    assert worse["p"] == pytest.approx(max(better["p"], statistics.wilcoxon(np.round(np.subtract(WORSE, BASELINE), 9))))


def test_the_pairs_are_those_of_a_fold():
    shuffled = sorted(rows(), key=lambda one: one["error/test"])
    for one, other in zip(report.summarize(shuffled, {}), report.summarize(rows(), {}), strict=True):
        assert one.get("difference", (0,))[:2] == pytest.approx(other.get("difference", (0,))[:2])


def test_equal_differences_of_fractions_are_ties():
    """7.1 - 6.1 % is not 8.2 - 7.2 % in binary; of as many images they are the same number of them."""
    errors = [(710, 610), (820, 720), (700, 720), (655, 555), (801, 501), (690, 700), (777, 577), (640, 620)]
    assert 0.071 - 0.061 != 0.082 - 0.072
    found = [row("baseline", fold, pair[1] / 1e4) for fold, pair in enumerate(errors)]
    found += [row("L2", fold, pair[0] / 1e4) for fold, pair in enumerate(errors)]
    (line,) = (line for line in report.summarize(found, {}) if line["method"] == "L2")
    assert line["p"] == statistics.wilcoxon([one - other for one, other in errors])


def test_a_difference_of_images_has_a_sign():
    """The interval over folds and images of a paired difference, for a method that misses fewer images."""
    rng = np.random.default_rng(0)
    missed = {"baseline": rng.random((6, 400)) < 0.2, "L2": rng.random((6, 400)) < 0.1}
    bits = {name: wrong.astype(np.uint8) for name, wrong in missed.items()}  # as they are read
    found = [row(name, fold, one) for name, wrong in missed.items() for fold, one in enumerate(wrong.mean(1))]
    (line,) = (line for line in report.summarize(found, bits) if line["method"] == "L2")
    expected = statistics.interval_over_both(missed["L2"].astype(float) - missed["baseline"].astype(float))
    assert line["difference"].both == pytest.approx(expected) and 0.01 < expected < 0.1


def test_missing_runs_are_named():
    with pytest.raises(
        statistics.ReportError, match=r"'worse' ran on the folds 3, 4, 5, 6, 7, but .* 3, 4, 5, 6, 7, 8"
    ):
        report.summarize(rows()[1:], {})
    with pytest.raises(statistics.ReportError, match="no run of 'baseline'"):
        report.summarize([one for one in rows() if one["method"] != "baseline"], {})


def test_the_best_part_is_chosen_by_validation():
    """L2 is better on test images, dropout on validation images: the combination is compared with dropout."""
    errors = {"baseline": (0.08, 0.08), "L2": (0.05, 0.07), "dropout": (0.06, 0.06), "dropout + L2": (0.055, 0.055)}
    found = [row(name, fold, test + fold / 1e4, val) for name, (test, val) in errors.items() for fold in range(3, 10)]
    (line,) = report.beside_best_part(found, {}, {"dropout + L2": ["L2", "dropout", "noise"], "absent": ["L2"]})
    assert (line["method"], line["reference"]) == ("dropout + L2", "dropout")
    assert line["difference"].mean == pytest.approx(-0.005) and line["won"].share == 1
    assert line["p"] == pytest.approx(2 / 2**7) and line["verdict"] == "better"
    assert report.beside_best_part(found, {}, {"dropout + L2": ["noise"]}) == []


def test_everything_without_a_part_is_a_row_of_the_second_table_only():
    names = {"baseline": 0.08, "everything": 0.012, "everything - noise": 0.02, "everything - L2": 0.0121}
    found = [row(name, fold, error + fold / 1e4) for name, error in names.items() for fold in range(3, 10)]
    noise, penalty = report.without_parts(found, {})
    assert (noise["method"], noise["reference"], noise["verdict"]) == ("everything - noise", "everything", "worse")
    assert penalty["p"] == noise["p"] == pytest.approx(2 * 2 / 2**7), "two tests are one family"
    assert penalty["verdict"] == "worse, by under 0.25"
    assert [line["method"] for line in report.summarize(found, {})] == ["baseline", "everything"]


def test_the_mean_of_networks_beside_one():
    one, mean = [0.07, 0.06, 0.065, 0.071, 0.062], [0.06, 0.055, 0.054, 0.06, 0.055]
    found = [
        {"method": "L2", "fold": fold, "networks": 5, "error/one": pair[0], "error/mean": pair[1]}
        for fold, pair in enumerate(zip(one, mean, strict=True), start=3)
    ]
    (line,) = report.ensembles(found)
    assert (line["n"], line["one"].mean, line["mean"].mean) == (5, pytest.approx(0.0656), pytest.approx(0.0568))
    half = statistics.mean_and_interval(np.subtract(mean, one))[1]
    assert line["difference"][:2] == pytest.approx((-0.0088, half))


# --- files and tables


def test_what_is_written_is_read(tmp_path):
    written = [{"method": "a, b", "n": 3, "error": 0.1 + 0.2, "settings": ""}]
    report.write_csv(tmp_path / "x.csv", written)
    assert report.read_csv(tmp_path / "x.csv") == written


def test_missed_images_are_kept_in_bits(tmp_path):
    path = tmp_path / "missed.npz"
    missed = write_comparison(tmp_path)  # of 1003 images: the last byte is padded
    content, found = path.read_bytes(), report.read_missed(path, report.read_csv(tmp_path / "results.csv"))
    assert list(found) == list(missed)
    for method, wrong in missed.items():
        assert np.array_equal(found[method], wrong), method
    assert np.load(path)["dropout + L2"].dtype == np.uint8 and np.load(path)["L1"].shape == (17, 126)
    report.write_missed(path, missed)
    assert path.read_bytes() == content, "not reproducible"


def test_missed_images_of_other_runs_are_refused(tmp_path):
    missed = write_comparison(tmp_path)
    results = report.read_csv(tmp_path / "results.csv")
    report.write_missed(tmp_path / "missed.npz", missed | {"L1": missed["L1"][::-1]})
    with pytest.raises(statistics.ReportError, match="missed images of 'L1' do not make the test errors"):
        report.read_missed(tmp_path / "missed.npz", results)


def test_a_broken_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.md"
    report.write_text(path, "old")
    with pytest.raises(OSError), report.replacing(path) as beside:
        beside.write_text("half")
        raise OSError("the disk is full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_tables_by_hand():
    header, cells = ["method", "error", "settings"], [["L2", "6.22 ± 0.19", "a|b"], ["elastic", "", "--lr"]]
    assert report.text_table(header, cells) == [
        "method         error  settings",
        "-------  -----------  --------",
        "L2       6.22 ± 0.19  a|b",
        "elastic               --lr",
    ]
    assert report.markdown_table(header, cells) == [
        "| method | error | settings |",
        "| --- | ---: | --- |",
        r"| L2 | 6.22 ± 0.19 | a\|b |",
        "| elastic |  | --lr |",
    ]


def test_cells():
    assert statistics.percent(statistics.Estimate(0.0622, 0.0019, 0.0035)) == "6.22 ± 0.19 (± 0.35)"
    assert statistics.points(statistics.Estimate(0.0622, 0.0019, 0.0035), both=False) == "+6.22 ± 0.19"
    assert statistics.points(statistics.Estimate(-0.0622, math.nan)) == "-6.22"


def test_a_diverged_run_is_counted_and_named():
    found = rows()
    found[0] |= {"status": "diverged", "error/test": 0.9}
    markdown, text = report.methods_tables(report.summarize(found, {}), found)
    assert any(line.startswith("| worse | 6 (1 diverged) |") for line in markdown)
    assert "worse: 1 of 6 runs diverged" in text


def test_p_is_not_shown_for_fewer_than_six_pairs():
    for folds, shown in ((range(3, 9), True), (range(3, 8), False)):
        found = [one for one in rows() if one["fold"] in folds]
        markdown, text = report.methods_tables(report.summarize(found, {}), found)
        (line,) = (line for line in markdown if line.startswith("| better |"))
        assert line.split(" | ")[6] == ("0.062" if shown else ""), line
        (line,) = (line for line in text if line.startswith("better "))
        assert ("0.062" in line or "0.125" in line) == shown, line


def test_the_widest_row_fits_a_terminal():
    longest, images = max(METHODS, key=len), np.zeros((6, 500), np.uint8)
    found = [one | {"method": longest if one["method"] == "worse" else one["method"]} for one in rows()]
    table = report.summarize(found, {longest: images, "baseline": images})
    table[0] |= {
        "verdict": "better, by under 0.25",
        "p": 0.0001,
        "difference": statistics.Estimate(-0.0525, 0.0234, 0.03),
    }
    markdown, text = report.methods_tables(table, found)
    assert any(line.startswith(longest) and line.endswith("under 0.25") for line in text)
    assert max(map(len, text)) <= 100 and any("-5.25 ± 2.34 (± 3.00)" in line for line in markdown)


def test_every_method_has_a_colour_of_its_own():
    found = figures.colours(list(METHODS))
    assert len(set(found.values())) == len(METHODS) == 19
    assert figures.colours(list(METHODS)[:5]) == {name: found[name] for name in list(METHODS)[:5]}


# --- all of it


def test_the_tables_of_a_report_are_rebuilt(tmp_path, monkeypatch):
    import matplotlib

    write_comparison(tmp_path)
    given = {path.name for path in tmp_path.iterdir()}
    lines = report.write_report(tmp_path, list(METHODS), PARTS)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name not in given}
    figures = ("combinations", "costs", "errors", "histograms")
    tables = ("combinations", "ensembles", "methods")
    assert set(written) == {f"{name}.png" for name in figures} | {f"{name}.md" for name in tables}
    assert max(map(len, lines)) <= 100
    for name in METHODS:
        assert any(line.startswith(f"{name}  ") for line in lines) == (name in SOME)
    table = written["methods.md"].decode()
    assert "| 17 (1 diverged) |" in table and "(±" in table and "folds 3 to 19, the run on fold k with seed k" in table
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)  # as a user's own matplotlibrc might
    assert report.write_report(tmp_path, list(METHODS), PARTS) == lines
    for name, content in written.items():
        if name.endswith(".md"):
            assert (tmp_path / name).read_bytes() == content, name
        else:
            assert content.startswith(b"\x89PNG"), name


@pytest.mark.parametrize("folds", [range(3, 4), range(3, 6)])
def test_a_report_of_results_alone(tmp_path, folds):
    report.write_csv(tmp_path / "results.csv", [one for one in rows() if one["fold"] in folds])
    lines = report.write_report(tmp_path, ["baseline", "better", "worse"], {"dropout + L2": ["dropout", "L2"]})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "errors.png", "methods.md", "results.csv",
    ]  # fmt: skip
    assert "nan" not in "".join(lines) + (tmp_path / "methods.md").read_text()


def test_the_table_of_a_tuning_is_rebuilt(tmp_path):
    write_comparison(tmp_path)
    lines = report.write_tuning(tmp_path, list(METHODS))
    written = {path.name: path.read_bytes() for path in tmp_path.glob("tuning.*")}
    assert set(written) == {"tuning.md", "tuning.png"}
    table = written["tuning.md"].decode()
    rows = {row["method"]: row for row in report.read_csv(tmp_path / "tuned.csv") if row["chosen"]}
    for method, row in rows.items():
        error = f"{100 * np.mean([row[f'val_error_fold_{fold}'] for fold in (0, 1, 2)]):.2f}"
        border = "lr" if method == "L1" else ""
        assert f"| {method} | {error} | 18 |  | {border} | `--lr 0.001 --seed 1` |" in table
    assert "WARNING: a setting was chosen at a border" in lines[-1]
    assert report.write_tuning(tmp_path, list(METHODS)) == lines
    assert (tmp_path / "tuning.md").read_bytes() == written["tuning.md"]


def test_only_points_of_the_design_say_how_tuning_went():
    errors = [0.09, 0.07, 0.08]
    tuned = [{"method": "L2", "origin": "design", "val_error_fold_0": error} for error in errors]
    tuned += [{"method": "L2", "origin": "baseline", "val_error_fold_0": 0.01}]
    (axis,) = figures.draw_tuning(tuned, ["L2"], {}).axes
    assert axis.lines[0].get_ydata() == pytest.approx([8, 100 * (0.07 + 0.07 + 0.08) / 3, 7])
