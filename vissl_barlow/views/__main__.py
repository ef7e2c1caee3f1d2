"""`python -m vissl_barlow.views FOLDER --out views.png`: what a config's augmentations make of images.

Beside an image, the crops of its views on it, stand view A and view B: those that a run of the config
with this seed draws in its first epoch from the same folder.
"""

import argparse
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vissl_barlow.atomic_files import atomic_file
from vissl_barlow.digits import digits
from vissl_barlow.figures import draw_views
from vissl_barlow.images import UnreadableImage, list_images, read_image
from vissl_barlow.overrides import compose_config
from vissl_barlow.own_images import FolderRefused, OwnFolder, read_folder
from vissl_barlow.own_images.choices import AUTO, DEVICE, choose, this_machine
from vissl_barlow.paths import config_folder, is_within
from vissl_barlow.views.parameters import view_seed
from vissl_barlow.views.two_views import TwoViews

PAPERS = "pretrain/vissl_barlow/resnet50_in1k_1000ep"
DIGITS, OWN_FOLDER = "barlow_digits", "barlow_own_folder"
_OVERRIDE = re.compile(r"[+~]*config[./][^=]*=")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vissl_barlow.views", description=__doc__)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="FOLDER, KEY=VALUE",
        help="a folder of images (none: the digits, with their config), and overrides of the config",
    )
    parser.add_argument("--out", type=Path, default=Path("views.png"), help="default: %(default)s")
    parser.add_argument(
        "--config",
        default=PAPERS,
        help="one of this plugin's, or a run's train_config.yaml; default: %(default)s",
    )
    parser.add_argument("--images", type=int, default=8, help="how many; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_intermixed_args(arguments)
    try:
        print(_draw(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _draw(options: argparse.Namespace) -> str:
    overrides = [word for word in options.words if _OVERRIDE.match(word)]
    folders = [word for word in options.words if word not in overrides]
    problems: list[str] = []

    def attempt(function: Callable[..., Any], *values: Any) -> Any:
        try:
            return function(*values)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            return None

    config = attempt(_config, options.config, overrides)
    kind = config["DATA"]["TRAIN"].get("DATA_SOURCES") if config else None
    source = attempt(_source, folders, kind)
    own = source[2] if source else None
    two_views: Any = attempt(_two_views, config, options.config, own) if config else None
    if options.images < 1:
        problems.append(f"--images {options.images}: give 1 or more")
    if not options.out.absolute().parent.is_dir():
        problems.append(f"--out {options.out}: there is no folder {options.out.absolute().parent}")
    if options.out.suffix.lower() != ".png":
        problems.append(f"--out {options.out}: a PNG is written; give {options.out.stem}.png")
    problems += [
        _among_images(options.out, folder) for folder in folders if is_within(options.out, folder)
    ]
    if problems:
        raise ValueError("; ".join(problems))
    size, read, _ = source
    chosen = list(_readable(range(size), read, options.images, options.seed))
    if not chosen:
        raise ValueError(f"none of the {size} images in {folders[0]} can be read")
    pairs, crops = [], []
    for index, image in chosen:
        rng = random.Random(view_seed(options.seed, 0, index))
        a, b = (
            two_views.sample_parameters(*image.shape[:2], view=view, rng=rng) for view in (0, 1)
        )
        view_a, view_b = (_pixels(two_views, two_views.apply(image, each)) for each in (a, b))
        pairs.append((view_a, view_b))
        crops.append((a.crop, b.crop))
    title = " ".join([options.config, *overrides])
    with atomic_file(options.out) as file:
        draw_views(file, [image for _, image in chosen], pairs, crops, title)
    return f"views of {len(chosen)} of {size} images under {title}: {options.out}"


def _among_images(out: Path, folder: str) -> str:
    other = Path(os.path.abspath(folder)).parent / f"{out.stem}.png"
    return f"--out {out}: lies in {folder}, and would be one of its images; give {other}"


def _config(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The section `config`, of a shipped config or of a run's resolved one.

    Raises:
        ValueError: there is none, or an override does not fit it.
        OSError: the file cannot be read.
    """
    if not name.endswith(".yaml"):
        if not (config_folder("configs") / "config" / f"{name}.yaml").is_file():
            raise ValueError(
                f"--config {name}: none of this plugin's, which are pretrain/vissl_barlow/NAME, and no "
                "train_config.yaml"
            )
        try:
            return OmegaConf.to_container(compose_config(name, tuple(overrides)))  # type: ignore
        except (HydraException, OmegaConfBaseException) as error:
            reason, *_ = str(error.__cause__ or error).splitlines()
            raise ValueError(f"{' '.join(overrides)}: {reason}") from None
    if overrides:
        raise ValueError(f"{overrides[0]}: a run's resolved config is drawn as it is; leave it out")
    try:
        content = yaml.safe_load(Path(name).read_text())
        return content if content["DATA"]["TRAIN"] else {}
    except (ValueError, KeyError, TypeError, yaml.YAMLError):
        raise ValueError(f"--config {name}: no train_config.yaml of VISSL's") from None


def _two_views(config: dict[str, Any], name: str, own: OwnFolder | None) -> TwoViews:
    """The transform of training, of what a run would choose for the images of `own`.

    Raises:
        ValueError: it is none of ours, or not that alone; or the images that it hangs on are not known.
    """
    transforms = config["DATA"]["TRAIN"].get("TRANSFORMS", [])
    names = [transform.get("name") for transform in transforms]
    if names != ["BarlowTwoViews"]:
        raise ValueError(
            f"--config {name}: its TRANSFORMS are {', '.join(map(str, names)) or 'none'}; "
            "this draws BarlowTwoViews alone"
        )
    options = {key: value for key, value in transforms[0].items() if key != "name"}
    if own is not None and AUTO in options.values():
        options |= _chosen(config, options, own)
    chosen = [key for key, value in options.items() if value == "auto"]
    if chosen:
        raise ValueError(
            f"--config {name}: a run chooses {', '.join(chosen)} from its images; name the run's "
            "train_config.yaml, or give "
            + " ".join(f"config.DATA.TRAIN.TRANSFORMS.0.{key}=VALUE" for key in chosen)
        )
    try:
        return TwoViews(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.DATA.TRAIN.TRANSFORMS.0: {error}") from None


def _chosen(config: dict[str, Any], options: dict[str, Any], own: OwnFolder) -> dict[str, Any]:
    """The options that a run would choose for these images, on this machine."""
    place = "DATA.TRAIN.TRANSFORMS.0."
    values = {f"{place}{key}": value for key, value in options.items()}
    values[DEVICE] = config["MACHINE"]["DEVICE"]
    opened = [key for key, value in values.items() if value == AUTO]
    given = {key: value for key, value in values.items() if key not in opened}
    # Of the trunk nothing is asked for.
    choices = choose(opened, given, own, this_machine(), lambda _: 1)
    return {
        key.removeprefix(place): choice.value
        for key, choice in choices.items()
        if key.startswith(place)
    }


def _source(
    folders: Sequence[str], kind: Any
) -> tuple[int, Callable[[int], np.ndarray], OwnFolder | None]:
    """How many images there are to train on, what reads one, and what the folder is to `own_images`;
    as the data sources of the config, `kind`, have them."""
    if not folders and kind == [DIGITS]:
        images, _ = digits("train")
        return len(images), images.__getitem__, None
    if len(folders) != 1:
        raise ValueError(f"name one folder of images, not {' '.join(folders) or 'none'}")
    own = None
    if kind == [OWN_FOLDER]:
        try:
            own = read_folder(folders[0])
            names = own.train
        except FolderRefused as error:
            instead = f"; try {error.instead}" if error.instead else ""
            raise ValueError(f"{folders[0]}: {error}{instead}") from None
    else:
        names = list_images(folders[0])
    if not names:
        raise ValueError(f"no images in {folders[0]}")
    return len(names), lambda index: read_image(Path(folders[0], names[index])), own


def _readable(
    indices: Sequence[int], read: Callable[[int], np.ndarray], wanted: int, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """A random selection of the images that can be read; the others are named on stderr."""
    for index in random.Random(seed).sample(indices, len(indices)):
        if not wanted:
            return
        try:
            yield index, read(index)
            wanted -= 1
        except UnreadableImage as error:
            print(f"left out: {error}", file=sys.stderr)


def _pixels(two_views: TwoViews, view: torch.Tensor) -> np.ndarray:
    """A view (3, S, S) as it was before its normalisation: uint8 (S, S, 3)."""
    if view.dtype != torch.uint8:
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (two_views.mean, two_views.std))
        view = ((view * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return view.permute(1, 2, 0).numpy()


if __name__ == "__main__":
    sys.exit(main())
