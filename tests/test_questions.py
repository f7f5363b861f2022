"""The grader: the tests of a question are named after it, `pytest tests -k question2`; none needs another answer."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

import augment
import model
import regularizers
import train
from train import Config


def close(found, expected, what):
    """Fails with `what`, the values found and those expected."""
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape, f"{what}: the shape is {tuple(found.shape)}, expected {tuple(expected.shape)}"
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6), f"{what}: found {found}, expected {expected}"


# --- question 1: observe ---------------------------------------------------------------------------------------------


def test_question1_mlp_forward_order_of_the_layers():
    called, mlp = [], model.MLP(12, 4, hidden=(5, 5))
    mlp.norms, mlp.dropout = nn.ModuleList([nn.Identity(), nn.Identity()]), nn.Identity()
    for name, layers in {"linear": mlp.linears, "norm": mlp.norms, "dropout": [mlp.dropout]}.items():
        for layer in layers:
            layer.register_forward_hook(lambda *_, name=name: called.append(name))
    logits = mlp(torch.rand(3, 3, 4))
    assert logits.shape == (3, 4), f"3 images and 4 classes: logits of shape (3, 4), not {tuple(logits.shape)}"
    expected = ["linear", "norm", "dropout"] * 2 + ["linear"]
    assert called == expected, (
        f"in each hidden layer linear, norm, (ReLU,) dropout, then the classifier; found {called}"
    )


def test_question1_mlp_forward_relu_and_raw_logits():
    mlp, images = model.MLP(12, 4, hidden=(5, 5)), torch.rand(3, 3, 4)
    x = images.flatten(1)
    for linear in mlp.linears[:-1]:
        x = F.relu(linear(x))
    close(mlp(images), mlp.linears[-1](x), "ReLU after each hidden layer, none after the classifier, and no softmax")


def test_question1_store_grad_of_an_input_and_of_a_result():
    x = model.store_grad(torch.tensor([1.0, 2.0]))
    assert x is not None, "store_grad returns its argument, so that it can stand in the middle of a network"
    y = model.store_grad(3 * x)
    y.square().sum().backward()
    assert x.grad is not None, "the input x is a leaf: nobody asks for its gradient unless requires_grad is set"
    assert y.grad is not None, "3 x is no leaf: autograd forgets its gradient unless it is told to retain it"
    close(y.grad, [6.0, 12.0], "d/dy of the sum of y**2, at y = 3, 6")
    close(x.grad, [18.0, 36.0], "d/dx of the sum of (3 x)**2")


def test_question1_entropy_in_nats():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0], [1000.0, 0.0, 0.0, 0.0]])
    expected = torch.distributions.Categorical(logits=logits).entropy()
    found = model.entropy(logits)
    assert not found.isnan().any(), "0 log 0 is 0, not NaN: take log_softmax rather than the logarithm of softmax"
    close(found, expected, "the entropy of the softmax of each row, in nats")


def test_question1_objective_is_the_mean_cross_entropy():
    network, images, labels = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.rand(5, 3, 4), torch.arange(5) % 4
    expected = -network(images).log_softmax(1)[range(5), labels].mean()
    close(train.objective(network, images, labels, Config()), expected, "without penalties: the mean of -log p(label)")


def test_question1_predict_in_evaluation_mode():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 4))
    network.train()
    images = torch.rand(2500, 3, 4)
    logits = train.predict(network, images)
    assert network.training, "predict leaves the mode as it found it: here training"
    assert not logits.requires_grad, "nothing is differentiated: torch.no_grad"
    network.eval()
    close(logits, network(images).detach(), "in evaluation nothing is dropped, and batch norm takes its running means")


# --- question 2: regularise ------------------------------------------------------------------------------------------


def small_network():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        network[2].weight.copy_(torch.tensor([[-1.0, 0.25]]))
        network[0].bias.fill_(100.0)
    return network


def test_question2_l1_penalty_of_weights_only():
    found = regularizers.l1_penalty(small_network())
    close(found, 7.75, "|1| + |-2| + |3| + |0.5| + |-1| + |0.25|; biases and norms are not penalised")
    assert found.requires_grad, "the penalty is differentiated: keep it a tensor"


def test_question2_l2_penalty_of_weights_only():
    found = regularizers.l2_penalty(small_network())
    close(found, 15.3125, "1 + 4 + 9 + 0.25 + 1 + 0.0625: the squares, not the norm; no biases, no norms")
    assert found.requires_grad, "the penalty is differentiated: keep it a tensor"


def test_question2_objective_adds_the_penalties(monkeypatch):
    network, images, labels = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.rand(5, 3, 4), torch.arange(5) % 4
    cost = F.cross_entropy(network(images), labels)
    monkeypatch.setattr(train, "l1_penalty", lambda _: torch.tensor(10.0))
    monkeypatch.setattr(train, "l2_penalty", lambda _: torch.tensor(1000.0))
    found = train.objective(network, images, labels, Config(l1=0.1, l2=0.01))
    close(found, cost + 0.1 * 10 + 0.01 * 1000, "cross-entropy + l1 * l1_penalty + l2 * l2_penalty")


def test_question2_laplace_scale():
    close(regularizers.laplace_scale(1e-5, 3000), 1 / 0.03, "b of l1 = 1 / (N b), for l1 = 1e-5 and N = 3000")
    assert regularizers.laplace_scale(0.0, 3000) == math.inf, "no penalty is a flat prior: b is infinite"


def test_question2_gaussian_deviation():
    close(regularizers.gaussian_deviation(1e-4, 3000), 1 / 0.6**0.5, "sigma of l2 = 1 / (2 N sigma**2), for 1e-4, 3000")
    assert regularizers.gaussian_deviation(0.0, 3000) == math.inf, "no penalty is a flat prior: sigma is infinite"


def test_question2_dropout_forward():
    layer, x = model.Dropout(0.2), torch.ones(100_000, requires_grad=True)
    dropped = layer(x)
    share = (dropped == 0).double().mean().item()
    assert abs(share - 0.2) < 0.01, f"p is the probability that an activation is dropped: 0.2 of them, not {share:.3f}"
    mean = dropped.mean().item()
    assert abs(mean - 1) < 0.01, f"what is kept is divided by 1 - p, so that the mean stays 1; found {mean:.3f}"
    assert not torch.equal(layer(x), dropped), "each pass draws a mask of its own"
    assert torch.equal(layer.eval()(x), x), "in evaluation nothing is dropped, and nothing scaled"


# --- question 3: augment ---------------------------------------------------------------------------------------------


def test_question3_gaussian_noise():
    images = torch.zeros(50, 20, 20)
    noisy = augment.gaussian_noise(images, 0.3, torch.Generator().manual_seed(1))
    assert not images.any(), "the images that were given stay as they are: return a new tensor"
    mean, deviation = noisy.mean().item(), noisy.std().item()
    found = f"mean 0 and deviation 0.3; found {mean:.3f} and {deviation:.3f}"
    assert abs(mean) < 0.01 and abs(deviation - 0.3) < 0.01, found
    assert not torch.equal(noisy[0], noisy[1]), "every image gets noise of its own"
    again = augment.gaussian_noise(images, 0.3, torch.Generator().manual_seed(1))
    assert torch.equal(noisy, again), "draw from the generator that is given: same seed, same noise"


def test_question3_inverse_matrices():
    angle, factor, slope = torch.tensor([0.0, 0.5, -0.3]), torch.tensor([2.0, 1.0, 0.8]), torch.tensor([0.0, 0.0, 0.4])
    found = augment.inverse_matrices(angle, factor, slope)
    assert found.shape == (3, 2, 2), f"one matrix an image: (3, 2, 2), not {tuple(found.shape)}"
    close(found[0], [[0.5, 0.0], [0.0, 0.5]], "without rotation and shear: the identity, divided by the factor")
    rotation = [torch.tensor([[math.cos(x), -math.sin(x)], [math.sin(x), math.cos(x)]]) for x in (0.5, -0.3)]
    close(found[1], rotation[0].T, "a rotation alone: the inverse of [[cos, -sin], [sin, cos]]")
    whole = 0.8 * rotation[1] @ torch.tensor([[1.0, -0.4], [0.0, 1.0]])
    close(found[2] @ whole, torch.eye(2), "the inverse times A of the docstring is the identity")


# --- question 4: Lightning -------------------------------------------------------------------------------------------


def test_question4_litmlp_training_step_returns_the_objective(monkeypatch):
    from train_lightning import LitMLP  # takes seconds

    called = []
    monkeypatch.setattr(train, "objective", lambda *arguments: called.append(arguments) or torch.tensor(2.5))
    lit, images, labels = SimpleNamespace(model=object(), config=Config()), torch.rand(5, 3, 4), torch.arange(5)
    found = LitMLP.training_step(lit, (images, labels), 0)
    expected = (lit.model, images, labels, lit.config)
    assert [tuple(map(id, one)) for one in called] == [tuple(map(id, expected))], (
        "call train.objective once, with the model, the images and the labels of the batch, and the config"
    )
    assert found is not None and found == 2.5, "return the objective: Lightning differentiates what comes back"


def test_question4_litmlp_configure_optimizers_steps_after_each_update():
    from train_lightning import LitMLP

    config, batches = Config(schedule="one-cycle", epochs=3), [None, None]
    trainer = SimpleNamespace(datamodule=SimpleNamespace(batches=batches))
    found = LitMLP.configure_optimizers(SimpleNamespace(model=nn.Linear(3, 2), config=config, trainer=trainer))
    assert set(found) == {"optimizer", "lr_scheduler"}, "a dictionary of optimizer and lr_scheduler"
    assert isinstance(found["optimizer"], torch.optim.AdamW), "the optimiser is that of train.build_optimizer"
    schedule = found["lr_scheduler"]
    assert schedule.get("interval") == "step", 'the learning rate changes after each update: "interval": "step"'
    steps = schedule["scheduler"].total_steps
    assert steps == 6, f"3 epochs of 2 batches are 6 updates; the schedule was made for {steps}"


# --- question 5: search ----------------------------------------------------------------------------------------------


def test_question5_suggest_asks_for_what_is_searched_only():
    from optuna.trial import FixedTrial

    from search import suggest

    answers = {"lr": 0.01, "norm": "batch", "use_l2": True, "l2": 1e-3, "use_dropout": False}
    trial = FixedTrial(answers)
    found = suggest(trial, Config(epochs=7), ["lr", "norm", "l2", "dropout"])
    assert found == Config(epochs=7, lr=0.01, norm="batch", l2=1e-3), f"what is not searched stays as it is; {found}"
    assert "dropout" not in trial.distributions, "a strength is asked for only where its regularisation is used"
    assert trial.distributions["lr"].log and trial.distributions["l2"].log, "ask for rates and penalties on a log scale"
