"""compare.py: the protocol on made-up errors, and whole comparisons on the digits; runs take place in this process."""

import contextlib
import itertools
import json
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest
from helpers import contents, refused
from test_report import cells, write_comparison

import compare
import data
import planned
from compare import METHODS, PARTS, PUBLISHED, RANGES, RECIPE, SCHEDULES, CompareOptions
from support import cluster, figures, report, statistics
from support.shell import parse
from support.statistics import PLAIN
from train import Config

SETTINGS = ("--data", "digits", "--device", "cpu")
TUNED = [method for method in METHODS if method != RECIPE]
ERRORS = [f"val_error_fold_{fold}" for fold in (0, 1, 2)]


@pytest.fixture
def inline(monkeypatch):
    """Planned runs take place in this process, one after the other; returns the payloads of those that ran."""
    ran, kept = [], {}

    def run_here(function, payloads, folder, label, **_):
        for payload in payloads:
            key = str(folder), json.dumps(payload, sort_keys=True)
            if key not in kept:
                ran.append(payload)
                place = folder / "runs" / f"{len(kept)}-{label(payload)}"
                place.mkdir(parents=True)
                result = json.loads(json.dumps(function(payload, place)))
                kept[key] = cluster.Finished(result, "", "2026-01-01T10:00", "2026-01-01T10:01")
        return [kept[str(folder), json.dumps(payload, sort_keys=True)] for payload in payloads]

    monkeypatch.setattr(cluster, "run_all", run_here)
    return ran


@pytest.fixture
def undrawn(monkeypatch):
    """Tables are written, figures are not."""
    for name in [name for name in vars(figures) if name.startswith(("draw_", "save_"))]:
        monkeypatch.setattr(figures, name, lambda *_: None)
    monkeypatch.setattr(figures, "reproducible_figures", contextlib.nullcontext)


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A folder in place of figures/compare; the optimum is another point of the design under each schedule."""
    folder = tmp_path / "published"
    folder.mkdir()
    monkeypatch.setattr(compare, "TUNED_FILE", folder / "tuned.csv")
    publish(folder)
    return folder


def publish(folder, **changes):
    """tuned.csv in `folder`; `changes` are the settings of methods."""
    rows = []
    for schedule in SCHEDULES:
        optima = {}
        for method in TUNED:
            one = compare.points(method, schedule, optima, Config())[1 + SCHEDULES.index(schedule)]
            one["settings"] |= changes.get(method, {})
            optima[method] = one["settings"]
            rows.append(one | {"errors": [0.1] * 3, "chosen": True})
    rows = [row | {"processors": ["A"]} for row in rows]
    report.write_tuned(folder / "tuned.csv", rows, list(RANGES), (0, 1, 2))


@pytest.fixture
def made_up(monkeypatch):
    """Validation errors by formula: the best learning rate differs by schedule, strengths help, folds are noisy."""

    def error_of(config, folder, splits):
        error = 0.05 + 0.02 * np.log10(config.lr / (1e-3 if config.schedule == "constant" else 1e-2)) ** 2
        for name, (_, high, _) in RANGES.items():
            error += 0 if name == "lr" else 0.01 * np.cos(6 * getattr(config, name) / high)
        error += 0.01 * np.log10(config.l1 / 1e-9) if config.l1 else 0  # best at the border of its range
        error += 1e-3 * (zlib.crc32(repr((config.fold, config.lr, config.l2, config.dropout)).encode()) % 1000) / 1000
        return {"result": {"last": {"error/val": float(error)}}, "processor": "A, B"}

    monkeypatch.setattr(planned, "one_network", error_of)


def run(tmp_path, *arguments, epochs=4):
    """The folder with the results."""
    arguments = [*SETTINGS, "--studies-dir", str(tmp_path), "--epochs", str(epochs), *arguments]
    compare.main(arguments)
    return planned.results_folder(parse(CompareOptions, arguments), "compare")


def table(folder, *columns):
    return [tuple(row[column] for column in columns) for row in report.read_csv(folder / "results.csv")]


# --- the points of every method


def optima():
    """Some point of each method, as if it were the best."""
    found = {}
    for method in TUNED:
        found[method] = compare.design(method, found)[3]
    return found


@pytest.mark.parametrize("method", TUNED)
def test_points_cover_their_ranges(method):
    """One in every sixteenth of each range; what is not tuned is what the table says; the same under both schedules."""
    space, designed = compare.ranges(method, optima()), compare.design(method, optima())
    for name, (low, high, log) in space.items():
        values = np.array(sorted(one[name] for one in designed))
        shares = np.log(values / low) / np.log(high / low) if log else (values - low) / (high - low)
        sixteenths = np.arange(16) / 16
        assert ((sixteenths - 0.02 <= shares) & (shares <= sixteenths + 1 / 16 + 0.02)).all(), "three digits"
    fixed = {name: value for name, value in METHODS[method].items() if value is not None}
    constant, cycle = (compare.points(method, schedule, optima(), Config()) for schedule in SCHEDULES)
    assert len(designed) == 16 and len(constant) == 16 + len(compare.within(method))
    for one, other in zip(constant, cycle, strict=True):
        assert (
            one["settings"].keys() == {"lr", "schedule", *METHODS[method]} and fixed.items() <= one["settings"].items()
        )
        assert one["settings"] | {"schedule": "one-cycle"} == other["settings"] != one["settings"]
        assert one["command"] == other["command"].replace(" --schedule one-cycle", "") != other["command"]


def test_every_method_has_points_of_its_own_and_a_penalty_s_weak_end_is_weak_for_adam():
    assert len({tuple(one["lr"] for one in compare.design(method, optima())) for method in TUNED}) == len(TUNED)
    assert all(RANGES[name][0] <= 1e-8 for name in ("l1", "l2"))


def test_the_parts_of_geometry_rise_together_and_everything_is_weakened():
    designed = compare.design("geometric", {})
    order = np.argsort([one["rotate"] for one in designed])
    for name in ("zoom", "shift", "shear"):
        assert (np.diff([designed[i][name] for i in order]) > 0).all()
    best = optima()
    space = compare.ranges("everything", best)
    assert space["l2"] == pytest.approx((0.1 * best["L2"]["l2"], best["L2"]["l2"], True))
    elastic = best["elastic"]["elastic"]
    assert space["elastic"] == pytest.approx((0.3 * elastic, 1.1 * elastic, False))
    assert space["lr"] == RANGES["lr"]


@pytest.mark.parametrize("method", TUNED[1:])
def test_methods_try_the_optimum_of_what_they_add_to(method):
    """The plain network's, or of a combination that of each of its parts."""
    best, space = optima(), compare.ranges(method, optima())
    found = compare.nested(method, best)
    assert found.keys() == set(PARTS.get(method, [PLAIN]))
    for part, settings in found.items():
        assert settings.keys() == {"lr", *METHODS[method]} and best[part].items() <= settings.items()
        for name in settings.keys() - best[part].keys() & space.keys():
            assert settings[name] == pytest.approx(space[name][0], rel=5e-3), "at its weakest"
        assert compare.depth(part) < compare.depth(method)


