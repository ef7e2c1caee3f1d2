"""`barlow_lars`: LARS with its own learning rate for biases and batch normalisation."""

from classy_vision.optim import ClassyOptimizer, register_optimizer

from vissl_barlow.lars import LARS
from vissl_barlow.vissl_plugin.settings import keyword_defaults


@register_optimizer("barlow_lars")
class BarlowLARS(ClassyOptimizer):
    """Config (`config.OPTIMIZER`): the keyword-only arguments of `vissl_barlow.lars.LARS`, by name.

    The schedule sets one learning rate, the weights'; biases and batch normalisation parameters get
    it times `bias_lr_scale`. VISSL's loggers, which want a single rate, keep working.
    """

    keys = frozenset(keyword_defaults(LARS))

    def __init__(self, **options) -> None:
        super().__init__()
        self._options = options

    @classmethod
    def from_config(cls, config: dict) -> "BarlowLARS":
        return cls(**{key: config[key] for key in cls.keys if key in config})

    def prepare(self, param_groups) -> None:
        # Every group carries the schedule's rate already; LARS wants a default all the same.
        self.optimizer = LARS(param_groups, lr=0.0, **self._options)
