"""Equations 1 and 2 in float64, written here from the paper alone, and embeddings to try losses on."""

import torch

EPS = 1e-5
LAMBDA = 5e-3


def reference(z_a, z_b, lambda_=LAMBDA, eps=EPS):
    """Equations 1 and 2 in float64: C, (loss, invariance, redundancy), gradients of the loss."""
    views = [z.detach().double().requires_grad_() for z in (z_a, z_b)]
    a, b = ((z - z.mean(0)) / torch.sqrt(z.var(0, unbiased=False) + eps) for z in views)
    c = a.T @ b / len(a)
    invariance = ((1 - torch.diagonal(c)) ** 2).sum()
    redundancy = (c[~torch.eye(len(c), dtype=torch.bool)] ** 2).sum()
    loss = invariance + lambda_ * redundancy
    return c.detach(), (loss, invariance, redundancy), torch.autograd.grad(loss, views)


# (N, D): both forms of the loss, matrices of several blocks and of one.
SHAPES = [(6, 3), (16, 300), (140, 600), (300, 64)]


def correlated(n, d):
    """Few factors behind all dimensions: C has large elements off its diagonal."""
    factors, mixing = torch.randn(n, 4), torch.randn(4, d)
    return [factors @ mixing + 0.3 * torch.randn(n, d) for _ in range(2)]


def nearly_collapsed(n, d):
    """One point, and a deviation that float32 resolves to four digits."""
    point = 3 * torch.randn(d)
    return [point + 1e-4 * torch.randn(n, d) for _ in range(2)]


def nearly_identical(n, d):
    z = torch.randn(n, d)
    return [z, z + 1e-4 * torch.randn(n, d)]


def far_from_the_origin(n, d):
    return [z + 1000 for z in correlated(n, d)]


def one_row_in_eight_apart(n, d):
    """Whichever few rows a first guess of the mean is taken from, it may be far off."""
    views = [z + 1000 for z in correlated(n, d)]
    for z in views:
        z[::8] += 30
    return views


REGIMES = (
    correlated,
    nearly_collapsed,
    nearly_identical,
    far_from_the_origin,
    one_row_in_eight_apart,
)
