"""The network: three linear layers of 100 outputs and a linear classifier; what is looked at in it."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

NORMS = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class MLP(nn.Module):
    """Hidden layers of Linear, norm, ReLU, dropout, then a linear classifier with raw logits.

    Args:
        in_features: pixels of an image.
        classes: outputs of the classifier.
        hidden: outputs of each hidden layer.
        norm: "none", "batch" or "layer", one module of its own in every hidden layer.
        dropout: probability that an activation is set to zero; in training the others are scaled by 1 / (1 - dropout),
            in evaluation the layer is the identity (Srivastava et al. 2014, in its "inverted" form).
    """

    def __init__(self, in_features: int, classes: int, hidden=(100, 100, 100), norm="none", dropout: float = 0.0):
        super().__init__()
        sizes = [in_features, *hidden, classes]
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.norms = nn.ModuleList(NORMS[norm](outputs) for outputs in hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: torch.Tensor, inputs: list[torch.Tensor] | None = None) -> torch.Tensor:
        """Images (N, ...) to logits (N, classes).

        Given a list `inputs`, appends to it the input of every linear layer, each with its gradient stored.
        """
        *hidden, classifier = self.linears
        x = images.flatten(1)
        for linear, norm in zip(hidden, self.norms, strict=True):
            x = self.dropout(F.relu(norm(linear(observed(x, inputs)))))
        return classifier(observed(x, inputs))


def observed(x: torch.Tensor, inputs: list[torch.Tensor] | None) -> torch.Tensor:
    """`x`, with its gradient stored and itself in `inputs` if anybody looks."""
    if inputs is not None:
        inputs.append(store_grad(x))
    return x


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
