"""`barlow_task`: VISSL's task with exact resumes, other precisions and memory formats; and
`barlow_evaluation_task`, for evaluations.

An interrupted run and an uninterrupted one must see the same images in the same order under the
same augmentations. Order and augmentation are therefore functions of the seed, the epoch and the
image, and what layers draw (dropout) is one of the seed, the step and the process (`reproducible.py`),
not of what was drawn before: no random state needs saving, and neither the number of loader workers nor
the place of the interruption matters.
"""

import contextlib
import functools
import logging
import multiprocessing.forkserver
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from classy_vision.generic.distributed_util import is_primary
from classy_vision.tasks import register_task
from classy_vision.tasks.classification_task import AmpType
from torch import nn
from torch.utils.data.distributed import DistributedSampler
from vissl.data import build_dataloader, build_dataset, get_sampler
from vissl.trainer.train_task import SelfSupervisionTask
from vissl.utils.checkpoint import get_checkpoint_folder
from vissl.utils.env import get_machine_local_and_dist_rank
from vissl.utils.misc import set_dataloader_seeds

from vissl_barlow.distributed import world_size
from vissl_barlow.provenance import note_left
from vissl_barlow.screen import LinesOfWorkers
from vissl_barlow.stop_signals import (
    end_loader_workers_at_exit,
    held_back,
    leave_signals_to_the_run,
)
from vissl_barlow.vissl_plugin.components.batch_norm import synchronise_on_cpu
from vissl_barlow.vissl_plugin.components.every_image import (
    MeterOfOwnImages,
    ordered_sampler,
    own_sampler,
    test_loss,
)
from vissl_barlow.vissl_plugin.components.pieces import StepInPieces, step_in_pieces
from vissl_barlow.vissl_plugin.components.reproducible import ReproducibleDataset
from vissl_barlow.vissl_plugin.components.views import normalization
from vissl_barlow.vissl_plugin.components.weights import initialise_from, refuse_untrained_heads
from vissl_barlow.vissl_plugin.hooks import barlow_hooks, probes
from vissl_barlow.vissl_plugin.hooks.record import record_start
from vissl_barlow.vissl_plugin.hooks.summary import summary_of
from vissl_barlow.vissl_plugin.run.experiment import (
    WEIGHTS,
    experiment_of,
    images_identity,
    weights_identity,
)
from vissl_barlow.vissl_plugin.run.images import images_of
from vissl_barlow.vissl_plugin.run.nodes import refuse_unlike_nodes, settings_of_node

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class ResumableSampler(DistributedSampler):
    """torch's DistributedSampler (one permutation over all processes, by seed and epoch) that can
    start in the middle of an epoch."""

    def __init__(self, dataset, batch_size: int, seed: int, shuffle: bool, drop_last: bool) -> None:
        super().__init__(dataset, seed=seed, shuffle=shuffle, drop_last=drop_last)
        self.batch_size, self.start_iter = batch_size, 0

    def set_start_iter(self, start_iter: int) -> None:
        """Steps of the next epoch that are done already."""
        self.start_iter = start_iter

    def __iter__(self) -> Iterator[int]:
        return iter(list(super().__iter__())[self.start_iter * self.batch_size :])


