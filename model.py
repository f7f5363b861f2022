"""The network: three linear layers of 100 outputs and a linear classifier; store_grad and entropy, to look into it."""

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

NORMS = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
INITS = {  # of the weights, in place; biases stay PyTorch's
    "default": lambda weight: weight,  # PyTorch's: uniform in ±1 / sqrt(inputs)
    "glorot": nn.init.xavier_uniform_,  # ±sqrt(6 / (inputs + outputs)), Glorot and Bengio 2010
    "he": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),  # ±sqrt(6 / inputs), He et al. 2015
}


class MLP(nn.Module):
    """Hidden layers of Linear, norm, ReLU, dropout, then a linear classifier with raw logits.

    Args:
        in_features: pixels of an image.
        classes: outputs of the classifier.
        hidden: outputs of each hidden layer.
        norm: "none", "batch" or "layer", one module of its own in every hidden layer.
        dropout: probability that an activation is set to zero; in training the others are scaled by 1 / (1 - dropout),
            in evaluation the layer is the identity (Srivastava et al. 2014, in its "inverted" form).
        init: "default", "glorot" or "he", of the weights of every linear layer.
    """

    def __init__(
        self, in_features: int, classes: int, hidden=(100, 100, 100), norm="none", dropout=0.0, init="default"
    ):
        super().__init__()
        sizes = [in_features, *hidden, classes]
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.norms = nn.ModuleList(NORMS[norm](outputs) for outputs in hidden)
        self.dropout = Dropout(dropout) if dropout else nn.Identity()
        for linear in self.linears:
            INITS[init](linear.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, ...) to logits (N, classes)."""
        *hidden, classifier = self.linears
        x = images.flatten(1)
        for linear, norm in zip(hidden, self.norms, strict=True):
            x = self.dropout(F.relu(norm(linear(x))))
        return classifier(x)


class Dropout(nn.Module):
    """Zeroes an activation with probability `p` in training; the others are divided by 1 - p, which keeps the mean.

    The same as `nn.Dropout`, which draws its mask number by number on a CPU and takes twice as long.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.rand_like(x).ge_(self.p)  # 1 with probability 1 - p, else 0
        return x * keep.div_(1 - self.p)


def store_grad(x: torch.Tensor) -> torch.Tensor:
    """Makes the next backward pass leave the gradient of the loss with respect to `x` in `x.grad`; returns `x`.

    Autograd keeps the gradients of leaves (the weights) only. Images are leaves as well, but nobody differentiates with
    respect to them unless asked.
    """
    if x.requires_grad:
        x.retain_grad()
    else:
        x.requires_grad_()
    return x


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of the softmax of every row of `logits` (N, classes), in nats: 0 is certain, ln(classes) undecided."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)
