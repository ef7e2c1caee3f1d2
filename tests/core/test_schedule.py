import math

import pytest

from vissl_barlow.schedule import warmup_cosine

# Rounding of a dozen float64 operations.
TOLERANCE = 1e-14


def released_multiplier(step: int, steps: int, warmup_steps: int, end: float) -> float:
    """The rule of section 2.2, in steps: rise from zero, then half a cosine down to `end`."""
    if step < warmup_steps:
        return step / warmup_steps
    fraction = (step - warmup_steps) / (steps - warmup_steps)
    q = (1 + math.cos(math.pi * fraction)) / 2
    return q + end * (1 - q)


@pytest.mark.parametrize(
    ("epochs", "loader", "warmup_epochs", "end"),
    [(1000, 7, 10, 1e-3), (300, 13, 10, 1e-3), (12, 5, 10, 0.0), (3, 11, 0, 0.5), (7, 3, 3, 1.0)],
)
def test_equals_the_authors_rule_at_every_step(epochs, loader, warmup_epochs, end):
    steps, warmup_steps = epochs * loader, warmup_epochs * loader
    for step in range(steps):
        multiplier = warmup_cosine(step / steps, warmup=warmup_epochs / epochs, end_factor=end)
        expected = released_multiplier(step, steps, warmup_steps, end)
        assert multiplier == pytest.approx(expected, abs=TOLERANCE), step


def test_literal_values():
    values = [warmup_cosine(i / 8, warmup=0.25, end_factor=0.2) for i in range(9)]
    half = 0.8 / (2 * math.sqrt(2))
    descent = [0.2 + 0.4 * (1 + math.cos(math.pi * i / 6)) for i in range(7)]
    assert values == pytest.approx([0, 0.5, *descent], abs=TOLERANCE)
    assert values[0] == 0 and values[2] == 1 and values[8] == pytest.approx(0.2, abs=TOLERANCE)
    assert warmup_cosine(0.25, warmup=0, end_factor=0.2) == pytest.approx(0.6 + half)


def test_long_runs_warm_up_to_the_last_step():
    # 5 million steps: fvcore's composite scheduler leaves the warm-up five steps early.
    steps, warmup_steps = 5_004_000, 50_040
    for step in range(warmup_steps - 6, warmup_steps + 1):
        multiplier = warmup_cosine(step / steps, warmup=0.01, end_factor=1e-3)
        assert multiplier == pytest.approx(step / warmup_steps, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup": 1.0}, r"warmup=1.0 .*longer than training"),
        ({"warmup": -0.1}, r"warmup=-0.1"),
        ({"warmup": math.nan}, r"warmup=nan"),
        ({"end_factor": -1e-3}, r"end_factor=-0.001"),
        ({"end_factor": 1.5}, r"end_factor=1.5"),
        ({"progress": -1e-9}, r"progress=-1e-09"),
        ({"progress": 1.01}, r"progress=1.01"),
        ({"progress": math.nan}, r"progress=nan"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    good = {"progress": 0.5, "warmup": 0.01, "end_factor": 1e-3}
    with pytest.raises(ValueError, match=message):
        warmup_cosine(**{**good, **arguments})
