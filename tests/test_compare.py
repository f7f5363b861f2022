"""compare.py: the protocol on made-up errors, and whole comparisons on the digits; runs take place in this process."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace

import numpy as np
import optuna
import pytest
from helpers import ROOT, refused
from test_report import write_comparison

import compare
import data
import planned
from compare import METHODS, PARTS, PUBLISHED, RECIPE, SPACE, CompareOptions
from support import figures, report, statistics, workers
from support.folder import read_json
from support.shell import parse
from train import Config

SETTINGS = ("--data", "digits", "--device", "cpu", "--epochs", "4")
TUNED = [method for method in METHODS if method != RECIPE]


@pytest.fixture
def inline(monkeypatch):
    """Planned runs take place in this process, one after the other; returns the payloads of those that ran."""
    ran, kept = [], {}

    def run_planned(place, function, payloads, label, **_):
        found = kept.setdefault((place.folder, place.storage), {})
        for payload in payloads:
            key = workers.digest(payload)
            if key not in found:
                ran.append(payload)
                result = function(payload, workers.planned_folder(place, payload, label(payload)))
                found[key] = workers.Run(json.loads(json.dumps(result)), "", "2026-01-01T10:00", "2026-01-01T10:01")
        return [found[workers.digest(payload)] for payload in payloads]

    monkeypatch.setattr(workers, "run_planned", run_planned)
    return ran


@pytest.fixture
def undrawn(monkeypatch):
    """Tables are written, figures are not."""
    for name in [name for name in vars(figures) if name.startswith(("draw_", "save_"))]:
        monkeypatch.setattr(figures, name, lambda *_: None)
    monkeypatch.setattr(figures, "reproducible_figures", contextlib.nullcontext)


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A folder in place of figures/compare, in which the second point of every design is the optimum."""
    folder = tmp_path / "published"
    folder.mkdir()
    monkeypatch.setattr(compare, "TUNED_FILE", folder / "tuned.csv")
    publish(folder)
    return folder


def publish(folder, **changes):
    """tuned.csv in `folder`; `changes` are the settings of methods."""
    optima, rows = {}, []
    for method in TUNED:
        points = compare.design(method, optima)
        optima[method] = points[1] | changes.get(method, {})
        rows.append({"method": method, "trial": 0, "origin": "design", "settings": points[0], "errors": [0.2]})
        rows.append({"method": method, "trial": 1, "origin": "design", "settings": optima[method], "errors": [0.1] * 3})
    rows = [row | {"chosen": len(row["errors"]) == 3, "border": "", "command": ""} for row in rows]
    report.write_tuned(folder / "tuned.csv", rows, ["lr", "schedule", *SPACE], (0, 1, 2))


@pytest.fixture
def made_up(monkeypatch):
    """Validation errors by formula: the best learning rate is 3e-3, strengths help a little, folds have noise."""

    def one_network(config, folder, splits):
        error = 0.05 + 0.02 * np.log10(config.lr / 3e-3) ** 2
        for name, (_, high, _) in SPACE.items():
            error += 0 if name == "lr" else 0.01 * np.cos(6 * getattr(config, name) / high)
        error += 1e-3 * (zlib.crc32(repr((config.fold, config.lr, config.l2, config.dropout)).encode()) % 1000) / 1000
        return {"result": {"last": {"error/val": float(error)}}}

    monkeypatch.setattr(planned, "one_network", one_network)


def run(tmp_path, *arguments):
    """The folder with the results."""
    arguments = [*SETTINGS, "--studies-dir", str(tmp_path), *map(str, arguments)]
    compare.main(arguments)
    return compare.results_folder(parse(CompareOptions, arguments))


def table(folder, *columns):
    return [tuple(row[column] for column in columns) for row in report.read_csv(folder / "results.csv")]


def contents(folder):
    return {path: path.read_bytes() for path in folder.iterdir()}


# --- the points of every method


def optima():
    """Some point of each method, as if it were the best."""
    found = {}
    for method in TUNED:
        found[method] = compare.design(method, found)[3]
    return found


def axis(name, values, space):
    low, high, log = space[name]
    values = np.array(sorted(values))
    return np.log(values / low) / np.log(high / low) if log else (values - low) / (high - low)


