"""README.md and REPORT.md: what they show is in files that commands write, and what they link to is there."""

import re

import pytest
from helpers import ROOT

TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "GUIDE.md", "REPORT.md")}
WRITTEN = [line for path in ROOT.glob("figures/*/*.md") for line in path.read_text(encoding="utf-8").splitlines()]


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def numbers(text):
    """Those with a decimal point, without signs."""
    return set(re.findall(r"\d+\.\d+", text))


@pytest.mark.parametrize("name", TEXTS)
def test_tables_of_results_are_those_of_the_files(name):
    """Cell by cell: a row with an interval or of a method stands, with more columns, in a file that --report writes."""
    shown = [cells(line) for line in TEXTS[name].splitlines() if line.startswith("| ")]
    written = [cells(line) for line in WRITTEN if line.startswith("| ")]
    shown = [row for row in shown if row[0] in {one[0] for one in written} or re.search(r"\d ± ", " ".join(row))]
    for row in shown:
        assert any(row[0] == one[0] and set(row) <= set(one) for one in written), row
    assert len(shown) > 10 or name != "REPORT.md"


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
    assert len(files) == 7
    for name, text in sections:
        found = files[name].read_text(encoding="utf-8")
        assert numbers(text) and numbers(text) <= numbers(found), name
        (verdict,) = re.findall(r"\*\*(It .*?)\.\*\*", " ".join(text.split()))
        _, judged = found.split("\n")[0].removesuffix(".").split(".** ")
        assert judged == verdict or (":" in verdict and judged.startswith(verdict)), name


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#:]+)\)", TEXTS[name])
    assert links and all((ROOT / link).exists() for link in links)
