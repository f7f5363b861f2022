"""L1 and L2 penalties, and the priors that they are.

With a prior p(w) on the weights, the maximum a posteriori (MAP) estimate minimises -log p(labels | w) - log p(w).
Divided by the N training images, the first term is the mean cross-entropy and the second a penalty, up to a constant:

    Laplace   p(w) = exp(-|w| / b) / (2 b)             ->  sum |w| / (N b),             so l1 = 1 / (N b)
    Gaussian  p(w) = exp(-w**2 / (2 sigma**2)) / Z     ->  sum w**2 / (2 N sigma**2),   so l2 = 1 / (2 N sigma**2)

Both exponents are negative: a likely weight is a small one.
"""

import math

import torch
from torch import nn


def penalized_weights(model: nn.Module) -> list[torch.Tensor]:
    """The weight matrices and kernels of `model`; biases and the affine parameters of norms are left alone."""
    return [parameter for parameter in model.parameters() if parameter.dim() > 1]


def l1_penalty(model: nn.Module) -> torch.Tensor:
    """sum |w|, a scalar."""
    return sum(weight.abs().sum() for weight in penalized_weights(model))


def l2_penalty(model: nn.Module) -> torch.Tensor:
    """sum w**2, a scalar; its gradient is 2 w, so SGD with `l2` is SGD with `weight_decay = 2 * l2`."""
    return sum(weight.square().sum() for weight in penalized_weights(model))


def laplace_scale(l1: float, images: int) -> float:
    """Scale b of the Laplace prior that a penalty `l1` is, with `images` training images; infinite (flat) for 0."""
    return 1 / (images * l1) if l1 else math.inf


def gaussian_deviation(l2: float, images: int) -> float:
    """Standard deviation sigma of the Gaussian prior that a penalty `l2` is, with `images` training images."""
    return 1 / math.sqrt(2 * images * l2) if l2 else math.inf