@pytest.mark.parametrize("method", TUNED)
def test_points_cover_range_and_both_schedules(method):
    """One in every sixteenth of each range, eight on each schedule; what is not tuned is what the table says."""
    space = compare.ranges(method, optima())
    points = compare.design(method, optima())
    assert len(points) == 16 and points == compare.design(method, optima())
    assert sorted(one["schedule"] for one in points) == ["constant"] * 8 + ["one-cycle"] * 8
    for name in space:
        shares = axis(name, [one[name] for one in points], space)
        sixteenths = np.arange(16) / 16
        assert ((sixteenths - 0.02 <= shares) & (shares <= sixteenths + 1 / 16 + 0.02)).all(), "three digits"
    fixed = {name: value for name, value in METHODS[method].items() if value is not None}
    for one in points:
        assert one.keys() == {"lr", "schedule", *METHODS[method]} and fixed.items() <= one.items()
        Config(**one)


def test_every_method_has_points_of_its_own():
    rates = {method: tuple(one["lr"] for one in compare.design(method, optima())) for method in TUNED}
    assert len(set(rates.values())) == len(TUNED)
    for rate in rates.values():
        assert max(np.sort(rate)[1:] / np.sort(rate)[:-1]) < 2, "the next learning rate is never far"


def test_the_parts_of_geometry_rise_together_and_everything_is_weakened():
    points = compare.design("geometric", {})
    order = np.argsort([one["rotate"] for one in points])
    for name in ("zoom", "shift", "shear"):
        assert (np.diff([points[i][name] for i in order]) > 0).all()
    best = optima()
    space = compare.ranges("everything", best)
    assert space["l2"] == pytest.approx((0.1 * best["L2"]["l2"], best["L2"]["l2"], True))
    assert space["elastic"] == pytest.approx(
        (0.3 * best["elastic"]["elastic"], 1.1 * best["elastic"]["elastic"], False)
    )
    assert space["lr"] == SPACE["lr"]


@pytest.mark.parametrize("method", TUNED[1:])
def test_methods_try_the_optimum_of_what_they_add_to(method):
    """The baseline's, or of a combination that of each of its parts."""
    best = optima()
    space = compare.ranges(method, best)
    found = compare.nested(method, best)
    assert found.keys() == set(PARTS.get(method, ["baseline"]))
    for part, settings in found.items():
        assert settings.keys() == {"lr", "schedule", *METHODS[method]} and best[part].items() <= settings.items()
        for name in settings.keys() - best[part].keys() & space.keys():
            assert settings[name] == pytest.approx(space[name][0], rel=5e-3), "at its weakest"
        Config(**settings)
        assert compare.depth(part) < compare.depth(method)


# --- tuning


