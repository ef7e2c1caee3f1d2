"""What a step says of the whole batch on two processes, each with rows of its own."""

import contextlib
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from gloo import run_gloo

import vissl_barlow


def task_of(rank: int, values: list[float]) -> SimpleNamespace:
    """A test phase's task whose batch, and so whose local loss, is `values[rank]` everywhere."""
    views = torch.full((2, 3, 1, 1, 1), values[rank])
    valid = torch.tensor([1, 1, -1] if rank else [1, -1, -1])
    batch = {"data": [views], "label": [torch.zeros(3)], "data_valid": [valid]}
    return SimpleNamespace(
        device=torch.device("cpu"),
        hooks=[],
        perf_stats=None,
        data_iterator=iter([batch]),
        data_and_label_keys={"input": ["data"], "target": ["label"]},
        train=False,
        iteration=0,
        amp_grad_scaler=None,
        config=SimpleNamespace(BARLOW=SimpleNamespace(CHANNELS_LAST=False)),
        autocast=contextlib.nullcontext,
        model=lambda views: [view.flatten(1) for view in views],
        # As a loss of a user's, or one of VISSL's, may be: of this process's rows alone.
        loss=lambda output, target: output[0].mean(),
        base_loss=SimpleNamespace(terms=None),
        losses=[],
        run_hooks=lambda name: None,
    )


def said_of_a_step(rank: int, values: list[float]) -> dict:
    """What is said of the loss of one step, and whether the hook stops the run for it."""
    from vissl_barlow.loss import LossTerms
    from vissl_barlow.vissl_plugin.components.train_step import barlow_train_step
    from vissl_barlow.vissl_plugin.hooks.finite import BarlowFiniteLoss
    from vissl_barlow.vissl_plugin.hooks.measure import loss_terms

    task, hook = task_of(rank, values), BarlowFiniteLoss()
    hook.on_start(task)
    hook.on_phase_start(task)
    barlow_train_step(task)
    hook.on_loss_and_meter(task)
    said = {
        "step": float(task.last_batch.loss),
        "VISSL's log": float(task.losses[-1]),
        "barlow.jsonl": float(loss_terms(task)["loss"]),
    }
    local = torch.tensor(values[rank])
    task.base_loss.terms = LossTerms(local, local, torch.zeros(()))
    said["barlow.jsonl, of a loss with terms"] = float(loss_terms(task)["loss"])
    try:
        hook.check(task)
        stops = False
    except FloatingPointError:
        stops = True
    return {"loss": said, "stops": stops}


def said_of_unreadable_images(rank: int) -> list[str]:
    """The monitor's warnings over three epochs with 1, 0 and 1 bad images, one more on rank 1."""
    from vissl_barlow.vissl_plugin.hooks.monitor import BarlowMonitor

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.root.addHandler(handler)
    monitor = BarlowMonitor()
    monitor.unreadable, monitor.reported_unreadable = torch.zeros((), dtype=torch.long), 0
    for epoch, count in enumerate((1 + rank, 0, 1)):
        monitor.unreadable += count
        monitor.on_phase_end(SimpleNamespace(train=True, train_phase_idx=epoch))
        tested = SimpleNamespace(train=False, train_phase_idx=epoch, num_epochs=3, meters=[])
        monitor.on_phase_end(tested)
    return [line.partition(" unreadable")[0] for line in said if "unreadable" in line]


def run_process(rank: int) -> dict:
    vissl_barlow.register()
    from classy_vision.generic.distributed_util import set_cpu_device

    set_cpu_device()
    return {
        "finite": said_of_a_step(rank, [1.0, 4.0]),
        "nan on rank 1": said_of_a_step(rank, [1.0, math.nan]),
        "unreadable": said_of_unreadable_images(rank),
    }


@pytest.fixture(scope="module")
def said() -> list[dict]:
    """By rank."""
    return run_gloo(run_process, 2)


def test_the_loss_said_is_the_mean_over_processes(said):
    for of_rank in said:
        assert set(of_rank["finite"]["loss"].values()) == {2.5}, of_rank


def test_a_loss_that_is_not_finite_in_one_process_stops_all_of_them(said):
    assert [of_rank["finite"]["stops"] for of_rank in said] == [False, False]
    assert [of_rank["nan on rank 1"]["stops"] for of_rank in said] == [True, True]


def test_unreadable_images_of_all_processes_are_counted_and_said_when_there_are_more(said):
    assert [of_rank["unreadable"] for of_rank in said] == [["3", "5"], []]


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_the_gradient_norm_is_without_the_loss_scale(scale):
    vissl_barlow.register()
    from vissl_barlow.vissl_plugin.hooks.measure import gradient_norm

    model = torch.nn.Linear(2, 1)
    model.weight.grad = torch.tensor([[3.0, 0.0]]) * (scale or 1)
    model.bias.grad = torch.tensor([4.0]) * (scale or 1)
    scaler = scale and SimpleNamespace(get_scale=lambda: scale)
    task = SimpleNamespace(base_model=model, amp_grad_scaler=scaler)
    assert float(gradient_norm(task)) == 5.0