# --- tuning


def test_half_goes_on_and_what_is_missing_is_asked_for():
    rows = [{"command": name} for name in "abcde"]
    known = {(name, 0): (error, "A") for name, error in zip("abcd", (0.4, 0.1, 0.2, 0.3), strict=True)}
    assert compare.halve(rows, known) == [(rows[4], 0)]
    known["e", 0] = 0.5, "B"
    assert [(row["command"], fold) for row, fold in compare.halve(rows, known)] == [("b", 1), ("c", 1), ("d", 1)]
    assert rows[1]["errors"] == [0.1] and not any(row["chosen"] for row in rows), "cut off: nothing is chosen"
    known |= {(name, 1): (error, "A") for name, error in zip("bcd", (0.9, 0.2, 0.2), strict=True)}
    assert [(row["command"], fold) for row, fold in compare.halve(rows, known)] == [("c", 2), ("d", 2)]
    known |= {("c", 2): (0.9, "A"), ("d", 2): (0.3, "A")}
    assert compare.halve(rows, known) == [] and [row["command"] for row in rows if row["chosen"]] == ["d"]
    assert rows[3]["errors"] == [0.3, 0.2, 0.3] and rows[4]["processors"] == ["B"]


def test_tuning(inline, made_up, tmp_path, capsys):
    rows = report.read_csv(run(tmp_path, "--tune") / "tuned.csv")
    out = capsys.readouterr().out.splitlines()
    for schedule in SCHEDULES:
        groups, best = statistics.by_method(row for row in rows if row["schedule"] == schedule), {}
        assert list(groups) == sorted(TUNED, key=compare.depth), "parts come before what is made of them"
        for method, group in groups.items():
            ran = [sum(row[column] != "" for row in group) for column in ERRORS]
            assert ran == [len(group), (len(group) + 1) // 2, ((len(group) + 1) // 2 + 1) // 2]
            (chosen,) = [row for row in group if row["chosen"]]
            whole = [np.mean([row[column] for column in ERRORS]) for row in group if row[ERRORS[2]] != ""]
            assert np.mean([chosen[column] for column in ERRORS]) == min(whole)
            assert cells(out, method, schedule)["validation error in %"] == f"{100 * min(whole):.2f}"
            best[method] = chosen
            for row in group[16:]:  # taken over from optima that were known by then
                assert row["lr"] == best[row["origin"]]["lr"]
        assert "l1" in best["L1"]["border"] and not best["batch norm"]["border"]
    settings = [payload["settings"] for payload in inline]
    assert {(one.get("fold", 0), one.get("seed", 0)) for one in settings} == {(0, 0), (1, 1), (2, 2)}
    assert {tuple(payload["splits"]) for payload in inline} == {("train", "val")}, "test is not even read"
    assert {row["processor"] for row in rows} == {"A, B"}


def test_tuning_goes_on_from_published_points(inline, made_up, undrawn, monkeypatch, tmp_path):
    digits = replace(data.load("digits"), name="mnist")
    monkeypatch.setattr(data, "load", lambda *_: digits)
    monkeypatch.setattr(compare, "TUNED_FILE", tmp_path / "tuned.csv")

    def tuned(studies, *more):
        inline.clear()
        compare.main(["--tune", "--studies-dir", str(tmp_path / studies), "--device", "cpu", *more])
        (path,) = (tmp_path / studies / "compare").glob("*tune*/tuned.csv")
        return path.read_text(), len(inline)

    first, ran = tuned("first")
    assert ran > 800
    (tmp_path / "tuned.csv").write_text(first)
    assert tuned("again") == (first, 0)
    lines = first.splitlines(keepends=True)
    (tmp_path / "tuned.csv").write_text("".join([*lines[:9], *lines[11:]]))
    again, ran = tuned("two points lost")
    assert again == first and 2 <= ran <= 6
    monkeypatch.setattr(compare, "METHODS", {name: METHODS[name] for name in (RECIPE, PLAIN, "L2")})
    assert tuned("other epochs", "--epochs", "7")[1] > 100, "those are errors after 1000 epochs"


def test_a_method_that_is_not_tuned_is_named(published, inline, capfd, tmp_path):
    path = published / "tuned.csv"
    arguments = (*SETTINGS, "--studies-dir", tmp_path, "--methods", "L2")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("L2,one-cycle,")))
    assert "L2 is not tuned; run compare.py --tune" in refused(capfd, compare.main, *arguments)[1]
    path.unlink()
    assert f"{PLAIN} is not tuned" in refused(capfd, compare.main, *arguments)[1]
    assert not inline


