import math

import pytest
import torch
from torch import nn

from model import INITS, MLP, Dropout, entropy, store_grad
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
    assert torch.equal(nn.Dropout(0.0)(x), x)


def test_dropout_acts_on_the_activations_of_training_only():
    model, images = MLP(64, 10, dropout=0.2), torch.rand(5, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("init", "bound"),
    [
        ("default", lambda inputs, outputs: inputs**-0.5),
        ("glorot", lambda inputs, outputs: (6 / (inputs + outputs)) ** 0.5),
        ("he", lambda inputs, outputs: (6 / inputs) ** 0.5),
    ],
)
def test_initial_weights_are_uniform_within_their_bound(init, bound):
    assert init in INITS
    for linear in MLP(784, 10, init=init).linears:
        limit = bound(linear.in_features, linear.out_features)
        assert 0.95 * limit < linear.weight.abs().max().item() <= limit * 1.000001
        assert linear.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.06)
        assert linear.bias.abs().max().item() <= linear.in_features**-0.5


def test_batch_norm_looks_at_the_batch_in_training_only():
    model, images = MLP(64, 10, norm="batch"), torch.rand(6, 8, 8)
    in_pairs = torch.cat([model(pair) for pair in images.split(2)])
    assert not torch.allclose(model(images), in_pairs, atol=1e-3)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.allclose(model(images), torch.cat([model(pair) for pair in images.split(2)]), atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layer_norm_looks_at_one_image_only():
    model, images = MLP(64, 10, norm="layer"), torch.rand(6, 8, 8)
    assert torch.allclose(model(images), torch.cat([model(pair) for pair in images.split(2)]), atol=1e-6)


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


def test_looking_at_the_inputs_changes_no_gradient_of_a_weight(tmp_path):
    def gradients(looked_at):
        torch.manual_seed(0)
        model = MLP(64, 10, dropout=0.3)
        with Recorder(tmp_path).input_gradients(model, store_grad, 0, looked_at, histograms=True):
            model(torch.rand(9, 8, 8)).logsumexp(1).sum().backward()
        assert not any(module._forward_pre_hooks for module in model.modules()), "a hook was left behind"
        return [p.grad for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


def test_store_grad_of_a_leaf_and_of_a_result():
    x = store_grad(torch.tensor([1.0, 2.0]))
    y = store_grad(x * 3)
    y.square().sum().backward()
    assert y.grad.tolist() == [6, 12] and x.grad.tolist() == [18, 36]


def test_entropy_equals_torch_s_and_lies_between_0_and_ln_10():
    logits = torch.randn(50, 10) * 10
    assert torch.allclose(entropy(logits), torch.distributions.Categorical(logits=logits).entropy(), atol=1e-5)
    extremes = torch.zeros(2, 10)
    extremes[1, 3] = 1000
    assert entropy(extremes).tolist() == pytest.approx([math.log(10), 0])
