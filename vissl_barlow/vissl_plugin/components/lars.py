"""`barlow_lars`: LARS with its own learning rate for biases and batch normalisation."""

from classy_vision.optim import ClassyOptimizer, register_optimizer

from vissl_barlow.lars import LARS


@register_optimizer("barlow_lars")
class BarlowLARS(ClassyOptimizer):
    """Config (`config.OPTIMIZER`): `momentum`, `weight_decay`, `trust_coefficient`, `bias_lr_scale`.

    The schedule sets one learning rate, the weights'; biases and batch normalisation parameters get
    it times `bias_lr_scale`. VISSL's loggers, which want a single rate, keep working.
    """

    def __init__(self, **options) -> None:
        super().__init__()
        self._options = options

    @classmethod
    def from_config(cls, config: dict) -> "BarlowLARS":
        return cls(
            momentum=config.get("momentum", 0.9),
            weight_decay=config.get("weight_decay", 0.0),
            trust_coefficient=config.get("trust_coefficient", 1e-3),
            bias_lr_scale=config.get("bias_lr_scale", 1.0),
        )

    def prepare(self, param_groups) -> None:
        # Every group carries the schedule's rate already; LARS wants a default all the same.
        self.optimizer = LARS(param_groups, lr=0.0, **self._options)
