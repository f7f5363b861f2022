import importlib
import inspect
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
import test_questions
from helpers import ROOT, refused

import handout
from handout import GAPS
from support.run import RunError

TESTS = {name: test for name, test in vars(test_questions).items() if name.startswith("test_")}


def graders(gap):
    return [name for name in TESTS if name.startswith(gap.test)]


def test_every_gap_has_a_test_and_every_test_a_gap():
    assert all(graders(gap) for gap in GAPS)
    answered = {name for gap in GAPS for name in graders(gap)} | {"test_question2_objective_adds_the_penalties"}
    assert answered == set(TESTS)


@pytest.mark.parametrize("gap", GAPS, ids=lambda gap: gap.function)
def test_a_gap_fails_its_own_tests_and_no_others(gap, monkeypatch):
    """All but `objective`, of which question 2 has a test as well."""

    def not_yet(*_, **__):
        raise NotImplementedError

    owner = importlib.import_module(gap.file.removesuffix(".py"))
    *classes, name = gap.function.split(".")
    for one in classes:
        owner = getattr(owner, one)
    monkeypatch.setattr(owner, name, not_yet)
    failed = set()
    for test in TESTS.values():
        try:
            with pytest.MonkeyPatch.context() as patch:
                test(**{name: patch for name in inspect.signature(test).parameters})
        except NotImplementedError:
            failed.add(test.__name__)
    more = {"test_question2_objective_adds_the_penalties"} if gap.function == "objective" else set()
    assert failed == set(graders(gap)) | more


def grade(folder):
    """How the tests in `folder` end, by word, and all that pytest prints."""
    line = [sys.executable, "-m", "pytest", "tests", "-q", "-n", "0", "-p", "no:cacheprovider", "-rA", "--tb=line"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    words = [text.split()[0] for text in done.stdout.splitlines() if text.startswith(("PASSED", "FAILED", "ERROR"))]
    return Counter(words), done.stdout


def test_the_handout_fails_everywhere_and_passes_once_it_is_filled(tmp_path):
    out = tmp_path / "tp"
    handout.main([str(out)])
    found, text = grade(out)
    assert found == {"FAILED": len(TESTS)}, text
    for gap in GAPS:
        assert f"Question {gap.question}: {gap.hint}" in text
        source, reference = (folder / gap.file for folder in (out, ROOT))
        assert gap.hint in source.read_text() and gap.hint not in reference.read_text()
    for file in {gap.file for gap in GAPS}:
        (out / file).write_bytes((ROOT / file).read_bytes())
    found, text = grade(out)
    assert found == {"PASSED": len(TESTS)}, text


def test_the_plain_run_works_with_the_answers_to_question_1(tmp_path):
    out = tmp_path / "tp"
    handout.write_handout(out, [gap for gap in GAPS if gap.question > 1])
    line = [sys.executable, "train.py", "--data", "digits", "--epochs", "2", "--runs-dir", str(tmp_path / "runs")]
    run = partial(subprocess.run, cwd=out, capture_output=True, text=True)
    plain, dropped = run(line), run([*line, "--dropout", "0.2"])
    assert plain.returncode == 0 and "finished after" in plain.stdout
    assert dropped.returncode == 1 and "Question 2: " in dropped.stderr and dropped.stderr.count("\n") == 1


def test_signature_and_docstring_of_a_gap_stay():
    head = 'class A:\n    def f(self, x):\n        """Doubles."""\n'
    found = handout.with_gaps(f"{head}        return 2 * x\n\n\ny = 1\n", [handout.Gap("a.py", "A.f", 3, "twice")])
    assert found.startswith(head) and found.endswith("\n\n\ny = 1\n") and "return" not in found
    assert "Question 3: twice" in found


def test_what_cannot_be_done_is_one_line(tmp_path, capfd):
    (tmp_path / "mine.py").write_text("x = 1")
    line = f"error: {tmp_path}: is not empty; name a folder that is new\n"
    assert refused(capfd, handout.main, tmp_path) == (1, line)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    with pytest.raises(RunError, match="GAPS names f, but"):
        handout.with_gaps("x = 1", [handout.Gap("a.py", "f", 1, "")])
