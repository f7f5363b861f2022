import numpy as np
import pytest

from observe import evaluation_epochs, histogram_epochs


@pytest.mark.parametrize(("epochs", "count"), [(1000, 30), (1000, 50), (1000, 1), (20, 50), (1, 1), (37, 12), (60, 60)])
def test_evaluations_go_from_the_untrained_model_to_the_end(epochs, count):
    chosen = evaluation_epochs(epochs, count)
    assert chosen[0] == 0 and chosen[-1] == epochs
    assert len(chosen) == min(count, epochs) + 1
    assert (np.diff(chosen) > 0).all()


def test_evaluations_are_denser_early():
    chosen = evaluation_epochs(1000, 30)
    assert sum(epoch <= 100 for epoch in chosen) >= 20
    gaps = np.diff(chosen)
    assert gaps[0] == 1 and gaps[-1] > 100


@pytest.mark.parametrize("count", [0, 1, 5, 20, 30, 99])
def test_histograms_come_with_some_of_the_evaluations(count):
    evaluations = evaluation_epochs(1000, 30)
    chosen = histogram_epochs(evaluations, count)
    assert set(chosen) <= set(evaluations) and len(set(chosen)) == len(chosen)
    assert len(chosen) == (min(count, 30) + 1 if count else 0)
    if count:
        assert chosen[0] == 0 and chosen[-1] == 1000