# --- runs


def test_methods_are_paired_and_none_is_run_twice(published, inline, undrawn, tmp_path):
    folder = run(tmp_path, "--folds", "2", "--methods", "dropout")
    strength = dict(zip(SCHEDULES, (one["dropout"] for one in compare.design("dropout", {})[1:]), strict=False))
    first = table(folder, "method", "schedule", "fold", "seed", "error/test", "command")
    expected = itertools.product(SCHEDULES, (PLAIN, "dropout"), (3, 4))
    assert [row[:4] for row in first] == [(method, schedule, fold, fold) for schedule, method, fold in expected]
    assert len(inline) == 8
    settings = [payload["settings"] for payload in inline]
    assert [one["fold"] for one in settings] == [3] * 4 + [4] * 4, "fold after fold"
    assert {one.get("dropout", 0) for one in settings} == {0, *strength.values()}
    assert f"--dropout {strength['constant']}" in first[2][5] and "--fold" not in first[2][5]
    assert f"--schedule one-cycle --dropout {strength['one-cycle']}" in first[6][5]
    before = contents(folder)
    assert run(tmp_path, "--folds", "2", "--methods", "dropout") == folder
    assert len(inline) == 8 and contents(folder) == before
    other = run(tmp_path, "--folds", "3", "--methods", "dropout", "L2")
    more = table(other, "method", "schedule", "fold", "seed", "error/test", "command")
    assert len(inline) == 18 and set(first) < set(more)
    publish(published, dropout={"dropout": 0.123})
    run(tmp_path, "--folds", "2", "--methods", "dropout")
    assert len(inline) == 22 and inline[-1]["settings"]["dropout"] == 0.123, "another strength is another run"


