"""README.md and REPORT.md: what they show is in files that commands write, and what they link to is there."""

import re

import numpy as np
import pytest
from helpers import ROOT

from compare import METHODS, RECIPE, TUNED_FILE
from sentences import SENTENCES
from support import report
from support.statistics import runs_by_method
from train import SPACE

TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "REPORT.md")}
WRITTEN = [line for path in ROOT.glob("figures/*/*.md") for line in path.read_text(encoding="utf-8").splitlines()]
NAMED = {*METHODS, *(f"{one.name} ({number})" for number, one in enumerate(SENTENCES, start=1))}


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def numbers(text):
    """Those with a decimal point, without signs."""
    return set(re.findall(r"\d+\.\d+", text))


@pytest.mark.parametrize("name", TEXTS)
def test_tables_of_results_are_those_of_the_files(name):
    """Cell by cell: a row with an interval or of a method stands, with more columns, in a file that --report writes."""
    shown = [cells(line) for line in TEXTS[name].splitlines() if line.startswith("| ")]
    shown = [row for row in shown if row[0] in NAMED or re.search(r"\d ± ", " ".join(row))]
    written = [cells(line) for line in WRITTEN]
    for row in shown:
        assert any(row[0] == one[0] and set(row) <= set(one) for one in written), row
    assert len(shown) > 10 or name == "README.md"


def test_numbers_said_of_a_method_stand_in_its_rows():
    """In REPORT.md, of every bullet that begins with the names of methods in bold, as in the generated tables."""
    bullets = re.findall(r"^- (?:\*\*.*?)(?=^- |^$|\Z)", TEXTS["REPORT.md"], re.MULTILINE | re.DOTALL)
    checked = 0
    for bullet in bullets:
        said = numbers(bullet)
        names = {name.lower() for name in re.findall(r"\*\*(.+?)\*\*", bullet)}
        rows = " ".join(line for line in WRITTEN if names & {cell.lower() for cell in cells(line)})
        if said and rows:
            assert said <= numbers(rows), (bullet, said - numbers(rows))
            checked += len(said)
    assert checked


def test_numbers_and_verdict_said_of_a_sentence_stand_in_its_file():
    """In REPORT.md, of every section whose title begins with the name of a sentence of the class."""
    sections = re.findall(r"^### (\S+): (.*?)(?=^##|\Z)", TEXTS["REPORT.md"], re.MULTILINE | re.DOTALL)
    files = {name: ROOT / "figures" / "sentences" / f"{name}.md" for name, _ in sections}
    assert files.keys() == {one.name for one in SENTENCES}
    for name, text in sections:
        found = files[name].read_text(encoding="utf-8")
        assert numbers(text) and numbers(text) <= numbers(found), name
        (verdict,) = re.findall(r"\*\*(It .*?)\.\*\*", text)
        _, judged = found.split("\n")[0].removesuffix(".").split(".** ")
        assert judged == verdict or (":" in verdict and judged.startswith(verdict)), name


def test_what_is_said_of_single_points_of_tuning():
    """Of L1, L2 and layer norm + L2, on fold 0, where all points ran."""
    errors, rows = {}, report.read_csv(TUNED_FILE)
    assert {row["method"] for row in rows} | {RECIPE} == set(METHODS)
    assert [(row["method"], row["border"]) for row in rows if row["border"]] == [("layer norm + L2", "l2")]
    for row in rows:
        errors.setdefault(row["method"], {})[row["trial"]] = row["val_error_fold_0"]
    best = {method: min(found.values()) for method, found in errors.items()}
    assert errors["L1"][16] > best["L1"] and errors["L1"][16] > best["baseline"] < errors["L2"][16]
    ordinary = [row for row in rows if row["method"] == "layer norm + L2" and row["l2"] >= SPACE["l2"][0]]
    assert ordinary and min(row["val_error_fold_0"] for row in ordinary) > best["layer norm"]


def test_what_is_said_of_runs_that_end_on_a_jump():
    """Three of the first table, of which the baseline's is far off all its other runs."""
    groups = runs_by_method(report.read_csv(ROOT / "figures" / "compare" / "results.csv"))
    jumped = {}
    for method, runs in groups.items():
        usual = np.median([run["loss/train"] for run in runs])
        jumped |= {(method, run["fold"]): run for run in runs if run["loss/train"] > max(1e-3, 10 * usual)}
    assert set(jumped) == {("baseline", 11), ("He initialisation", 4), ("batch norm", 10)}
    assert f"{100 * jumped['baseline', 11]['error/test']:.2f} % of the test images" in TEXTS["REPORT.md"]
    others = [run["error/test"] for run in groups["baseline"] if run["fold"] != 11]
    assert max(others) < 0.6 * jumped["baseline", 11]["error/test"]


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#:]+)\)", TEXTS[name])
    assert links and all((ROOT / link).exists() for link in links)
