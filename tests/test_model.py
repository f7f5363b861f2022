import pytest
import torch
from torch import nn

from model import INITS, MLP, Dropout, store_grad
from observe import Recorder


def test_the_class_s_network():
    model = MLP(784, 10)
    assert sum(p.numel() for p in model.parameters()) == 99_710
    assert [tuple(linear.weight.shape) for linear in model.linears] == [(100, 784), (100, 100), (100, 100), (10, 100)]


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_order_in_a_hidden_layer_and_raw_logits(norm):
    """Linear, norm, ReLU, dropout, three times; then a linear layer and nothing."""
    model = MLP(64, 10, norm=norm, dropout=0.5).eval()
    images = torch.rand(7, 8, 8)
    x = images.view(7, 64)
    for linear, layer_norm in zip(model.linears[:3], model.norms, strict=True):
        x = linear(x)
        if norm != "none":
            x = layer_norm(x)
        x = x.relu()
    logits = model.linears[3](x)
    assert torch.equal(model(images), logits)
    assert (logits < 0).any() and not torch.allclose(logits.exp().sum(1), torch.ones(7))


@pytest.mark.parametrize("hidden", [(5,), (50, 20), (7, 8, 9, 10, 11)])
def test_hidden_layers_of_any_width(hidden):
    model = MLP(64, 10, hidden=hidden, norm="batch", init="he", dropout=0.1)
    assert [linear.out_features for linear in model.linears] == [*hidden, 10]
    assert [norm.num_features for norm in model.norms] == [*hidden]
    assert model(torch.rand(3, 8, 8)).shape == (3, 10)


def test_every_hidden_layer_has_a_norm_of_its_own():
    for norm, kind in (("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)):
        norms = [module for module in MLP(64, 10, norm=norm).modules() if isinstance(module, kind)]
        assert len(set(map(id, norms))) == 3


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_dropout_from_scratch_is_torch_s(p):
    """What is kept and how often, its scale, its gradient, and evaluation mode."""
    ours, theirs = Dropout(p), nn.Dropout(p)
    for layer in (ours, theirs):
        x = torch.ones(100_000, requires_grad=True)
        dropped = layer(x)
        dropped.sum().backward()
        assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
        assert (dropped > 0).double().mean().item() == pytest.approx(1 - p, abs=0.01)
        assert torch.equal(x.grad, dropped.detach()), "the gradient goes where the activation went"
        assert layer.eval()(x) is x or torch.equal(layer(x), x)


def test_dropout_of_0_is_the_identity_and_draws_nothing():
    x, state = torch.randn(10), torch.get_rng_state()
    assert Dropout(0.0)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


BOUNDS = {  # by the numbers of inputs and outputs
    "default": lambda inputs, outputs: inputs**-0.5,
    "glorot": lambda inputs, outputs: (6 / (inputs + outputs)) ** 0.5,
    "he": lambda inputs, outputs: (6 / inputs) ** 0.5,
}


@pytest.mark.parametrize("init", INITS)
def test_initial_weights_are_uniform_within_their_bound(init):
    for linear in MLP(784, 10, init=init).linears:
        limit = BOUNDS[init](linear.in_features, linear.out_features)
        assert 0.95 * limit < linear.weight.abs().max().item() <= limit * 1.000001
        assert linear.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.06)
        assert linear.bias.abs().max().item() <= linear.in_features**-0.5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stored_gradients_are_those_of_autograd(dropout, tmp_path):
    """At the input of every linear layer, as the recorder attaches store_grad from outside."""
    model, images, labels = MLP(64, 10, norm="batch", dropout=dropout), torch.rand(9, 8, 8), torch.arange(9)
    inputs = []

    def store(x):
        inputs.append(store_grad(x))
        return inputs[-1]

    with Recorder(tmp_path).input_gradients(model, store, 0, looked_at=True, histograms=False):
        loss = nn.functional.cross_entropy(model(images), labels)
        expected = torch.autograd.grad(loss, inputs, retain_graph=True)
        for x in inputs:
            x.grad = None
        loss.backward()
    assert [x.shape[1] for x in inputs] == [64, 100, 100, 100]
    for x, gradient in zip(inputs, expected, strict=True):
        assert torch.equal(x.grad, gradient) and gradient.abs().sum() > 0
    assert not images.requires_grad, "the caller's images were changed"