def test_a_whole_comparison_and_a_quick_look_beside_it(published, inline, undrawn, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "METHODS", {name: METHODS[name] for name in (RECIPE, PLAIN, "dropout")})
    whole = run(tmp_path, "--folds", "2")
    before = contents(whole)
    assert len(inline) == 12
    recipe = [command for method, command in table(whole, "method", "command") if method == RECIPE]
    assert recipe[0] == "python train.py --data digits --epochs 4" and recipe[-1] == recipe[0].replace(
        "--epochs 4", "--epochs 4 --schedule one-cycle"
    )
    quick = run(tmp_path, "--folds", "2", "--methods", PLAIN, epochs=2)
    assert len(inline) == 16
    assert contents(whole) == before and quick != whole and (quick / "results.csv").exists()


def test_results_say_cost_and_calibration(published, inline, undrawn, tmp_path):
    folder = run(tmp_path, "--folds", "2", "--methods", PLAIN, epochs=40)
    columns = ("loss/test", "calibration/test", "temperature", "tempered/test")
    assert all(value > 0 for row in table(folder, *columns, *(f"best/{name}" for name in columns)) for value in row)
    assert len(table(folder, "torch", "processor")[0][1]) > 5
    curves = report.read_csv(folder / "curves.csv")
    assert len(curves) == 2 * 3 * 21 and {row["epoch"] for row in curves} >= {0, 1, 40}, (
        "20 looks and the untrained one"
    )
    assert {row["schedule"] for row in report.read_csv(folder / "reliability.csv")} == set(SCHEDULES)


def test_checkpoints_of_kept_runs_go_and_others_stay(published, inline, undrawn, tmp_path):
    for name in ("kept", "begun"):
        (tmp_path / "compare/runs" / name / "network-1").mkdir(parents=True)
        (tmp_path / "compare/runs" / name / "network-1/last.pt").touch()
    (tmp_path / "compare/runs/kept/kept.json").touch()
    run(tmp_path, "--folds", "2", "--methods", PLAIN)
    assert [path.parent.parent.name for path in tmp_path.rglob("network-1/last.pt")] == ["begun"]


def test_every_choice_has_results_of_its_own(tmp_path):
    def folder(**more):
        return planned.results_folder(
            CompareOptions(**{"data": "mnist", "studies_dir": str(tmp_path)} | more), "compare"
        )

    some = (("dropout", "L2"), ("dropout + L2",), ("L2",), tuple(TUNED), tuple(TUNED[:-1]), tuple(TUNED[:-2]))
    found = [folder(), folder(tune=True), folder(folds=2), folder(folds=3), folder(epochs=20), folder(data="digits")]
    found += [folder(methods=names) for names in some]
    assert len(set(found)) == len(found)
    assert folder().name == "all" and folder(workers=1) == folder(folds=17) == folder()


def test_a_diverged_run_is_named_and_spoils_nothing(published, inline, undrawn, tmp_path):
    publish(published, dropout={"lr": 1e9})
    folder = run(tmp_path, "--folds", "2", "--methods", "dropout")
    assert dict(table(folder, "method", "status")) == {PLAIN: "finished", "dropout": "diverged"}
    assert cells((folder / "tests.md").read_text().splitlines(), "dropout", "constant")["folds"] == ("2 (2 diverged)")


def test_everything_is_also_run_without_each_of_its_parts(published, inline, undrawn, tmp_path):
    folder = run(tmp_path, "--folds", "2", "--methods", "everything", epochs=1)
    commands = {(method, schedule): text for method, schedule, text in table(folder, "method", "schedule", "command")}
    parts = ("batch norm", "L2", "noise", "geometric", "elastic")
    assert {method for method, _ in commands} == {PLAIN, "everything", *(f"everything - {part}" for part in parts)}
    assert {schedule for method, schedule in commands if " - " in method} == {"one-cycle"}
    for (method, schedule), command in commands.items():
        off = [name for name in METHODS.get(method.split(" - ")[-1], {}) if " - " in method]
        assert not any(f"--{name} " in command for name in off)
        if off:
            kept = {word for word in commands["everything", schedule].split() if word.startswith("--")}
            assert {word for word in command.split() if word.startswith("--")} == kept - {f"--{name}" for name in off}
    assert "without a part" in (folder / "combinations.md").read_text()


