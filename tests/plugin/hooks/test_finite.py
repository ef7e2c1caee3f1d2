"""A loss or a gradient that is not finite stops the run and reaches no checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from interrupted_runs import EVERY_STEPS, SHORT, checkpoints
from vissl.hooks import CheckNanModelOutputHook
from vissl_runs import compose

from vissl_barlow.checkpoint import read_checkpoint
from vissl_barlow.vissl_plugin.hooks import barlow_hooks
from vissl_barlow.vissl_plugin.hooks.finite import BarlowFiniteLoss, BarlowFiniteOutputs

LINEAR = "benchmark/vissl_barlow/imagenet1k_linear"

NOT_FINITE = """
import torch
import vissl_barlow.vissl_plugin.components.train_step as step
prepare, calls = step._prepare, []
def broken(task, views):
    calls.append(1)
    views = prepare(task, views)
    if len(calls) == 11:
        if KIND == "gradient":
            weight = next(task.base_model.parameters())
            weight.register_hook(lambda gradient: gradient * float("nan"))
        else:
            views[0, 0, 0, 0, 0] = float(KIND)
    return views
step._prepare = broken
"""


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_stops_the_run_and_leaves_good_checkpoints(
    server, tmp_path, kind
):
    prepare = NOT_FINITE.replace("KIND", repr(kind))
    # Not a log step: the checkpoint of step 12, or 11 where it is due then, has to notice.
    every = 11 if kind == "gradient" else EVERY_STEPS
    run = server.start(
        tmp_path,
        SHORT[0],
        f"config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY={every}",
        "config.LOG_FREQUENCY=1000",
        prepare=prepare,
    )
    assert run.wait() == 1
    assert "FloatingPointError" in run.output and "saved so far are good" in run.output
    assert "Likely causes: a learning rate too high" in run.output
    newest = "model_phase0.torch" if kind == "gradient" else "model_iteration9.torch"
    assert newest in checkpoints(tmp_path)
    for name in checkpoints(tmp_path):
        state = read_checkpoint(tmp_path / name)
        assert state["iteration"] < 11
        model = state["classy_state_dict"]["base_model"]["model"]
        for tensor in [*model["trunk"].values(), *model["heads"].values()]:
            assert torch.isfinite(tensor).all()


@pytest.mark.parametrize(
    ("not_finite", "scaled", "stops"),
    [(0, False, False), (1, False, True), (9, True, False), (10, True, True)],
)
def test_loss_scaling_may_overflow_now_and_then(not_finite, scaled, stops):
    finite_loss = BarlowFiniteLoss()
    finite_loss.window_start, finite_loss.non_finite = 20, torch.tensor(not_finite)
    task = SimpleNamespace(iteration=29, amp_grad_scaler=object() if scaled else None)
    if stops:
        with pytest.raises(FloatingPointError, match=f"{not_finite} of the last 10 steps"):
            finite_loss.check(task)
    else:
        finite_loss.check(task)
    assert finite_loss.non_finite == 0


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("several", [False, True])
def test_outputs_that_are_not_finite_end_an_evaluation(several, train):
    (hook,) = [
        hook
        for hook in barlow_hooks([CheckNanModelOutputHook()], compose(LINEAR), False)
        if isinstance(hook, BarlowFiniteOutputs)
    ]
    output = torch.ones(2, 3)
    task = SimpleNamespace(iteration=7, train=train)
    task.last_batch = SimpleNamespace(model_output=[torch.ones(2), output] if several else output)
    hook.on_forward(task)
    output[1, 2] = float("nan")
    kind = "training" if train else "test"
    with pytest.raises(FloatingPointError, match=f"not finite for a {kind} batch after 7 steps"):
        hook.on_forward(task)
