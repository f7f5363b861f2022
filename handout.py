"""Write the student's version: the bodies of some functions become gaps, and the tests grade what is put there.

    python handout.py ../tp
    cd ../tp && pytest tests -k question2

Signature and docstring of a gap stay, with formula and shapes. Nothing is written over. GAPS is what a teacher changes.
"""

import ast
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import tyro

from support.run import RunError
from support.shell import Folder, checked, errors_in_one_line, parse


class Gap(NamedTuple):
    """A function that students write; it is graded by the tests in tests/test_questions.py that are called after it."""

    file: str
    function: str  # "Class.method" for a method
    question: int
    hint: str

    @property
    def test(self) -> str:
        """How the names of its tests begin."""
        return f"test_question{self.question}_{self.function.replace('.', '_').lower()}"


GAPS = (
    Gap("model.py", "MLP.forward", 1, "flatten; in each hidden layer linear, norm, ReLU, dropout; then the classifier"),
    Gap("model.py", "store_grad", 1, "a leaf needs requires_grad, any other tensor has to retain its gradient"),
    Gap("model.py", "entropy", 1, "minus the sum of p log p; take log_softmax, so that no p becomes 0"),
    Gap("train.py", "objective", 1, "the mean cross-entropy of raw logits; question 2 adds the penalties"),
    Gap("train.py", "predict", 1, "evaluation mode, batch after batch; then the mode that was there before"),
    Gap("regularizers.py", "l1_penalty", 2, "the sum of |w| over the weights that are penalised"),
    Gap("regularizers.py", "l2_penalty", 2, "the sum of the squares, over the same weights"),
    Gap("regularizers.py", "laplace_scale", 2, "solve l1 = 1 / (N b) for b"),
    Gap("regularizers.py", "gaussian_deviation", 2, "solve l2 = 1 / (2 N sigma**2) for sigma"),
    Gap("model.py", "Dropout.forward", 2, "in training a random mask, and a scale that keeps the mean; else nothing"),
    Gap("augment.py", "gaussian_noise", 3, "one number a pixel from the generator; the images given stay as they are"),
    Gap("augment.py", "inverse_matrices", 3, "the inverse of rotation times shear times zoom, image by image"),
    Gap("train_lightning.py", "LitMLP.training_step", 4, "what the loop of train.py does with a batch: the objective"),
    Gap("train_lightning.py", "LitMLP.configure_optimizers", 4, "build_optimizer; the schedule steps at each update"),
    Gap("search.py", "suggest", 5, "ask the trial; a strength only where its regularisation is used"),
)
WHOLE = ("data.py", "observe.py", "tests/conftest.py", "tests/test_questions.py",
         "requirements.txt", "pyproject.toml", ".gitignore", "runs/.gitignore")  # fmt: skip
NOT_NEEDED = "__pycache__", "pictures.py", "sweeps.py", "verdicts.py"  # of support/
HERE = Path(__file__).parent


@checked
class HandoutOptions:
    """Write the student's version of this repository."""

    out: tyro.conf.Positional[Folder]  # a folder that is new or empty


def with_gaps(source: str, gaps: Iterable[Gap]) -> str:
    """`source` with the bodies of the functions in `gaps` taken out; RunError if there is no such function."""
    for gap in gaps:
        node, lines = ast.parse(source), source.splitlines()
        for name in gap.function.split("."):
            inner = {one.name: one for one in node.body if isinstance(one, ast.ClassDef | ast.FunctionDef)}
            if name not in inner:
                raise RunError(f"handout.py: GAPS names {gap.function}, but {gap.file} has no such function; mend GAPS")
            node = inner[name]
        first = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
        indent, text = " " * node.body[0].col_offset, f"Question {gap.question}: {gap.hint}"
        lines[first : node.end_lineno] = [f"{indent}raise NotImplementedError(", f'{indent}    "{text}"', f"{indent})"]
        source = "\n".join(lines) + "\n"
    return source


def write_handout(out: Path, gaps: Iterable[Gap] = GAPS) -> None:
    """The student's version in `out`, which must be new or empty, else RunError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: is not empty; name a folder that is new")
    files = dict.fromkeys([gap.file for gap in GAPS] + [*WHOLE])
    texts = {file: (HERE / file).read_text(encoding="utf-8") for file in files}
    texts |= {file: with_gaps(text, [gap for gap in gaps if gap.file == file]) for file, text in texts.items()}
    texts["README.md"] = (HERE / "handout.md").read_text(encoding="utf-8")
    beside = out.absolute().with_name(f".{out.absolute().name}.tmp")  # all at once, or nothing
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(HERE / "support", beside / "support", ignore=shutil.ignore_patterns(*NOT_NEEDED))
    for file, text in texts.items():
        (beside / file).parent.mkdir(exist_ok=True)
        (beside / file).write_text(text, encoding="utf-8", newline="\n")
    beside.replace(out)


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line(RunError):
        options = parse(HandoutOptions, argv)
        write_handout(Path(options.out))
        print(f"{len(GAPS)} gaps in {options.out}; its README.md says how to begin")


if __name__ == "__main__":
    main()