def test_test_images_and_labels_change_nothing_but_test_errors(published, inline, undrawn, monkeypatch, tmp_path):
    """Not one tuned value, and not the order of the methods: labels are wrong, images are black."""
    right = data.load("digits")
    black = replace(right, test_images=right.test_images * 0, test_labels=(right.test_labels + 1) % 10)
    monkeypatch.setattr(compare, "POINTS", 4)
    monkeypatch.setattr(compare, "METHODS", {name: METHODS[name] for name in (RECIPE, PLAIN, "L2", "dropout")})
    seen = []
    for name, dataset in (("right", right), ("black", black)):
        monkeypatch.setattr(data, "load", lambda *_, dataset=dataset: dataset)
        tuned = run(tmp_path / name, "--tune") / "tuned.csv"
        folder = run(tmp_path / name, "--folds", "2", "--methods", "L2", "dropout")
        order = [line.split("|")[1:3] for line in (folder / "best.md").read_text().splitlines()[2:5]]
        seen.append((tuned.read_text(), order, table(folder, "error/val", "best/epoch"), table(folder, "error/test")))
    assert seen[0][:3] == seen[1][:3]
    assert seen[0][3] != seen[1][3]


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--lr 0.001", "--lr"),  # every method has its own
        ("--methods foo", "dropout + L2"),
        ("--tune --folds 2", "--tune: tunes all methods, on the folds (0, 1, 2)"),
        ("--tune --methods L2", "--tune: tunes all methods"),
        ("--data digits --data-dir x", "--data digits and --data-dir x exclude each other"),
        ("--report --methods L2", "--report: rebuilds what is published as it is; drop --methods"),
    ],
)
def test_wrong_arguments(arguments, words, capfd):
    code, box = refused(capfd, compare.main, *arguments.split())
    assert code == 2 and words in " ".join(box.replace("│", "").split())


# --- what is published


def test_report_rebuilds_what_is_published_and_trains_nothing(inline, undrawn, monkeypatch, tmp_path, capsys):
    write_comparison(tmp_path)
    monkeypatch.setattr(compare, "PUBLISHED", tmp_path)
    monkeypatch.setattr(compare, "TUNED_FILE", tmp_path / "tuned.csv")
    written = contents(tmp_path)
    compare.main(["--report"])
    first = contents(tmp_path)
    assert written.items() < first.items() and "| dropout + L2" in capsys.readouterr().out
    for path in first.keys() - written.keys():
        path.write_text("old")
    compare.main(["--report"])
    assert contents(tmp_path) == first and not inline


def test_the_published_points_are_those_of_the_design():
    """Of every method that --tune has come to; a method is chosen once all its points have run as far as they go."""
    rows = report.read_csv(compare.TUNED_FILE)
    known, chosen = compare.published_errors(), {schedule: {} for schedule in SCHEDULES}
    keys = dict.fromkeys((row["method"], row["schedule"]) for row in rows)
    for method, schedule in sorted(keys, key=lambda key: compare.depth(key[0])):
        group = [row for row in rows if (row["method"], row["schedule"]) == (method, schedule)]
        designed = compare.points(method, schedule, chosen[schedule], Config())
        assert [row["command"] for row in group] == [row["command"] for row in designed]
        missing = compare.halve(designed, known)
        for row, one in zip(group, designed, strict=True):
            assert [row[column] for column in ERRORS if row[column] != ""] == one["errors"]
            assert row["chosen"] == one["chosen"] and (not missing or not row["chosen"])
        for row in (row for row in designed if row["chosen"]):
            chosen[schedule][method] = row["settings"]


def test_the_published_tables_follow_from_the_published_files(undrawn, tmp_path):
    tuning = compare.TUNED_FILE.parent
    for folder in (PUBLISHED, tuning):
        shutil.copytree(folder, tmp_path / folder.name)
    report.write_report(tmp_path / PUBLISHED.name, PARTS)
    report.write_tuning(tmp_path / tuning.name, list(METHODS))
    for folder in (PUBLISHED, tuning):
        written = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / folder.name).glob("*.md")}
        assert written == {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
