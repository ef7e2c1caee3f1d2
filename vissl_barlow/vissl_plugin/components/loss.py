"""`barlow_loss`: equation 1 of the paper as a VISSL loss."""

from typing import Any

import torch
from classy_vision.losses import ClassyLoss, register_loss

from vissl_barlow.loss import LossTerms, barlow_twins_loss


@register_loss("barlow_loss")
class BarlowLoss(ClassyLoss):
    """Config (`config.LOSS.barlow_loss`): `lambda_`, `eps`, `form`, `reference_world_size`.

    `embedding_dim` is checked against the projector before training starts (validate.py).
    """

    def __init__(self, *, lambda_: float, eps: float, form: str, reference_world_size: int) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "lambda_": lambda_,
            "eps": eps,
            "form": form,
            "reference_world_size": reference_world_size,
        }
        # Detached terms of the newest batch, on the device: whoever logs them chooses when to wait.
        self.terms: LossTerms | None = None

    @classmethod
    def from_config(cls, config: dict) -> "BarlowLoss":
        return cls(
            lambda_=config.get("lambda_", 5e-3),
            eps=config.get("eps", 1e-5),
            form=config.get("form", "auto"),
            reference_world_size=config.get("reference_world_size", 1),
        )

    @property
    def correlation_eps(self) -> float:
        """What equation 2's variances are increased by, for whoever computes this loss's C."""
        return self.options["eps"]

    def forward(self, embeddings: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """`embeddings`: the two views' (N, D) rows of this process; `target` is not used."""
        z_a, z_b = embeddings
        terms = barlow_twins_loss(z_a, z_b, **self.options)
        self.terms = LossTerms(*(term.detach() for term in terms))
        return terms.loss

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())
