import importlib
import inspect
import subprocess
import sys
from collections import Counter

import pytest
import test_questions
from helpers import ROOT, refused

import handout
from handout import GAPS

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
    plain, dropped = (
        subprocess.run([*line, *more], cwd=out, capture_output=True, text=True) for more in ([], ["--dropout", "0.2"])
    )
    assert plain.returncode == 0 and "finished after" in plain.stdout
    assert dropped.returncode == 1 and "Question 2: " in dropped.stderr and dropped.stderr.count("\n") == 1


def test_signature_and_docstring_of_a_gap_stay():
    head = 'class A:\n    def f(self, x):\n        """Doubles.\n\n        x: a number.\n        """\n'
    source = f"{head}        # so\n        return 2 * x\n\n\ny = 1\n"
    found = handout.with_gaps(source, [handout.Gap("a.py", "A.f", 3, "twice")])
    assert found.startswith(head) and found.endswith("\n\n\ny = 1\n") and "# so" not in found
    scope = {}
    exec(found, scope)
    with pytest.raises(NotImplementedError, match="Question 3: twice"):
        scope["A"]().f(1)


def test_nothing_is_written_over(tmp_path, capfd):
    (tmp_path / "mine.py").write_text("x = 1")
    assert refused(capfd, handout.main, tmp_path) == (
        1,
        f"error: {tmp_path}: is not empty; name a folder that is new\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_gap_that_is_no_function_is_one_line(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(
        handout, "write_handout", lambda out: handout.with_gaps("x = 1", [handout.Gap("a.py", "f", 1, "")])
    )
    code, line = refused(capfd, handout.main, tmp_path / "new")
    assert code == 1 and "GAPS names f, but a.py has no such function" in line
