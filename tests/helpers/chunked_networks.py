"""A small network with every kind of layer a step in pieces must mind, and one pass to compare with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

D = 6


class Terms(NamedTuple):
    loss: Tensor
    invariance: Tensor


def plain_loss(z_a: Tensor, z_b: Tensor) -> Terms:
    """Equations 1 and 2, written once more."""
    n = z_a.shape[0]
    a, b = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z_a, z_b))
    c = a.T @ b / n
    invariance = (1 - c.diagonal()).square().sum()
    redundancy = (c - torch.diag(c.diagonal())).square().sum()
    return Terms(invariance + 0.5 * redundancy, invariance)


class Residual(nn.Module):
    """Batch norm behind an in-place ReLU, an in-place sum and on a shortcut, as in ResNets."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width, momentum=None)
        self.shortcut = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv(self.relu(self.bn1(self.conv(x)))))
        y += self.shortcut(x)
        return self.relu(y)


def build_stages(*, dropout: float = 0.0, seed: int = 1) -> nn.Sequential:
    """Images (n, 3, 5, 4) to (n, D) in three stages, the last a projector; float64."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        Residual(4),
        nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(4, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, D),
        ),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return net.double()


def images(n: int) -> tuple[Tensor, Tensor]:
    """Two views of n images whose mean and scale drift from row to row: no piece is like another."""
    generator = torch.Generator().manual_seed(0)
    x, noise_a, noise_b = torch.randn(3, n, 3, 5, 4, generator=generator, dtype=torch.float64)
    drift = torch.linspace(0.5, 3, n, dtype=torch.float64).view(-1, 1, 1, 1)
    view_a, view_b = (drift * (1 + x + 0.3 * noise) for noise in (noise_a, noise_b))
    return view_a, view_b


def one_pass(embed, view_a: Tensor, view_b: Tensor, loss, chunk_size: int):
    """One pass over the pieces of both views with all graphs in memory; `.grad` as it leaves it."""
    z_a, z_b = (torch.cat([embed(x) for x in v.split(chunk_size)]) for v in (view_a, view_b))
    output = loss(z_a, z_b)
    (output[0] if isinstance(output, tuple) else output).backward()
    return output


def gradients(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def assert_same_buffers(net: nn.Module, expected: nn.Module, tolerance: float = 0.0) -> None:
    buffers = dict(net.named_buffers())
    assert buffers.keys() == dict(expected.named_buffers()).keys()
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=tolerance, atol=tolerance, msg=name)
