"""Every objective against a float64 reference written here from its paper's formula."""

import math

import pytest
import torch
from gloo import run_gloo
from torch.nn import functional as F

from vissl_barlow.loss import OBJECTIVES

# Float64 against float64: what is left is the order of the sums.
EXACT = 1e-9
# Float32 against float64, on statistics of 24 rows.
SINGLE = 2e-4
N, D = 24, 7


def _views(dtype=torch.float64):
    """Correlated views whose dimensions differ in mean and scale, so that no statistic is idle."""
    g = torch.Generator().manual_seed(0)
    shared, a, b = (torch.randn(N, D, generator=g, dtype=torch.float64) for _ in range(3))
    scale = torch.linspace(0.5, 2.0, D, dtype=torch.float64)
    mix = torch.randn(D, D, generator=g, dtype=torch.float64) / 3 + torch.eye(D)
    return [((shared + 0.5 * x) @ mix * scale + 0.3).to(dtype) for x in (a, b)]


def _covariance(a, b, divisor):
    return sum(torch.outer(x, y) for x, y in zip(a - a.mean(0), b - b.mean(0))) / divisor


def _normalized(z, eps=1e-5):
    return (z - z.mean(0)) / (z.var(0, unbiased=False) + eps).sqrt()


def _split(c):
    """The diagonal of c and everything else."""
    return c.diagonal(), c[~torch.eye(len(c), dtype=torch.bool)]


def _equation_1(c, lambda_):
    on, off = _split(c)
    return ((1 - on) ** 2).sum() + lambda_ * (off**2).sum()


def _correlation(a, b, eps=1e-5):
    return _covariance(_normalized(a, eps), _normalized(b, eps), len(a))


def _weighted(a, b, invariance_weight, lambda_, eps=1e-5):
    on, off = _split(_correlation(a, b, eps))
    return invariance_weight * ((1 - on) ** 2).sum() + lambda_ * (off**2).sum()


def _feature_normalised(a, b, radius, eps=1e-5):
    rows = [_normalized(z, eps) for z in (a, b)]
    on_sphere = [radius * z / z.norm(dim=1, keepdim=True) for z in rows]
    return _equation_1(_covariance(*on_sphere, len(a)), 0.02)


def _auto_correlation(a, b, eps=1e-5):
    on, _ = _split(_correlation(a, b, eps))
    redundancy = [(_split(_correlation(z, z, eps))[1] ** 2).sum() for z in (a, b)]
    return ((1 - on) ** 2).sum() + 0.02 * sum(redundancy) / 2


def _hsic(a, b, eps=1e-5):
    on, off = _split(_correlation(a, b, eps))
    return ((1 - on) ** 2).sum() + ((1 + off) ** 2).sum() / D


def _cross_entropy(a, b, eps=1e-5):
    on, off = _split(_correlation(a, b, eps))
    return -(on / 0.2).exp().sum().log() + 0.7 * (off.relu() / 0.2).exp().sum().log()


def _cosines(a, b):
    return [[x @ y / (x.norm() * y.norm()) for y in b] for x in a]


def _info_nce(a, b):
    s = _cosines(a, b)
    contrast = [sum((s[i][j] / 0.3).exp() for j in range(N) if j != i).log() for i in range(N)]
    return sum(contrast) - sum(s[i][i] / 0.3 for i in range(N))


def _cosine(a, b):
    return -sum(row[i] for i, row in enumerate(_cosines(a, b)))


def _w_mse(a, b, size, eps=0.0):
    total = 0
    for x, y in zip(a.split(size), b.split(size)):
        white = []
        for z in (x, y):
            blended = (1 - eps) * _covariance(z, z, size - 1) + eps * torch.eye(D, dtype=z.dtype)
            inverse = torch.linalg.inv(torch.linalg.cholesky(blended))
            white.append((z - z.mean(0)) @ inverse.T)
        total += sum(2 - 2 * F.cosine_similarity(p, q, dim=0) for p, q in zip(*white))
    return total / len(a)


def _imax(a, b):
    def logdet(x):
        return torch.logdet(_covariance(x, x, len(x)) + 0.01 * torch.eye(D, dtype=x.dtype))

    return logdet(a - b) - logdet(a + b)


def _vicreg(a, b, variance_weight=25, covariance_weight=1, gamma=1, eps=1e-4):
    loss = 25 * ((a - b) ** 2).mean()
    for z in (a, b):
        hinge = (gamma - (z.var(0) + eps).sqrt()).clamp(min=0)
        covariances = _split(_covariance(z, z, len(z) - 1))[1]
        loss = loss + variance_weight * hinge.mean()
        loss = loss + covariance_weight * (covariances**2).sum() / D
    return loss


def _vicreg_released(a, b):
    """As VICReg's released code has it, its coefficients 25, 25 and 1."""
    repr_loss = F.mse_loss(a, b)
    a, b = a - a.mean(0), b - b.mean(0)
    std_a, std_b = (torch.sqrt(z.var(dim=0) + 0.0001) for z in (a, b))
    std_loss = torch.mean(F.relu(1 - std_a)) / 2 + torch.mean(F.relu(1 - std_b)) / 2
    covariances = [(z.T @ z) / (N - 1) for z in (a, b)]
    cov_loss = sum((_split(c)[1] ** 2).sum() / D for c in covariances)
    return 25 * repr_loss + 25 * std_loss + cov_loss


