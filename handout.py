"""Write the student's version: the bodies of some functions become gaps, and the tests grade what is put there.

    python handout.py ../tp
    cd ../tp && pytest tests -k question2

Signature and docstring of a gap stay, with formula and shapes. Nothing is written over. GAPS is what a teacher changes.
"""

import ast
import shutil
from collections.abc import Iterable, Iterator
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
    Gap(
        "train_lightning.py", "LitMLP.configure_optimizers", 4, "build_optimizer; its schedule steps after each update"
    ),
    Gap("search.py", "suggest", 5, "ask the trial; a strength only where its regularisation is used"),
)
SCRIPTS = (
    "model.py",
    "regularizers.py",
    "augment.py",
    "observe.py",
    "data.py",
    "train.py",
    "train_lightning.py",
    "search.py",
)
ROOT = Path(__file__).parent


@checked
class HandoutOptions:
    """Write the student's version of this repository."""

    out: tyro.conf.Positional[Folder]  # a folder that is new or empty


def needed(files: Iterable[str]) -> Iterator[str]:
    """`files` and, in any depth, what they import of support/."""
    seen = set()
    todo = list(files)
    while todo:
        file = todo.pop(0)
        if file not in seen and (ROOT / file).exists():
            seen.add(file)
            yield file
            for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "support":
                    names = [f"{node.module}.{name.name}" for name in node.names] if node.module == "support" else []
                    todo += [f"{name.replace('.', '/')}.py" for name in names or [node.module]]


def with_gaps(source: str, gaps: Iterable[Gap]) -> str:
    """`source` with the bodies of the functions in `gaps` taken out; RunError if there is no such function."""
    lines = source.splitlines()
    places = {}
    for outer in ast.parse(source).body:
        inner = outer.body if isinstance(outer, ast.ClassDef) else []
        names = {outer.name: outer} if isinstance(outer, ast.FunctionDef) else {}
        places |= names | {f"{outer.name}.{node.name}": node for node in inner if isinstance(node, ast.FunctionDef)}
    for gap in sorted(gaps, key=lambda gap: -places[gap.function].lineno if gap.function in places else 0):
        if gap.function not in places:
            raise RunError(f"handout.py: GAPS names {gap.function}, but {gap.file} has no such function; mend GAPS")
        node = places[gap.function]
        first = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
        indent = " " * node.body[0].col_offset
        text = f"Question {gap.question}: {gap.hint}"
        lines[first : node.end_lineno] = [f"{indent}raise NotImplementedError(", f'{indent}    "{text}"', f"{indent})"]
    return "\n".join(lines) + "\n"


def write_handout(out: Path, gaps: Iterable[Gap] = GAPS) -> None:
    """The student's version in `out`, which must be new or empty, else RunError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: is not empty; name a folder that is new")
    beside = out.absolute().with_name(f".{out.absolute().name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    for file in needed(SCRIPTS):
        (beside / file).parent.mkdir(parents=True, exist_ok=True)
        source = (ROOT / file).read_text(encoding="utf-8")
        text = with_gaps(source, [gap for gap in gaps if gap.file == file])
        (beside / file).write_text(text, encoding="utf-8", newline="\n")
    for file in ("requirements.txt", "pyproject.toml", ".gitignore", "runs/.gitignore", "support/__init__.py",
                 "tests/conftest.py", "tests/test_questions.py"):  # fmt: skip
        (beside / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / file, beside / file)
    shutil.copyfile(ROOT / "handout.md", beside / "README.md")
    beside.replace(out)


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line(RunError):
        options = parse(HandoutOptions, argv)
        write_handout(Path(options.out))
        print(f"{len(GAPS)} gaps in {options.out}; its README.md says how to begin")


if __name__ == "__main__":
    main()
