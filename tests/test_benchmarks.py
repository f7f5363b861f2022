"""The benchmark works, so that it cannot rot; how fast anything is, no test says."""

import math
import os

import torch

import data
from benchmarks import step


def test_quick_prints_every_table_and_leaves_no_trace(capsys):
    before = dict(os.environ), torch.get_num_threads(), torch.get_float32_matmul_precision()
    tables = step.main(["--quick", "--data", "digits"])
    assert before == (dict(os.environ), torch.get_num_threads(), torch.get_float32_matmul_precision())
    assert set(tables["augmentation"]) == {"geometry", "noise", "elastic", "all"}
    assert {*step.METHODS, "plain, --matmul medium", "scikit-learn's MLPClassifier"} < set(tables["step"])
    assert set(tables["run"]) == {"plain steps alone", *step.WHOLE_RUNS}
    for column, limit in (("x PyTorch's", "PyTorch's"), ("x NumPy's", "NumPy's")):
        assert tables["step"][f"{limit} matrix products alone"][column] == 1
    printed = capsys.readouterr().out
    for table in tables.values():
        for name, cells in table.items():
            assert f"\n{name} " in printed
            assert all(math.isfinite(value) and value > 0 for value in cells.values())


def test_a_step_s_operations_are_those_of_its_products(digits):
    dataset = data.load("digits")
    images, labels = data.split_tensors(dataset, "train", 0, step.CPU)
    problem = step.Problem(dataset, images, labels, digits)
    done = []

    def matmul(a, b, out):
        assert out.shape == (a.shape[0], b.shape[1])
        done.append(2 * a.shape[0] * a.shape[1] * b.shape[1])

    step.products(problem, matmul, lambda tensor: tensor)(1)
    assert sum(done) == step.operations(problem)