EPS = 0.3
VICREG = {"variance_weight": 3, "covariance_weight": 5, "gamma": 2, "eps": EPS}
BOTH_FORMS = ("correlation", "gram")
CASES = {
    "only invariance": (
        "weighted_terms",
        {"invariance_weight": 1.0, "lambda_": 0.0},
        lambda a, b: _weighted(a, b, 1, 0),
        BOTH_FORMS,
    ),
    "only redundancy": (
        "weighted_terms",
        {"invariance_weight": 0.0, "lambda_": 0.02},
        lambda a, b: _weighted(a, b, 0, 0.02),
        BOTH_FORMS,
    ),
    "feature normalisation, unit sphere": (
        "feature_normalised",
        {"lambda_": 0.02},
        lambda a, b: _feature_normalised(a, b, 1.0),
        BOTH_FORMS,
    ),
    "feature normalisation, longer rows": (
        "feature_normalised",
        {"lambda_": 0.02, "radius": math.sqrt(D)},
        lambda a, b: _feature_normalised(a, b, math.sqrt(D)),
        BOTH_FORMS,
    ),
    "cross-covariance": (
        "cross_covariance",
        {"lambda_": 0.02},
        lambda a, b: _equation_1(_covariance(a, b, N), 0.02),
        BOTH_FORMS,
    ),
    "auto-correlation": ("auto_correlation", {"lambda_": 0.02}, _auto_correlation, BOTH_FORMS),
    "HSIC": ("hsic", {"lambda_": 1 / D}, _hsic, BOTH_FORMS),
    "cross-entropy": ("cross_entropy", {"temperature": 0.2, "lambda_": 0.7}, _cross_entropy, ()),
    "InfoNCE": ("info_nce", {"temperature": 0.3}, _info_nce, ()),
    "cosine": ("cosine", {}, _cosine, ()),
    "W-MSE": ("w_mse", {}, lambda a, b: _w_mse(a, b, N), ()),
    "W-MSE, sub-batches": ("w_mse", {"sub_batch_size": 12}, lambda a, b: _w_mse(a, b, 12), ()),
    "IMAX": ("imax", {"eps": 0.01}, _imax, BOTH_FORMS),
    "VICReg": ("vicreg", {}, _vicreg, BOTH_FORMS),
    "VICReg, other weights": ("vicreg", VICREG, lambda a, b: _vicreg(a, b, **VICREG), BOTH_FORMS),
    "VICReg, as its released code weighs it": (
        "vicreg",
        {"variance_weight": 12.5},
        _vicreg_released,
        BOTH_FORMS,
    ),
    # An eps that is no rounding: the default's would hide that it is not used.
    "only redundancy, eps": (
        "weighted_terms",
        {"invariance_weight": 0.0, "lambda_": 0.02, "eps": EPS},
        lambda a, b: _weighted(a, b, 0, 0.02, EPS),
        BOTH_FORMS,
    ),
    "feature normalisation, eps": (
        "feature_normalised",
        {"lambda_": 0.02, "eps": EPS},
        lambda a, b: _feature_normalised(a, b, 1.0, EPS),
        BOTH_FORMS,
    ),
    "auto-correlation, eps": (
        "auto_correlation",
        {"lambda_": 0.02, "eps": EPS},
        lambda a, b: _auto_correlation(a, b, EPS),
        BOTH_FORMS,
    ),
    "HSIC, eps": (
        "hsic",
        {"lambda_": 1 / D, "eps": EPS},
        lambda a, b: _hsic(a, b, EPS),
        BOTH_FORMS,
    ),
    "cross-entropy, eps": (
        "cross_entropy",
        {"temperature": 0.2, "lambda_": 0.7, "eps": EPS},
        lambda a, b: _cross_entropy(a, b, EPS),
        (),
    ),
    "W-MSE, fewer rows than dimensions": (
        "w_mse",
        {"sub_batch_size": 6, "eps": EPS},
        lambda a, b: _w_mse(a, b, 6, EPS),
        (),
    ),
}
EACH_FORM = [
    pytest.param(case, {"form": form} if form else {}, id=f"{case}{form and ', ' + form}")
    for case, (*_, forms) in CASES.items()
    for form in forms or ("",)
]


def _value_and_gradients(compute, views):
    views = [z.clone().requires_grad_() for z in views]
    value = compute(*views)
    return value.detach(), *torch.autograd.grad(value, views)


def _reference(case):
    return _value_and_gradients(CASES[case][2], _views())


