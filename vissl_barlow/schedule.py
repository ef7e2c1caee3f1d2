"""The learning rate's shape (section 2.2): linear warm-up from zero, then a cosine.

A function of progress alone, so that resuming needs no state and every process agrees.
"""

from fvcore.common.param_scheduler import CosineParamScheduler, LinearParamScheduler


def warmup_cosine(progress: float, *, warmup: float, end_factor: float) -> float:
    """What the peak learning rate is multiplied by after a fraction `progress` of all steps.

    Rises linearly from 0 to 1 while `progress < warmup`, then falls along a half cosine to
    `end_factor` at `progress` 1. The paper: `warmup=10 / 1000` (10 of 1000 epochs),
    `end_factor=1e-3`.

    Args:
        progress: steps taken over steps in all, in [0, 1].
        warmup: fraction of the training that is warm-up, in [0, 1); 0 starts at the peak.
        end_factor: final over peak learning rate, in [0, 1].

    Raises:
        ValueError: an argument is outside its range.
    """
    if not 0 <= warmup < 1:
        raise ValueError(
            f"warmup={warmup} must be in [0, 1): warm-up may not be longer than training, "
            "shorten it or train longer"
        )
    if not 0 <= end_factor <= 1:
        raise ValueError(f"end_factor={end_factor} must be in [0, 1]: it is a fraction of the peak")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress={progress} must be in [0, 1]: steps taken over steps in all")

    # Not fvcore's CompositeParamScheduler: it ends the warm-up 1e-6 of the training early, which is
    # several steps of a long run.
    if progress < warmup:
        return LinearParamScheduler(0.0, 1.0)(progress / warmup)
    return CosineParamScheduler(1.0, end_factor)((progress - warmup) / (1 - warmup))
