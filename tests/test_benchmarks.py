"""The benchmark works, so that it cannot rot; how fast anything is, no test says."""

import math
import os

import torch

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
