"""MODEL.SYNC_BN_CONFIG on CPU: two processes give the numbers of one that has the whole batch."""

import copy

import pytest
import torch
from gloo import run_gloo
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from vissl_runs import compose

import vissl_barlow
from vissl_barlow.sync_batch_norm import SyncBatchNorm

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
LINEAR = "benchmark/vissl_barlow/places205_linear"
N, STEPS, CLASSES = 8, 3, 5
# The same sums in another order, in float64, over three steps.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}
PRETRAINING = (
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.0625",
    "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:32,dims:[16,16,16]}]]",
)
EVALUATION = (
    "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=''",
    "config.MACHINE.DEVICE=cpu",
    "config.MODEL.TRUNK.RESNETS={DEPTH:18,WIDTH_MULTIPLIER:0.0625}",
    f"config.MODEL.HEAD.PARAMS=[[eval_mlp,{{in_channels:32,dims:[32,{CLASSES}]}}]]",
    "config.MODEL.FEATURE_EVAL_SETTINGS.LINEAR_EVAL_FEAT_POOL_OPS_MAP=[[res5avg,[Identity,[]]]]",
)
CONVERTS = "config.MODEL.SYNC_BN_CONFIG={CONVERT_BN_TO_SYNC_BN:true,GROUP_SIZE:0}"
# A pretraining synchronises as it is shipped.
RUNS = {"pretraining": (DIGITS, PRETRAINING), "evaluation": (LINEAR, (*EVALUATION, CONVERTS))}


@pytest.fixture(scope="module")
def configs() -> dict:
    """By kind of run; a process that unpickles one registers the plugin."""
    vissl_barlow.register()
    return {kind: compose(name, *own) for kind, (name, own) in RUNS.items()}


def built(config, **synchronised):
    """The task of a run with its model, in float64; `synchronised` changes MODEL.SYNC_BN_CONFIG."""
    from classy_vision.generic.distributed_util import set_cpu_device
    from classy_vision.tasks import TASK_REGISTRY

    set_cpu_device()
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config.MODEL.SYNC_BN_CONFIG.update(synchronised)
    config.MODEL["_MODEL_INIT_SEED"] = 0  # as VISSL's trainer does
    task = TASK_REGISTRY[config.TRAINER.TASK_NAME].from_config(config)
    task.checkpoint_path = None
    task.base_model = task._build_model().double()
    return task


def images() -> torch.Tensor:
    """Two views (2, N, 3, 32, 32) of images whose mean and contrast drift from row to row."""
    x = torch.randn(2, N, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    drift = torch.linspace(1, 3, N).view(-1, 1, 1, 1)
    return (drift * (x + drift)).double()


def decays(task) -> dict[str, bool]:
    """Whether VISSL gives weight decay to each parameter."""
    from vissl.optimizers.optimizer_helper import get_optimizer_param_groups

    config = task.config
    schedulers = {"lr": 0.1, "lr_head": 0.1}
    groups = get_optimizer_param_groups(task.base_model, config.MODEL, config.OPTIMIZER, schedulers)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    trained = task.base_model.named_parameters()
    return {name: id(p) in decayed for name, p in trained if p.requires_grad}


def steps(task, kind: str, rows: slice) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of some steps of SGD on `rows` of the batch, and the state then."""
    model = task.base_model
    if dist.is_initialized():
        model = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    if kind == "evaluation":
        task.base_model.trunk.eval()  # as VISSL's frozen trunks are
    losses = []
    for _ in range(STEPS):
        if kind == "pretraining":
            from vissl_barlow.loss import barlow_twins_loss

            loss = barlow_twins_loss(*model(images()[:, rows]), lambda_=0.005).loss
        else:
            logits = model(images()[0, rows])[0]
            loss = nn.functional.cross_entropy(logits, (torch.arange(N) % CLASSES)[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, copy.deepcopy(task.base_model.state_dict())


def run_process(rank: int, configs: dict) -> dict:
    results = {}
    for kind, config in configs.items():
        task = built(config)
        rows = slice(rank * N // 2, (rank + 1) * N // 2)
        results[kind] = (decays(task), *steps(task, kind, rows))
    config = configs["pretraining"]
    config.DISTRIBUTED.NUM_PROC_PER_NODE = 2  # what VISSL's groups of -1 are
    results["groups"] = [group_sizes(built(config, GROUP_SIZE=size)) for size in (0, 1, 2, -1)]
    results["off"] = group_sizes(built(config, CONVERT_BN_TO_SYNC_BN=False))
    return results


def group_sizes(task) -> set[int]:
    layers = [m for m in task.base_model.modules() if isinstance(m, SyncBatchNorm)]
    return {dist.get_world_size(layer.process_group) for layer in layers}


@pytest.fixture(scope="module")
def processes(configs) -> list[dict]:
    """By rank."""
    return run_gloo(run_process, 2, configs)


@pytest.mark.parametrize("kind", RUNS)
def test_two_processes_are_one_with_the_whole_batch(kind, configs, processes):
    task = built(configs[kind])
    assert not group_sizes(task)  # one process has VISSL's layers
    decayed = decays(task)
    losses, state = steps(task, kind, slice(N))
    parts = [part[kind] for part in processes]
    for of_process in parts:
        assert of_process[0] == decayed
        assert of_process[2].keys() == state.keys()  # the checkpoints of one serve the other
        torch.testing.assert_close(of_process[2], state, **TOLERANCE)
    # Cross entropy is the mean over a process's own rows.
    mean = torch.tensor([part[1] for part in parts], dtype=torch.float64).mean(0)
    torch.testing.assert_close(mean, torch.tensor(losses, dtype=torch.float64), **TOLERANCE)


def test_the_groups_are_vissls(processes):
    for of_process in processes:
        assert of_process["groups"] == [{2}, {1}, {2}, {2}]
        assert of_process["off"] == set()


def test_layers_that_torch_runs_on_gpus_only_run_here(configs):
    """Of one process too, whatever the config says: VISSL's xcit has them."""
    from vissl_barlow.vissl_plugin.components.batch_norm import synchronise_on_cpu

    layers = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.SyncBatchNorm(2)))
    types = [type(layer) for layer in synchronise_on_cpu(layers, configs["evaluation"]).modules()]
    assert types == [nn.Sequential, nn.BatchNorm1d, nn.Sequential, SyncBatchNorm]
