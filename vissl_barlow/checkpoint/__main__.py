"""Command line: `python -m vissl_barlow.checkpoint --to FORMAT IN OUT`; with `IN` alone, what it is."""

import argparse
import errno
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vissl_barlow.atomic_files import atomic_file
from vissl_barlow.checkpoint.exports import to_onnx, to_safetensors
from vissl_barlow.checkpoint.names import detectron2_resnet, to_detectron2, to_vissl
from vissl_barlow.checkpoint.pretraining import PAPERS_VIEWS
from vissl_barlow.checkpoint.torch_file import checkpoint_in, save_atomically
from vissl_barlow.checkpoint.trunk import Trunk, read_trunk
from vissl_barlow.messages import listed
from vissl_barlow.next_steps import next_steps


class _Format(NamedTuple):
    """What to write from a trunk in torchvision's names, bytes or what `torch.save` is to save; and
    the ending that the file must have, by which programs tell the format, "" for any other."""

    write: Callable[[dict[str, Tensor]], dict[str, Any] | bytes]
    suffix: str = ""


_FORMATS: dict[str, _Format] = {
    "torchvision": _Format(dict),
    "timm": _Format(dict),  # its ResNets have torchvision's names
    "vissl": _Format(to_vissl),
    "detectron2": _Format(to_detectron2),
    "safetensors": _Format(to_safetensors, ".safetensors"),
    "onnx": _Format(to_onnx, ".onnx"),
}
# Read by models that have the 7 x 7 stem and a pooling; with this one kept, the features are others.
_NAMES_OF_TORCHVISION = ("torchvision", "timm", "safetensors")
_OWN_SUFFIXES = {format.suffix for format in _FORMATS.values() if format.suffix}


def _refuse_suffix(target: Path, to: str) -> None:
    suffix = _FORMATS[to].suffix
    if to == "detectron2" and target.suffix in (".pkl", ".pyth"):
        raise ValueError(
            f"{target}: Detectron2 reads {target.suffix} files in another way; name it .pth"
        )
    if target.suffix != suffix and (suffix or target.suffix in _OWN_SUFFIXES):
        wanted = suffix or f".pth, or give --to {target.suffix[1:]}"
        raise ValueError(f"{target}: programs tell what a file is by its ending; name it {wanted}")


def _convert(source: Path, target: Path, to: str, force: bool, prefix: str) -> str:
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(
            f"{target}: is IN itself, of which only the trunk would be left; name another OUT"
        )
    if target.exists() and not force:
        raise FileExistsError(errno.EEXIST, "exists; --force replaces it", str(target))
    _refuse_suffix(target, to)
    trunk = read_trunk(source, prefix)
    content = _FORMATS[to].write(trunk.state_dict)
    if isinstance(content, bytes):
        with atomic_file(target) as file:
            file.write(content)
    else:
        save_atomically(content, target)
    others = f", not the trunk {listed(trunk.others)}" if trunk.others else ""
    return (
        f"{source} ({trunk.source}{others}: {trunk.layout}, {len(trunk.state_dict)} "
        f"tensors, {trunk.left_out} beside it left out) -> {target} ({to}){_how_to_load(trunk, to)}"
    )


def _how_to_load(trunk: Trunk, to: str) -> str:
    """What another program's model wants; "" for nothing but what every ResNet on ImageNet wants."""
    views = trunk.views or PAPERS_VIEWS
    if to == "detectron2":
        # Its own configs have BGR, another scale and Caffe's strides, under which the weights load as
        # well; where only a depth or width is another, it warns, and trains from random weights.
        settings = {
            **{f"RESNETS.{key}": value for key, value in detectron2_resnet(trunk.layout).items()},
            "RESNETS.STRIDE_IN_1X1": False,
            "PIXEL_MEAN": [round(255 * value, 3) for value in views.mean],
            "PIXEL_STD": [round(255 * value, 3) for value in views.std],
        }
        words = [f"MODEL.{key} {shlex.quote(str(value))}" for key, value in settings.items()]
        return f"; its config must have {' '.join(words)} INPUT.FORMAT RGB"
    wanted = ""
    if (views.mean, views.std) != (PAPERS_VIEWS.mean, PAPERS_VIEWS.std):
        wanted = f"; of images normalised by mean {list(views.mean)}, std {list(views.std)}"
    if not trunk.layout.small_stem or to not in _NAMES_OF_TORCHVISION:
        return wanted
    channels = trunk.state_dict["conv1.weight"].shape[0]
    return (
        f"{wanted}; before it is loaded: model.conv1 = nn.Conv2d(3, {channels}, 3, padding=1, "
        "bias=False); model.maxpool = nn.Identity()"
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vissl_barlow.checkpoint",
        description="Translate the ResNet trunk of a checkpoint (VISSL, Barlow Twins authors, "
        "torchvision, timm, MoCo, SwAV, DINO, iBOT, solo-learn, lightly, Detectron2, safetensors: "
        "recognised by itself) into another format. Without --to and OUT: say what it is, its run's "
        "numbers, and the commands that evaluate, export and report it.",
    )
    parser.add_argument("--to", choices=_FORMATS, help="format to write")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--trunk",
        metavar="PREFIX",
        default="",
        help="which of several trunks: what stands before its names, or words of it (encoder_k, "
        "student); by default the one that its authors evaluate",
    )
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("target", metavar="OUT", type=Path, nargs="?")
    options = parser.parse_args(arguments)
    source, target, to = options.source, options.target, options.to
    if (target is None) != (to is None):
        parser.error("give both --to FORMAT and OUT to convert IN, or neither to see what it is")
    try:
        if target and to:
            print(_convert(source, target, to, options.force, options.trunk))
        else:
            trunk = read_trunk(source, options.trunk)
            print(next_steps(source, trunk.layout, trunk.step))
    except (ValueError, OSError) as error:
        newest = checkpoint_in(source)
        instead = f"; {newest} is one" if newest else ""
        print(f"error: {error}{instead}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
