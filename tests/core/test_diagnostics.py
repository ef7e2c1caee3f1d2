import math

import numpy as np
import pytest
import torch

from vissl_barlow.diagnostics import cross_correlation_summary, effective_rank, embedding_std

# float32 sums of a few thousand numbers against float64.
RTOL = 1e-5


def test_embedding_std_finds_the_dead_dimension():
    z = torch.tensor([[1.0, 5.0, -2.0], [3.0, 5.0, 2.0]])
    assert embedding_std(z) == (0.0, 1.0)  # deviations 1, 0, 2
    assert embedding_std(z.bfloat16()).mean.dtype == torch.float32


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_effective_rank_is_the_exponential_entropy_of_the_singular_values(shape):
    z = np.random.default_rng(0).normal(2, 1, shape)
    s = np.linalg.svd(z, compute_uv=False)
    p = s / s.sum()
    assert effective_rank(torch.from_numpy(z)).item() == pytest.approx(
        np.exp(-(p * np.log(p)).sum())
    )


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
@pytest.mark.parametrize("rank", [1, 4])
def test_effective_rank_counts_equal_directions(shape, rank):
    z = torch.zeros(shape)
    z[range(rank), range(rank)] = 7.0
    assert effective_rank(z).item() == pytest.approx(rank)


def test_effective_rank_of_constant_embeddings_is_that_of_a_collapse():
    z = torch.full((4, 3), 0.1)
    assert effective_rank(z - z.mean(0)).item() == pytest.approx(1)
    assert effective_rank(torch.zeros(4, 3)).item() == 1


@pytest.mark.parametrize("n, d", [(30, 80), (80, 30)])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_cross_correlation_summary_equals_the_matrix(n, d, eps):
    rng = np.random.default_rng(0)
    shared = rng.normal(3, 1, (n, d))
    z_a, z_b = shared + rng.normal(0, 0.5, (n, d)), shared + rng.normal(0, 0.5, (n, d))
    a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + eps) for z in (z_a, z_b))
    c = a.T @ b / n
    off_diagonal = c[~np.eye(d, dtype=bool)]
    got = cross_correlation_summary(*(torch.tensor(z).float() for z in (z_a, z_b)), eps=eps)
    assert got.mean_diagonal.item() == pytest.approx(np.diag(c).mean(), rel=RTOL)
    assert got.off_diagonal_rms.item() == pytest.approx(
        math.sqrt((off_diagonal**2).mean()), rel=RTOL
    )


def test_diagnostics_leave_autograd_alone():
    z = torch.randn(4, 3, requires_grad=True)
    for value in (*embedding_std(z), effective_rank(z), *cross_correlation_summary(z, z)):
        assert not value.requires_grad
