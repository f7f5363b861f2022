import math

import pytest
import torch
from torch import nn

from model import MLP
from regularizers import gaussian_deviation, l1_penalty, l2_penalty, laplace_scale, penalized_weights


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MLP(64, 10, norm="layer")


def test_only_the_weight_matrices_of_linear_layers_are_penalized(model):
    names = [name for name, p in model.named_parameters() if any(p is weight for weight in penalized_weights(model))]
    assert names == [f"linears.{layer}.weight" for layer in range(4)]


def test_kernels_are_penalized_too():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    assert [id(weight) for weight in penalized_weights(model)] == [id(model[0].weight), id(model[3].weight)]


def test_penalties_are_the_sums_that_they_say(model):
    weights = torch.cat([linear.weight.flatten() for linear in model.linears]).double()
    assert l1_penalty(model).item() == pytest.approx(weights.abs().sum().item(), rel=1e-5)
    assert l2_penalty(model).item() == pytest.approx((weights**2).sum().item(), rel=1e-5)


def test_l1_pulls_every_weight_towards_zero_alike(model):
    l1_penalty(model).backward()
    for weight in penalized_weights(model):
        assert torch.equal(weight.grad, weight.sign())


def test_l1_is_a_laplace_prior(model):
    """The penalty is -log prior / N, up to a constant: its differences between two models are the same."""
    l1, images = 2e-4, 3000
    prior = torch.distributions.Laplace(0, laplace_scale(l1, images))
    assert_same_differences(model, lambda m: l1 * l1_penalty(m), prior, images)
    assert laplace_scale(l1, images) == pytest.approx(1 / 0.6)


def test_l2_is_a_gaussian_prior(model):
    l2, images = 1e-4, 3000
    prior = torch.distributions.Normal(0, gaussian_deviation(l2, images))
    assert_same_differences(model, lambda m: l2 * l2_penalty(m), prior, images)
    assert gaussian_deviation(l2, images) == pytest.approx(1 / math.sqrt(0.6))


def assert_same_differences(model, penalty, prior, images):
    other = MLP(64, 10)
    with torch.no_grad():
        by_penalty = penalty(model) - penalty(other)
        by_prior = [
            -sum(prior.log_prob(weight.double()).sum() for weight in penalized_weights(m)) / images
            for m in (model, other)
        ]
        assert by_penalty.item() == pytest.approx((by_prior[0] - by_prior[1]).item(), rel=1e-3)
        assert abs(by_penalty.item()) > 1e-6


def test_no_penalty_is_a_flat_prior():
    assert laplace_scale(0, 3000) == gaussian_deviation(0, 3000) == math.inf
