"""`barlow_warmup_cosine`: linear warm-up from 0, then cosine, updated every step."""

from classy_vision.optim.param_scheduler import (
    ClassyParamScheduler,
    UpdateInterval,
    register_param_scheduler,
)

from vissl_barlow.schedule import warmup_cosine


@register_param_scheduler("barlow_warmup_cosine")
class BarlowWarmupCosine(ClassyParamScheduler):
    """Config: `start_value` (the peak), `end_value`, `warmup_epochs`.

    The first two carry VISSL's names because VISSL's automatic scaling by the batch size rewrites
    them in every scheduler whose name contains "cosine"; it leaves the warm-up alone.
    """

    keys = frozenset({"start_value", "end_value", "warmup_epochs"})

    def __init__(self, peak: float, end: float, warmup: float) -> None:
        super().__init__(update_interval=UpdateInterval.STEP)
        self.peak, self.end_factor, self.warmup = peak, end / peak, warmup

    @classmethod
    def from_config(cls, config: dict) -> "BarlowWarmupCosine":
        # classy-vision adds num_epochs to every scheduler's config.
        warmup = config["warmup_epochs"] / config["num_epochs"]
        return cls(config["start_value"], config["end_value"], warmup)

    def __call__(self, where: float) -> float:
        return self.peak * warmup_cosine(where, warmup=self.warmup, end_factor=self.end_factor)
