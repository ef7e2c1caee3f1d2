"""The machines of a run: each has a command and files of its own, and all must come to one training."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from vissl_barlow.detection.config import leaves
from vissl_barlow.detection.run_folder import last_checkpoint
from vissl_barlow.messages import first_unlike
from vissl_barlow.provenance import file_sha256

# Where a machine finds and leaves things, and how it reads them.
_OF_A_MACHINE = {"OUTPUT_DIR", "MODEL.WEIGHTS", "DATALOADER.NUM_WORKERS", "CUDNN_BENCHMARK"}


class UnlikeMachines(ValueError):
    """The machines would not run the same; the message is one line for the user."""


def refuse_unlike_machines(cfg: Any, args: argparse.Namespace, data: Mapping[str, Any]) -> None:
    """Raises UnlikeMachines, in all processes of a run, where a machine goes on with something else.

    Detectron2 compares nothing: gradients are averaged whatever they are of, and a machine with another
    rate, seed or pretrained model goes on beside the first one's, in silence.

    Args:
        data: what this machine reads, as `datasets.data_of` has it.
    """
    if args.num_machines == 1:
        return
    known = _known(cfg, args, data) if comm.get_rank() % args.num_gpus == 0 else None
    if differences := first_unlike(comm.all_gather(known)[:: args.num_gpus], "machine"):
        raise UnlikeMachines(
            f"--num-machines {args.num_machines}: they would not run the same: {differences}; give each"
            " the same command but for its --machine-rank, the same files and the same OUTPUT_DIR"
        )


def _known(cfg: Any, args: argparse.Namespace, data: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in leaves(cfg).items() if key not in _OF_A_MACHINE}
    resumed = args.resume and not args.eval_only and last_checkpoint(Path(cfg.OUTPUT_DIR))
    # A resumed run reads no pretrained model: the file may be gone.
    weights = "" if resumed else file_sha256(PathManager.get_local_path(cfg.MODEL.WEIGHTS))
    return {
        **settings,
        "--eval-only": args.eval_only,
        "the checkpoint to resume": resumed.name if resumed else "none",
        "the SHA-256 of MODEL.WEIGHTS": weights,
        **{f"the number of {split} images": read["images"] for split, read in data.items()},
    }
