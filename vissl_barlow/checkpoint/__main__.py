"""Command line: `python -m vissl_barlow.checkpoint --to {torchvision,vissl,detectron2} IN OUT`."""

import argparse
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from vissl_barlow.checkpoint.names import to_detectron2, to_vissl
from vissl_barlow.checkpoint.torch_file import save_atomically
from vissl_barlow.checkpoint.trunk import read_trunk
from vissl_barlow.messages import listed

_WRITERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "torchvision": dict,
    "vissl": to_vissl,
    "detectron2": to_detectron2,
}


def _convert(source: Path, target: Path, to: str, force: bool, prefix: str) -> str:
    if target.exists() and not force:
        raise FileExistsError(errno.EEXIST, "exists; --force replaces it", str(target))
    if to == "detectron2" and target.suffix in (".pkl", ".pyth"):
        raise ValueError(
            f"{target}: Detectron2 reads {target.suffix} files in another way; name it .pth"
        )
    trunk = read_trunk(source, prefix)
    save_atomically(_WRITERS[to](trunk.state_dict), target)
    others = f", not the trunk {listed(trunk.others)}" if trunk.others else ""
    return (
        f"{source} ({trunk.source}{others}: {trunk.layout}, {len(trunk.state_dict)} "
        f"tensors, {trunk.left_out} beside it left out) -> {target} ({to})"
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vissl_barlow.checkpoint",
        description="Translate the ResNet trunk of a checkpoint (VISSL, Barlow Twins authors, "
        "torchvision, timm, MoCo, SwAV, DINO, iBOT, solo-learn, lightly, Detectron2, safetensors: "
        "recognised by itself) into another format.",
    )
    parser.add_argument("--to", required=True, choices=_WRITERS, help="format to write")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--trunk",
        metavar="PREFIX",
        default="",
        help="which of several trunks: what stands before its names, or words of it (encoder_k, "
        "student); by default the one that its authors evaluate",
    )
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("target", metavar="OUT", type=Path)
    options = parser.parse_args(arguments)
    try:
        print(_convert(options.source, options.target, options.to, options.force, options.trunk))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