class BarlowTaskBase(SelfSupervisionTask):
    """What pretraining and evaluations share: the doors that VISSL's task has."""

    resumes_within_epochs = False
    extracts = False  # whether features are extracted, and nothing is trained

    def __init__(self, config) -> None:
        super().__init__(config)
        if (
            config.DATA.NUM_DATALOADER_WORKERS > 0
            and config.MULTI_PROCESSING_METHOD == "forkserver"
        ):
            start_worker_server()
        # Here, because VISSL adds to the config while it builds the model and the loss.
        self.experiment = experiment_of(config)
        self._settings = settings_of_node(config)

    def get_classy_state(self, deep_copy: bool = False) -> dict:
        state = super().get_classy_state(deep_copy=deep_copy)
        state["experiment"] = {**self.experiment, WEIGHTS: self._weights, **self._images_identity}
        return state

    def _set_classy_state(self, state) -> None:
        # A resumed run read no weights: its first start did.
        if WEIGHTS in state.get("experiment", {}):
            self._weights = state["experiment"][WEIGHTS]
        super()._set_classy_state(state)

    @functools.cached_property
    def _weights(self) -> str:
        return weights_identity(self.config.MODEL.WEIGHTS_INIT.PARAMS_FILE)

    @functools.cached_property
    def _images_identity(self) -> dict:
        found: dict = {}
        for split, dataset in self.datasets.items():
            found |= images_identity(split.upper(), dataset)
        return found

    @functools.cached_property
    def images(self) -> dict[str, dict]:
        """`images_of` each split that this run reads, by "train" and "test"."""
        datasets = dict(self.datasets)
        if probes(self.config):
            datasets.setdefault("test", build_dataset(self.config, "TEST"))
        return {split: images_of(dataset) for split, dataset in datasets.items()}

    def _refuse_unlike_nodes(self, known: Callable[[], dict]) -> None:
        refuse_unlike_nodes(self.config, get_machine_local_and_dist_rank()[0], known)

    def _refuse_other_commands(self) -> None:
        """Before the nodes exchange anything: one that resumes waits for what the others never send."""
        self._refuse_unlike_nodes(
            lambda: {
                **self._settings,
                # A resumed run reads none: the file may be gone.
                WEIGHTS: "" if self.checkpoint_path else self._weights,
                "the checkpoint to resume": "there" if self.checkpoint_path else "none",
            }
        )

    @property
    def trains(self) -> bool:
        """Whether weights change: neither are features extracted, nor is a test all there is."""
        return not self.extracts and not self.config.TEST_ONLY

    def set_hooks(self, hooks: list):
        return super().set_hooks(barlow_hooks(hooks, self.config, self.resumes_within_epochs))

    def prepare_extraction(self, pin_memory: bool = False):
        self.extracts = True
        self._refuse_other_commands()
        if not self.config.MODEL.WEIGHTS_INIT.PARAMS_FILE:
            refuse_untrained_heads(self.config, extracts=True)
        prepared = super().prepare_extraction(pin_memory=pin_memory)
        self._refuse_unlike_nodes(lambda: self._images_identity)
        if is_primary():
            logging.info(summary_of(self))
            record_start(self, anew=True)  # no hook is run
            # What earlier starts left is replaced, from here on.
            note_left(Path(get_checkpoint_folder(self.config)))
        return prepared

    def build_dataloaders(self, pin_memory: bool, current_train_phase_idx: int = 0) -> dict:
        end_loader_workers_at_exit()
        lines = LinesOfWorkers(logging.warning)
        return {
            split.lower(): build_dataloader(
                dataset=self.datasets[split.lower()],
                dataset_config=self._loader_config(split),
                num_dataloader_workers=self.config.DATA.NUM_DATALOADER_WORKERS,
                pin_memory=pin_memory,
                multi_processing_method=self.config.MULTI_PROCESSING_METHOD,
                device=self.device,
                sampler_seed=self.config["SEED_VALUE"],
                split=split.lower(),
                get_sampler=self._sampler_of(split),
                worker_init_fn=functools.partial(_init_loader_worker, lines=lines),
            )
            for split in self.available_splits
        }

    def recreate_data_iterator(self, *args, **kwargs) -> None:
        with held_back():  # from its workers, until they leave it to the run
            super().recreate_data_iterator(*args, **kwargs)

    def _loader_config(self, split: str) -> dict:
        section = self.config["DATA"][split]
        # DROP_LAST is for training: a test, and features, are of all images.
        trains = split == "TRAIN" and not self.extracts
        return section if trains else type(section)({**section, "DROP_LAST": False})

    def _sampler_of(self, split: str) -> Callable:
        if self.extracts:
            return own_sampler
        return self._train_sampler if split == "TRAIN" else ordered_sampler

    _train_sampler = staticmethod(get_sampler)

    @property
    def loss(self):
        if self.train or world_size() == 1:
            return super().loss
        return test_loss(super().loss, self)

    def _build_phases(self) -> list:
        # With TEST_ONLY VISSL has a test for every epoch of the training that there is not.
        phases = super()._build_phases()
        return phases[:1] if self.config.TEST_ONLY else phases

    def prepare(self, pin_memory: bool = False):
        self._refuse_other_commands()
        prepared = super().prepare(pin_memory=pin_memory)
        self._refuse_unlike_nodes(lambda: self._images_identity)
        if self.config.TEST_ONLY:
            # That test is of the last epoch's model, and is recorded as the one after training is.
            self.train_phase_idx = self.num_train_phases - 1
        return prepared

    def _build_meters(self) -> list:
        return [MeterOfOwnImages(meter, self) for meter in super()._build_meters()]

    def _build_model(self, **strictness) -> nn.Module:  # main's, of the weights it begins with
        return synchronise_on_cpu(super()._build_model(**strictness), self.config)

    def _restore_model_weights(self, model: nn.Module, strict: bool = False) -> nn.Module:
        # Main asks for `strict` where features are extracted; here that is known.
        _ = self._weights  # before the file can change
        initialise_from(model, self.config, self.extracts)
        return model


