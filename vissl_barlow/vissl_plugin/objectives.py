"""`barlow_objective`: the objectives of `vissl_barlow.loss` as one VISSL loss."""

import inspect
from collections.abc import Callable

import torch
from classy_vision.losses import ClassyLoss, register_loss

from vissl_barlow.loss import OBJECTIVES, LossTerms

# Keys of a loss's section that are not the objective's: VISSL's own, and those validate.py reads.
_OTHER_KEYS = ("name", "objective", "embedding_dim")


class TermsLoss(ClassyLoss):
    """A VISSL loss from a function of the model's outputs that returns `LossTerms`.

    Config: the function's keyword arguments, by name, and `embedding_dim`, which is checked against the
    projector before training starts (validate.py).
    """

    def __init__(self, compute: Callable[..., LossTerms], config: dict) -> None:
        super().__init__()
        parameters = inspect.signature(compute).parameters.values()
        known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"group"}
        self.options = {key: config[key] for key in config if key not in _OTHER_KEYS}
        unknown = sorted(set(self.options) - known)
        if unknown:
            raise ValueError(
                f"{compute.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        self.compute = compute
        # Outputs this loss can be tried on before training starts.
        positional = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        rows = self.options.get("sub_batch_size") or 8
        self.example = [torch.eye(rows, 2).roll(i, 0) for i in range(len(positional))]
        # Detached terms of the newest batch, on the device: whoever logs them chooses when to wait.
        self.terms: LossTerms | None = None

    def forward(self, outputs: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """`outputs`: the model's (N, D) rows of this process; `target` is not used."""
        terms = self.compute(*outputs, **self.options)
        self.terms = LossTerms(*(term.detach() for term in terms))
        return terms.loss

    def extra_repr(self) -> str:
        return ", ".join([self.compute.__name__, *(f"{k}={v}" for k, v in self.options.items())])


@register_loss("barlow_objective")
class BarlowObjective(TermsLoss):
    """Config (`config.LOSS.barlow_objective`): `objective`, a name in `OBJECTIVES`, and its keys."""

    @classmethod
    def from_config(cls, config: dict) -> "BarlowObjective":
        name = config.get("objective")
        if name not in OBJECTIVES:
            raise ValueError(f"objective={name} must be one of {', '.join(OBJECTIVES)}")
        return cls(OBJECTIVES[name], config)
