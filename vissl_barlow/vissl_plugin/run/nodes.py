"""The nodes of a run: each has a command and files of its own, and all must come to one training.

Neither torch nor VISSL compares them: gradients are averaged whatever they are of, and a node with
another rate, seed or folder of images goes on beside the first one's, in silence.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist

from vissl_barlow.messages import first_unlike
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.run.experiment import flat

# Where a node finds things, and how it reads them; what is there is compared by its content.
_OF_A_NODE = re.compile(
    r"""
    CHECKPOINT\.DIR | DISTRIBUTED\.RUN_ID | MODEL\.WEIGHTS_INIT\.PARAMS_FILE | VERBOSE
    | DATA\.(NUM_DATALOADER_WORKERS | PIN_MEMORY)
    | DATA\.(TRAIN | TEST)\.((DATA | LABEL)_PATHS(\..*)? | COPY_TO_LOCAL_DISK
        | COPY_DESTINATION_DIR | (REMOVE | NEW)_IMG_PATH_PREFIX | MMAP_MODE)
    | BARLOW\.(CHECK_IMAGES | (COMMAND | DERIVED)(\..*)?)
    """,
    re.VERBOSE,
)


def settings_of_node(cfg: Mapping) -> dict[str, Any]:
    """The settings in the resolved config `cfg` that are the same on all nodes, by dotted keys."""
    return {key: value for key, value in flat(cfg) if not _OF_A_NODE.fullmatch(key)}


def refuse_unlike_nodes(cfg, local_rank: int, known: Callable[[], Mapping[str, Any]]) -> None:
    """Raises ConfigError, in all processes of the run, where a node goes on with something else.

    To be called by all of them; on one node it does nothing.

    Args:
        cfg: resolved.
        known: gives what must be the same, by its name; called once on each node.
    """
    nodes, per_node = cfg.DISTRIBUTED.NUM_NODES, cfg.DISTRIBUTED.NUM_PROC_PER_NODE
    if nodes == 1:
        return
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, dict(known()) if local_rank == 0 else None)
    if differences := first_unlike(gathered[::per_node], "node"):
        raise ConfigError(
            "DISTRIBUTED.NUM_NODES",
            nodes,
            f"the nodes would not train the same: {differences}; give each the same command but for "
            "its node_id, the same files and the same checkpoint folder",
        )