def test_tuning(inline, made_up, tmp_path, capsys):
    rows = report.read_csv(run(tmp_path, "--tune") / "tuned.csv")
    out = capsys.readouterr().out
    columns = [f"val_error_fold_{fold}" for fold in (0, 1, 2)]
    groups, optima, at_borders = statistics.by_method(rows), {}, []
    assert set(groups) == set(TUNED)
    for method, group in groups.items():
        errors = [[row[column] for column in columns if row[column] != ""] for row in group]
        tried, halves = len(group), [0, 0, 0]
        assert [row["origin"] for row in group] == ["design"] * 16 + list(compare.within(method))
        for ran in range(3):
            better = sorted((one for one in errors if len(one) > ran), key=lambda one: np.mean(one[: ran + 1]))
            halves[ran] = len(better)
            if ran < 2:  # the better half goes on, and nobody else
                assert sorted(map(len, better[: (len(better) + 1) // 2]))[0] > ran + 1
        assert halves == [tried, (tried + 1) // 2, ((tried + 1) // 2 + 1) // 2]
        # no combination is worse than what it took over from a part, if that ran as long
        (chosen,) = [index for index, row in enumerate(group) if row["chosen"]]
        assert len(errors[chosen]) == 3
        assert np.mean(errors[chosen]) == min(np.mean(one) for one in errors if len(one) == 3)
        assert re.search(rf"^{re.escape(method)} +{100 * np.mean(errors[chosen]):.2f} ", out, re.MULTILINE)
        optima[method] = {name: value for name, value in group[chosen].items() if value != ""}
        space = compare.ranges(method, optima)
        near = [name for name in space if statistics.at_border(optima[method][name], *space[name])]
        assert group[chosen]["border"].split() == near
        at_borders += near
    assert at_borders and "WARNING: a setting was chosen at a border" in out
    for method in TUNED:  # taken over from optima that were known by then
        for row in groups[method][16:]:
            (best,) = [other for other in groups[row["origin"]] if other["chosen"]]
            assert (row["lr"], row["schedule"]) == (best["lr"], best["schedule"])
    settings = [payload["settings"] for payload in inline]
    assert {(one.get("fold", 0), one.get("seed", 0)) for one in settings} == {(0, 0), (1, 1), (2, 2)}
    assert {tuple(payload["splits"]) for payload in inline} == {("train", "val")}


def test_tuning_goes_on_from_published_points(inline, made_up, monkeypatch, tmp_path):
    digits = replace(data.load("digits"), name="mnist")
    monkeypatch.setattr(data, "load", lambda *_: digits)
    monkeypatch.setattr(compare, "TUNED_FILE", tmp_path / "tuned.csv")

    def tuned(studies, *more):
        inline.clear()
        where = ["--tune", "--methods", "dropout + L2", "--studies-dir", str(tmp_path / studies), "--device", "cpu"]
        compare.main([*where, *more])
        (path,) = (tmp_path / studies / "compare").glob("tuning*/tuned.csv")
        return path.read_text(), len(inline)

    first, ran = tuned("first")
    assert ran > 100
    (tmp_path / "tuned.csv").write_text(first)
    assert tuned("again") == (first, 0)
    lines = first.splitlines(keepends=True)
    (tmp_path / "tuned.csv").write_text("".join([*lines[:9], *lines[11:]]))
    again, ran = tuned("two points lost")
    assert again == first and 2 <= ran <= 6
    assert tuned("other epochs", "--epochs", "7")[1] > 100, "those are errors after 1000 epochs"


def test_a_method_that_is_not_tuned_is_named(published, inline, capfd, tmp_path):
    path = published / "tuned.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("L2,")))
    arguments = (*SETTINGS, "--studies-dir", tmp_path, "--methods", "L2")
    assert "L2 is not tuned; run python compare.py --tune" in refused(capfd, compare.main, *arguments)[1]
    path.write_text("method,lr,chosen\nbaseline,0.1,1\n")  # of an older version
    assert "baseline is not tuned" in refused(capfd, compare.main, *arguments)[1]
    path.unlink()
    assert "baseline is not tuned" in refused(capfd, compare.main, *arguments)[1]
    assert not inline


# --- runs


def test_methods_are_paired_and_none_is_run_twice(published, inline, undrawn, tmp_path):
    folder = run(tmp_path, "--folds", "3-4", "--methods", "dropout")
    dropout = compare.tuned_settings(["dropout"])["dropout"]
    configs = [read_json(path, dict) for path in tmp_path.glob("compare/runs/*/config.json")]
    assert sorted((config["fold"], config["seed"], config["dropout"]) for config in configs) == [
        (fold, fold, strength) for fold in (3, 4) for strength in (0.0, dropout["dropout"])
    ]
    differing = {name for config in configs for name in config if config[name] != configs[0][name]}
    assert differing <= {"fold", "seed", *dropout}
    first = table(folder, "method", "fold", "error/test", "settings")
    assert [row[:2] for row in first] == [("baseline", 3), ("baseline", 4), ("dropout", 3), ("dropout", 4)]
    assert f"--lr {dropout['lr']}" in first[2][3] and f"--dropout {dropout['dropout']}" in first[2][3]
    assert len(inline) == 4
    before = contents(folder)
    assert run(tmp_path, "--folds", "3-4", "--methods", "dropout") == folder
    assert len(inline) == 4 and contents(folder) == before
    other = run(tmp_path, "--folds", "3,4,5", "--methods", "dropout,L2")
    assert len(inline) == 9 and set(first) < set(table(other, "method", "fold", "error/test", "settings"))
    publish(published, dropout={"dropout": 0.123})
    run(tmp_path, "--folds", "3-4", "--methods", "dropout")
    assert len(inline) == 11 and inline[-1]["settings"]["dropout"] == 0.123, "another strength is another run"


def test_a_quick_look_touches_no_file_of_another_comparison(published, inline, undrawn, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "METHODS", {name: METHODS[name] for name in ("baseline", "dropout")})
    monkeypatch.setattr(compare, "NETWORKS", 2)
    monkeypatch.setattr(compare, "AVERAGED", {"baseline": (1, 2), "dropout": (1, 2)})
    whole = run(tmp_path, "--folds", "3-4")
    before = contents(whole)
    assert {"missed.npz", "ensembles.csv", "sklearn.csv", "ensembles.md", "sklearn.md"} < {path.name for path in before}
    assert len(inline) == 4 + 4 + 4 + 4, "methods, ensembles, and twice two penalties"
    quick = run(tmp_path, "--folds", "3-4", "--methods", "baseline", "--epochs", "2")
    assert len(inline) == 18, "and no ensembles"
    assert contents(whole) == before and quick != whole and (quick / "results.csv").exists()


def test_every_choice_has_results_of_its_own(tmp_path):
    def folder(**more):
        config = Config(
            **{"data": "mnist", "device": "cpu", "evaluations": 12, "histograms": 0} | more.pop("config", {})
        )
        return compare.results_folder(CompareOptions(config, studies_dir=str(tmp_path), **more))

    digits = data.load_digits()
    write_idx(tmp_path / "a" / "set", digits)
    write_idx(tmp_path / "b" / "set", replace(digits, test_labels=digits.test_labels[::-1]))
    settings = [{"epochs": 20}, {"epochs": 200}, {"evaluations": 30}, {"hidden": (100, 1)}, {"hidden": (10, 10)}]
    settings += [{"data": "auto", "data_dir": str(tmp_path / one / "set")} for one in ("a", "b")]
    settings += [{"data": "digits"}, {"fraction": 0.1}]
    some = ("dropout,L2", "dropout + L2", "L2", ",".join(TUNED), ",".join(TUNED[:-1]), ",".join(TUNED[:-2]))
    found = [folder(), folder(tune=True), folder(folds="3-4"), folder(folds="3,5"), folder(tune=True, methods="L2")]
    found += [folder(config=one) for one in settings] + [folder(methods=names) for names in some]
    assert len(set(found)) == len(found) and {path.parent for path in found} == {tmp_path / "compare"}
    assert folder().name == "all" and folder(config={"threads": 2}) == folder(folds="3-4,5-19") == folder()


def write_idx(folder, dataset):
    """The four files of `dataset`."""
    folder.mkdir(parents=True)
    arrays = (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    for name, array in zip(data.IDX_NAMES, arrays, strict=True):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (folder / name).write_bytes(header + array.tobytes())


def test_missed_bits_give_back_the_test_error(published, inline, undrawn, tmp_path):
    bits = np.random.default_rng(0).random(359) < 0.3
    assert (report.unpacked(json.loads(json.dumps(report.packed(bits))), 359) == bits).all()
    folder = run(tmp_path, "--folds", "3-4", "--methods", "L2")
    missed = report.read_missed(folder / "missed.npz", report.read_csv(folder / "results.csv"))
    assert missed["L2"].shape == (2, len(data.load("digits").test_labels))
    for method, fold, error in table(folder, "method", "fold", "error/test"):
        assert missed[method][fold - 3].mean() == pytest.approx(error, abs=1e-12)
    tags = {row["tag"] for row in report.read_csv(folder / "histograms.csv")}
    assert tags == {*(f"weights/linear{i}" for i in (1, 2, 3, 4)), "entropy/test", "entropy/untrained"}
    assert "missed" in json.loads(next(tmp_path.glob("compare/runs/*/kept.json")).read_text())
    assert not list(tmp_path.glob("compare/runs/*/last.pt"))


def test_a_diverged_run_is_named_and_spoils_nothing(published, inline, undrawn, tmp_path, capsys):
    publish(published, dropout={"lr": 1e9, "schedule": "constant"})
    folder = run(tmp_path, "--folds", "3-4", "--methods", "dropout")
    assert table(folder, "method", "status")[1:] == [("baseline", "finished"), *[("dropout", "diverged")] * 2]
    assert "dropout: 2 of 2 runs diverged" in capsys.readouterr().out
    with np.load(folder / "missed.npz") as file:
        assert file.files == ["baseline"]


def test_everything_is_also_run_without_each_of_its_parts(published, inline, undrawn, tmp_path):
    settings = compare.tuned_settings(["everything"])["everything"]
    without = compare.without(settings, "geometric")
    assert (without["rotate"], without["shear"]) == (0, 0) and without["elastic"] == settings["elastic"]
    assert compare.without(settings, "batch norm") == settings | {"norm": "none"}
    folder = run(tmp_path, "--folds", "3-4", "--methods", "everything", "--epochs", "1")
    parts = ("batch norm", "L2", "noise", "geometric", "elastic")
    names = [method for method, fold in table(folder, "method", "fold") if fold == 3]
    assert names == ["baseline", "everything", *(f"everything - {part}" for part in parts)]
    assert "without a part" in (folder / "combinations.md").read_text()


def test_test_labels_change_nothing_but_test_errors(published, inline, undrawn, monkeypatch, tmp_path):
    """Not one tuned value, and not the order of the methods."""
    right = data.load("digits")
    altered = replace(right, test_labels=(right.test_labels + 1) % 10)
    seen = []
    monkeypatch.setattr(compare, "POINTS", 4)
    for name, dataset in (("right", right), ("altered", altered)):
        monkeypatch.setattr(data, "load", lambda *_, dataset=dataset: dataset)
        tuned = run(tmp_path / name, "--tune", "--methods", "L2") / "tuned.csv"
        folder = run(tmp_path / name, "--folds", "3-4", "--methods", "L2,dropout")
        order = [line.split("|")[1] for line in (folder / "methods.md").read_text().splitlines()[2:5]]
        seen.append((tuned.read_text(), order, table(folder, "error/val"), table(folder, "error/test")))
    assert seen[0][:3] == seen[1][:3]
    assert seen[0][3] != seen[1][3]


# --- workers


def test_a_killed_worker_leaves_the_same_table(published, tmp_path, request):
    (tmp_path / "work").mkdir()
    settings = ("--data", "digits", "--epochs", "300", "--evaluations", "20", "--folds", "3-4", "--methods", "dropout")
    code = "import compare, pathlib, support.figures; "
    code += f"compare.TUNED_FILE = pathlib.Path({str(published / 'tuned.csv')!r}); "
    code += f"support.figures.save_figure = lambda *_: None; compare.main({list(settings)})"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SHOW_TRACEBACK": "1"}
    more = {"cwd": tmp_path / "work", "env": environment, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **more)
    place = workers.Place(tmp_path / "work/studies/compare", "compare")
    victim = None
    while victim is None and process.poll() is None:
        time.sleep(0.1)
        if list(place.folder.glob("runs/*/best.pt")):
            running = workers.load(place).get_trials(states=(optuna.trial.TrialState.RUNNING,))
            victim = next(iter(running), None)
    os.kill(int(victim.user_attrs["host"].split()[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    study = workers.load(place)
    assert study.trials[victim.number].state == optuna.trial.TrialState.FAIL and len(workers.finished(study)) == 4
    request.getfixturevalue("undrawn")
    request.getfixturevalue("inline")
    undisturbed = run(tmp_path, *settings[2:])
    columns = ("method", "fold", "loss/train", "error/val", "error/test", "best/epoch")
    (disturbed,) = place.folder.glob("*methods=dropout*")
    assert table(disturbed, *columns) == table(undisturbed, *columns)
    for name in ("curves.csv", "histograms.csv", "missed.npz"):
        assert (disturbed / name).read_bytes() == (undisturbed / name).read_bytes()


def test_machines_share_nothing_but_the_database(published, database, undrawn, tmp_path):
    settings = ("--folds", "3-4", "--methods", "dropout", "--workers", "1", "--storage", database)
    one = run(tmp_path / "one", *settings)
    other = run(tmp_path / "other", *settings)
    assert not list((tmp_path / "other/compare/runs").iterdir()), "trained again"
    for name in ("results.csv", "missed.npz", "curves.csv", "histograms.csv", "methods.md"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--folds 2-5", "--folds 2-5: allowed are 3 to 19"),
        ("--folds 5-3", "allowed are 3 to 19"),
        ("--folds 3,x", "allowed are 3 to 19"),
        ("--folds 7", "--folds 7: one fold has no interval"),
        ("--methods baseline,foo", "--methods foo: allowed are the class's recipe, baseline"),
        ("--methods ,", "allowed are the class's recipe"),
        ("--workers 0", "--workers 0: allowed is 1 to 1000"),
        ("--lr 0.5", "--lr: every method sets its own"),
        ("--lr 0.001", "--lr: every method sets its own"),  # the default, which no method has
        ("--weight_decay=0.1", "--weight-decay: every method sets its own"),
        ("--schedule one-cycle", "--schedule: every method sets its own"),
        ("--init he", "--init: every method sets its own"),
        ("--shear 0.1", "--shear: every method sets its own"),
        ("--fold 4", "--fold: the folds are those of --folds"),
        ("--seed 1", "--seed: the folds are those of --folds, each with its number as seed"),
        ("--tune --folds 3-4", "--folds: --tune runs on the folds (0, 1, 2)"),
        ("--tune --evaluations 30", "--evaluations: --tune"),
        ("--report --methods L2", "--report"),
        ("--report --workers 2", "--report"),
    ],
)
def test_wrong_arguments(arguments, words, capfd):
    code, line = refused(capfd, compare.main, *arguments.split())
    assert code == 2 and words in line


# --- what is published


def test_report_rebuilds_what_is_published_byte_for_byte(inline, monkeypatch, tmp_path, capsys):
    """From made-up files; figures/compare itself is rebuilt in the last test, and all figures in test_report.py."""
    write_comparison(tmp_path, ("baseline",), folds=3, images=100)
    for name in ("curves.csv", "histograms.csv"):
        (tmp_path / name).unlink()
    monkeypatch.setattr(compare, "PUBLISHED", tmp_path)
    monkeypatch.setattr(compare, "TUNED_FILE", tmp_path / "tuned.csv")
    written = contents(tmp_path)
    compare.main(["--report"])
    first = contents(tmp_path)
    assert written.items() < first.items() and "baseline" in capsys.readouterr().out
    for path in first.keys() - written.keys():
        path.write_text("old")
    compare.main(["--report"])
    assert contents(tmp_path) == first and not inline


def test_files_of_an_older_version_are_one_line(monkeypatch, tmp_path, capfd):
    (tmp_path / "results.csv").write_text("method,fold,val_error\nbaseline,3,0.1\n")
    monkeypatch.setattr(compare, "PUBLISHED", tmp_path)
    code, line = refused(capfd, compare.main, "--report")
    assert code == 1 and "results.csv: has no column error/val; write it again with compare.py" in line


def test_the_published_points_are_those_of_the_design():
    """Of every method that --tune has come to; a method is chosen once all its points have run as far as they go."""
    rows = statistics.by_method(report.read_csv(compare.TUNED_FILE))
    assert "baseline" in rows
    chosen = [method for method, points in rows.items() if any(row["chosen"] for row in points)]
    settings = compare.tuned_settings(chosen)
    for method, points in rows.items():
        designed = [*compare.design(method, settings), *compare.nested(method, settings).values()]
        assert all(compare.point(method, row) == compare.point(method, designed[row["trial"]]) for row in points)
        if method in chosen:
            complete = [row for row in points if row["val_error_fold_2"] != ""]
            means = [sum(row[f"val_error_fold_{fold}"] for fold in (0, 1, 2)) for row in complete]
            assert complete[int(np.argmin(means))]["chosen"] and len(points) == len(designed)


def test_the_published_tables_follow_from_the_published_files(tmp_path):
    tuning = compare.TUNED_FILE.parent
    for folder in (PUBLISHED, tuning):
        shutil.copytree(folder, tmp_path / folder.name)
    report.write_report(tmp_path / PUBLISHED.name, list(METHODS), PARTS)
    report.write_tuning(tmp_path / tuning.name, list(METHODS))
    for folder in (PUBLISHED, tuning):
        assert names_and_texts(tmp_path / folder.name) == names_and_texts(folder)


def names_and_texts(folder):
    """The files of `folder`, with what tables hold; pictures are drawn anew, and their last bits differ by machine."""
    texts = (".csv", ".md")
    return {path.name: content if path.suffix in texts else None for path, content in contents(folder).items()}
