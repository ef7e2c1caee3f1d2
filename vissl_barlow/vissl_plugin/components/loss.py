"""`barlow_loss`: equation 1 of the paper as a VISSL loss; and what all losses here share."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from classy_vision.losses import ClassyLoss, register_loss

from vissl_barlow.loss import LossTerms, barlow_twins_loss
from vissl_barlow.vissl_plugin.errors import UnknownKey
from vissl_barlow.vissl_plugin.settings import keyword_defaults

# Keys of a loss's section that are not its function's: VISSL's, the choice among the objectives, and
# what the checks compare with the projector.
_OTHER_KEYS = ("name", "objective", "embedding_dim")


class TermsLoss(ClassyLoss):
    """A VISSL loss from a function of the model's outputs that returns `LossTerms`.

    Config: the keyword-only arguments of the function, by name, with the defaults of its signature; and
    `embedding_dim` (default null), which is compared with the projector before training starts. A
    subclass says which function (`function`) and which models' outputs it takes (`models`).

    Raises:
        UnknownKey: the function has no argument of a key's name.
    """

    models: ClassVar[tuple[str, ...]]

    def __init__(self, compute: Callable[..., LossTerms], config: dict) -> None:
        super().__init__()
        defaults = keyword_defaults(compute)
        del defaults["group"]
        given = {key: config[key] for key in config if key not in _OTHER_KEYS}
        for key in given:
            if key not in defaults:
                raise UnknownKey(compute.__name__, key, defaults)
        self.options: dict[str, Any] = defaults | given
        self.compute = compute
        # Outputs this loss can be tried on before training starts.
        parameters = inspect.signature(compute).parameters.values()
        outputs = sum(p.kind is not p.KEYWORD_ONLY for p in parameters)
        rows = self.options.get("sub_batch_size") or 8
        self.example = [torch.eye(rows, 2).roll(i, 0) for i in range(outputs)]
        # Detached terms of the newest batch, on the device: whoever logs them chooses when to wait.
        self.terms: LossTerms | None = None

    @classmethod
    def function(cls, config: dict) -> Callable[..., LossTerms]:
        """The function that computes the loss of a section's options."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict) -> "TermsLoss":
        return cls(cls.function(config), config)

    @property
    def correlation_eps(self) -> float | None:
        """What this loss adds to the variances of equation 2; None if it has no such number."""
        return None

    def forward(self, outputs: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """`outputs`: the model's (N, D) rows of this process; `target` is not used."""
        terms = self.compute(*outputs, **self.options)
        self.terms = LossTerms(*(term.detach() for term in terms))
        return terms.loss

    def extra_repr(self) -> str:
        return ", ".join([self.compute.__name__, *(f"{k}={v}" for k, v in self.options.items())])


class EmbeddingsLoss(TermsLoss):
    """A loss of the two views' embeddings."""

    models = ("barlow_twins_model", "barlow_asymmetric_twins_model")


@register_loss("barlow_loss")
class BarlowLoss(EmbeddingsLoss):
    """Config (`config.LOSS.barlow_loss`): the keys of `vissl_barlow.loss.barlow_twins_loss`."""

    @classmethod
    def function(cls, config: dict) -> Callable[..., LossTerms]:
        return barlow_twins_loss

    @property
    def correlation_eps(self) -> float | None:
        return self.options["eps"]
