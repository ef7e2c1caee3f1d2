"""The loss of Barlow Twins, its variants, and the objectives it is compared with.

`barlow_twins.py` states the paper's equations; open it first.
"""

from vissl_barlow.loss.asymmetric import byol_loss, simsiam_loss
from vissl_barlow.loss.barlow_twins import (
    barlow_twins_loss,
    cross_correlation,
    equation_1,
    equation_2,
)
from vissl_barlow.loss.form import choose_form, form_cost
from vissl_barlow.loss.global_batch import GlobalBatch, normalize
from vissl_barlow.loss.terms import OBJECTIVES, LossTerms, objective
from vissl_barlow.loss.variants import (
    auto_correlation_loss,
    cross_covariance_loss,
    cross_entropy_loss,
    feature_normalised_loss,
    weighted_terms_loss,
)

# isort: split
# After the variants: OBJECTIVES lists the paper's own first.
from vissl_barlow.loss.baselines import (
    cosine_loss,
    hsic_loss,
    imax_loss,
    info_nce_loss,
    vicreg_loss,
    w_mse_loss,
)

__all__ = [
    "OBJECTIVES",
    "GlobalBatch",
    "LossTerms",
    "auto_correlation_loss",
    "barlow_twins_loss",
    "byol_loss",
    "choose_form",
    "cosine_loss",
    "cross_correlation",
    "cross_covariance_loss",
    "cross_entropy_loss",
    "equation_1",
    "equation_2",
    "feature_normalised_loss",
    "form_cost",
    "hsic_loss",
    "imax_loss",
    "info_nce_loss",
    "normalize",
    "objective",
    "simsiam_loss",
    "vicreg_loss",
    "w_mse_loss",
    "weighted_terms_loss",
]