@register_task("barlow_evaluation_task")
class BarlowEvaluationTask(BarlowTaskBase):
    """VISSL's task for evaluations, with the plugin's hooks and weights in any format it reads."""


def start_worker_server() -> None:
    """Starts what loader workers are forked from; it imports beside what this process goes on with.

    With held back requests to stop, as the workers have them until they ignore them.
    """
    multiprocessing.forkserver.set_forkserver_preload(["vissl_barlow.vissl_plugin.preload"])
    with held_back():
        multiprocessing.forkserver.ensure_running()


def _init_loader_worker(worker_id: int, lines: LinesOfWorkers) -> None:
    lines.take_stderr()
    leave_signals_to_the_run()
    set_dataloader_seeds(worker_id)


def _train_sampler(dataset, dataset_config, sampler_seed: int = 0) -> ResumableSampler:
    batch_size, drop_last = dataset_config["BATCHSIZE_PER_REPLICA"], dataset_config["DROP_LAST"]
    return ResumableSampler(dataset, batch_size, sampler_seed, shuffle=True, drop_last=drop_last)


@register_task("barlow_task")
class BarlowTask(BarlowTaskBase):
    """Config: `BARLOW.AMP_DTYPE` ("float16" with loss scaling, "bfloat16" without) under
    MODEL.AMP_PARAMS.USE_AMP, `BARLOW.CHANNELS_LAST`, `BARLOW.COMPILE` (torch.compile on the trunk
    and the heads), `BARLOW.CHUNK_SIZE` and `BARLOW.CHUNK_BATCH_NORM` (steps in pieces)."""

    resumes_within_epochs = True
    _train_sampler = staticmethod(_train_sampler)

    def set_amp_args(self) -> None:
        self.amp_dtype = None
        if not self.config.MODEL.AMP_PARAMS.USE_AMP:
            return
        self.amp_dtype = AMP_DTYPES[self.config.BARLOW.AMP_DTYPE]
        self.amp_type = AmpType.PYTORCH
        if self.amp_dtype == torch.float16:
            self.amp_grad_scaler = torch.amp.GradScaler(self.device.type)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision of the forward pass, as the config has it."""
        return torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    @functools.cached_property
    def normalization(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation that the two-view transform leaves to the step."""
        return normalization(self.config.DATA.TRAIN.TRANSFORMS)

    @functools.cached_property
    def pieces(self) -> StepInPieces | None:
        """What takes a step in pieces; None where steps are ordinary ones."""
        return step_in_pieces(self)

    def build_datasets(self, current_train_phase_idx: int = 0) -> tuple[dict, dict]:
        keys = {}
        for split in self.available_splits:
            section = self.config.DATA[split]
            keys = {"input": section.INPUT_KEY_NAMES, "target": section.TARGET_KEY_NAMES}
        datasets = {
            split.lower(): ReproducibleDataset(self.config, split)
            for split in self.available_splits
        }
        return datasets, keys

    def set_epoch(self, phase_type: str, epoch: int, start_iter: int, train_phase_idx: int) -> None:
        super().set_epoch(phase_type, epoch, start_iter, train_phase_idx)
        self.datasets[phase_type].set_epoch(epoch)

    def prepare(self, pin_memory: bool = False):
        prepared = super().prepare(pin_memory=pin_memory)
        if self.config.BARLOW.CHANNELS_LAST:
            self.base_model.to(memory_format=torch.channels_last)
        if self.config.BARLOW.COMPILE:
            # In place: the names of the parameters, and so the checkpoints, stay as they are.
            for module in (self.base_model.trunk, *self.base_model.heads):
                module.compile()
        return prepared

    def get_classy_state(self, deep_copy: bool = False) -> dict:
        state = super().get_classy_state(deep_copy=deep_copy)
        if self.amp_grad_scaler is not None:
            # classy-vision saves it for apex only, and a resumed run would begin at scale 65536.
            state["amp"] = self.amp_grad_scaler.state_dict()
        return state