@pytest.mark.parametrize(("case", "form"), EACH_FORM)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, SINGLE)])
def test_value_and_gradients_are_the_reference(case, form, dtype, tolerance):
    name, options, *_ = CASES[case]

    def loss(a, b):
        return OBJECTIVES[name](a, b, **options, **form).loss

    for ours, reference in zip(_value_and_gradients(loss, _views(dtype)), _reference(case)):
        assert ours.dtype == dtype
        scale = reference.abs().max()
        torch.testing.assert_close(ours.double(), reference, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(("case", "form"), EACH_FORM)
def test_what_float32_does_not_hold_is_right_or_not_finite(case, form):
    name, options, reference, _ = CASES[case]
    for factor in (1e15, 1e17, 1e18, 1.7e18, 1e19, 1e20, 1e30, 1e37):
        views = [z * factor for z in _views(torch.float32)]
        try:
            value, *gradients = _value_and_gradients(
                lambda a, b: OBJECTIVES[name](a, b, **options, **form).loss, views
            )
        except torch.linalg.LinAlgError:
            continue  # a matrix beyond float64, which is a stop
        if not value.isfinite():
            continue
        expected, *right = _value_and_gradients(reference, [z.double() for z in views])
        torch.testing.assert_close(value.double(), expected, rtol=SINGLE, atol=SINGLE)
        for ours, gradient in zip(gradients, right):
            scale = gradient.abs().max()
            torch.testing.assert_close(ours.double(), gradient, rtol=0, atol=0.01 * scale.item())


@pytest.mark.parametrize("case", CASES)
def test_loss_is_invariance_plus_weighted_redundancy(case):
    name, options, *_ = CASES[case]
    loss, invariance, redundancy = OBJECTIVES[name](*_views(), **options)
    weighted = options.get("lambda_", 1.0) * redundancy
    expected = options.get("invariance_weight", 1.0) * invariance + weighted
    torch.testing.assert_close(loss, expected)


def _on_own_rows(rank, shares, reference_world_size):
    """All cases' values and gradients on this process's rows, in both forms."""
    views = [z.split(shares)[rank] for z in _views()]
    results = {}
    for case, (name, options, _, forms) in CASES.items():
        for form in forms or (None,):
            chosen = {"form": form} if form else {}

            def loss(a, b, compute=OBJECTIVES[name], keys=options | chosen):
                return compute(a, b, **keys, reference_world_size=reference_world_size).loss

            results[case, form] = _value_and_gradients(loss, views)
    return results


def test_two_processes_of_unequal_shares_compute_the_loss_of_one():
    shares, reference_world_size = [15, 9], 4
    on_each = run_gloo(_on_own_rows, 2, shares, reference_world_size)
    for key in on_each[0]:
        value, *gradients = _reference(key[0])
        for process in on_each:
            torch.testing.assert_close(process[key][0], value, rtol=EXACT, atol=EXACT)
        for view, gradient in enumerate(gradients, start=1):
            # DistributedDataParallel averages over the two processes.
            ours = torch.cat([process[key][view] for process in on_each]) / 2
            wanted = gradient / reference_world_size
            torch.testing.assert_close(ours, wanted, rtol=EXACT, atol=EXACT * wanted.abs().max())


def test_a_positive_pair_is_no_negative_of_its_own():
    """Section 5.1 sums over b' != b: two rows have one negative each, whatever the positives."""
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    terms = OBJECTIVES["info_nce"](a, b, temperature=0.5)
    torch.testing.assert_close(terms.redundancy, torch.tensor((0.6 + 0.0) / 0.5))
    torch.testing.assert_close(terms.invariance, torch.tensor(-(1.0 + 0.8) / 0.5))


def test_statistics_stay_in_float32_under_autocast():
    views = [z * 1e3 for z in _views(torch.float32)]  # squares overflow in half precision
    with torch.autocast("cpu", dtype=torch.float16):
        for name, options, *_ in CASES.values():
            inside = OBJECTIVES[name](*views, **options).loss
            assert inside.dtype == torch.float32
            with torch.autocast("cpu", enabled=False):
                torch.testing.assert_close(inside, OBJECTIVES[name](*views, **options).loss)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cross_entropy", {"temperature": 0}, "temperature=0 must be above 0"),
        ("info_nce", {"temperature": -1}, "temperature=-1"),
        ("imax", {"eps": 0}, "eps=0 must be above 0"),
        ("imax", {"form": "svd"}, "form='svd' must be one of"),
        ("vicreg", {"form": "svd"}, "form='svd' must be one of"),
        ("w_mse", {"sub_batch_size": 7}, "sub_batch_size=7 must be a divisor of the global batch"),
        ("w_mse", {"sub_batch_size": 6}, "sub_batch_size=6 must be above the embedding's 7"),
        ("feature_normalised", {"radius": 0}, "radius=0 must be above 0"),
        ("weighted_terms", {"invariance_weight": -1}, "invariance_weight=-1"),
        ("vicreg", {"covariance_weight": math.inf}, "covariance_weight=inf"),
        ("hsic", {"lambda_": -1}, "lambda_=-1 must be finite"),
        ("cosine", {"reference_world_size": 0}, "reference_world_size=0"),
    ],
)
def test_refuses_options_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        OBJECTIVES[name](*_views(), **options)


def test_refuses_a_lone_dimension_where_there_is_no_off_diagonal():
    with pytest.raises(ValueError, match="2 or more"):
        OBJECTIVES["cross_entropy"](*(z[:, :1] for z in _views()))
