"""Images per second of one core, from a JPEG on disk to a batch of two normalised views.

All pipelines run in turn on the same files (500 x 375, cut from scikit-learn's two photographs, and
1600 x 1200, the photographs mirrored at their edges), in one thread; times are processor time, which
other work on the machine disturbs little.
Also measured: where the time goes in the plain and in the fast backend, and how far the fast one is
from Pillow, in grey levels of 256, for the same parameters.
"""

import importlib.util
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
import yaml
from bench_common import (
    arguments,
    interleaved_times,
    markdown_table,
    median,
    median_ratio,
    write_results,
)
from PIL import Image, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images
from torchvision import transforms

from vissl_barlow.images import decode_image
from vissl_barlow.views import IMAGENET_MEAN, IMAGENET_STD, TwoViews, ViewParameters, normalize

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# (width, height) of the images: most of ImageNet's, and a small photograph of one's own.
SIZES = {"500 x 375": (500, 375), "1600 x 1200": (1600, 1200)}
# About 80 kB a small file, near ImageNet's 110 kB: at 85 the files halve and the ratios grow by a
# tenth.
JPEG_QUALITY = 95
S = 224
AUTHORS = "authors' pipeline"
TARGETS = {AUTHORS: 4.0, "VISSL's config": 3.0}
VISSL_CONFIG = "configs/config/pretrain/barlow_twins/barlow_twins_4node_resnet.yaml"

Pipeline = Callable[[list[Path]], object]


def write_jpegs(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """`count` different crops of the sample photographs, as JPEG files of (width, height)."""
    width, height = size
    rng = random.Random(0)
    paths = []
    for i, photo in zip(range(count), itertools.cycle(load_sample_images().images)):
        if width > photo.shape[1]:
            photo = np.pad(photo, ((0, height), (0, width), (0, 0)), mode="symmetric")
        top = rng.randint(0, photo.shape[0] - height)
        left = rng.randint(0, photo.shape[1] - width)
        crop = Image.fromarray(photo[top : top + height, left : left + width])
        paths.append(folder / f"{i:03d}.jpg")
        crop.save(paths[-1], quality=JPEG_QUALITY)
    return paths


def open_with_pil(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def batched(load: Callable, two_views: Callable) -> Pipeline:
    """Loads each file, makes its views and stacks them, as a loader's default collation does."""

    def run(paths):
        pairs = [two_views(load(path)) for path in paths]
        return [torch.stack(views) for views in zip(*pairs)]

    return run


class AuthorsBlur:
    def __call__(self, image):
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def authors_views() -> Callable:
    """The released code's transforms."""

    def one_view(blur_p, solarize_p):
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(S, interpolation=Image.Resampling.BICUBIC),
                transforms.RandomHorizontalFlip(0.5),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
                transforms.RandomGrayscale(0.2),
                transforms.RandomApply([AuthorsBlur()], blur_p),
                transforms.RandomApply([ImageOps.solarize], solarize_p),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    view_a, view_b = one_view(1.0, 0.0), one_view(0.1, 0.2)
    return lambda image: (view_a(image), view_b(image))


def vissl_pipeline() -> Pipeline | None:
    """The transforms of VISSL's own Barlow Twins config; None where VISSL is not installed."""
    vissl = importlib.util.find_spec("vissl")
    if vissl is None:
        return None
    from vissl.config import AttrDict
    from vissl.data.ssl_transforms import get_transform

    site = Path(vissl.submodule_search_locations[0]).parent
    config = yaml.safe_load((site / VISSL_CONFIG).read_text())
    transform = get_transform(AttrDict(config["config"])["DATA"]["TRAIN"]["TRANSFORMS"])

    def two_views(image):
        sample = {"data": [image], "label": [0], "data_valid": [1], "data_idx": [0]}
        return transform(sample)["data"]

    return batched(open_with_pil, two_views)


def lightly_pipeline() -> Pipeline | None:
    """lightly's BYOL transforms (the same augmentations); None where lightly does not import."""
    try:
        from lightly.transforms import BYOLTransform
    except ImportError as error:
        print(f"lightly: not measured, {type(error).__name__}: {error}")
        return None
    return batched(open_with_pil, BYOLTransform())


def decode_file(path: Path) -> np.ndarray:
    return decode_image(path.read_bytes())


def into_buffer(count: int) -> Pipeline:
    """The fast backend, normalised straight into a batch that is kept from call to call."""
    two_views = TwoViews(S, normalize_on_device=True)
    batch = torch.empty(2, count, 3, S, S)

    def run(paths):
        for i, path in enumerate(paths):
            for view, out in zip(two_views(decode_file(path)), batch[:, i]):
                normalize(view.contiguous(), out=out)
        return batch

    return run


def pipelines(batch_size: int) -> dict[str, Pipeline]:
    candidates = {
        AUTHORS: batched(open_with_pil, authors_views()),
        "VISSL's config": vissl_pipeline(),
        "lightly": lightly_pipeline(),
        "ours, plain": batched(open_with_pil, TwoViews(S, backend="pil")),
        "ours, fast": batched(decode_file, TwoViews(S)),
        "ours, fast, batch buffer": into_buffer(batch_size),
        "ours, fast, uint8": batched(decode_file, TwoViews(S, normalize_on_device=True)),
    }
    return {name: pipeline for name, pipeline in candidates.items() if pipeline is not None}


def cumulative(parameters: ViewParameters) -> dict[str, ViewParameters]:
    """The same draw with the operations added one by one."""
    steps = {"crop": ViewParameters(crop=parameters.crop)}
    without_hue = tuple(step for step in parameters.jitter if step[0] != "hue")
    for name, change in {
        "flip": {"flip": parameters.flip},
        "brightness, contrast, saturation": {"jitter": without_hue},
        "hue": {"jitter": parameters.jitter},
        "greyscale": {"grayscale": parameters.grayscale},
        "blur": {"blur_sigma": parameters.blur_sigma},
        "solarise": {"solarize": parameters.solarize},
    }.items():
        steps[name] = replace(list(steps.values())[-1], **change)
    return steps


def profile(backend: str, load: Callable, paths: list[Path], repeats: int) -> dict[str, float]:
    """Milliseconds per image (two views) of each stage, as differences of cumulative times."""
    two_views = TwoViews(S, backend=backend)
    unnormalised = TwoViews(S, backend=backend, normalize_on_device=True)
    height, width = decode_file(paths[0]).shape[:2]

    def draw():
        return [two_views.sample_parameters(height, width, view) for _ in paths for view in (0, 1)]

    random.seed(0)
    images = [image for path in paths for image in [load(path)] * 2]
    steps = [cumulative(parameters) for parameters in draw()]
    names = list(steps[0])

    def apply(transform, name):
        for image, by_name in zip(images, steps):
            transform.apply(image, by_name[name])

    # Each image is dropped before the next, as in a loader: new memory costs more than used memory.
    calls = {"decode": lambda: sum(load(path) is None for path in paths), "draw": draw}
    calls |= {name: partial(apply, unnormalised, name) for name in names}
    calls["normalise"] = partial(apply, two_views, names[-1])
    times = interleaved_times(calls, repeats=repeats, clock=time.process_time)
    total = {name: median(values) / len(paths) * 1000 for name, values in times.items()}
    stages = {name: total[name] for name in ("decode", "draw", "crop")}
    for before, name in itertools.pairwise([*names, "normalise"]):
        stages[name] = total[name] - total[before]
    return stages


def grey_levels(paths: list[Path]) -> dict[str, float]:
    """Mean difference between the fast backend and Pillow, per operation and for whole views."""
    plain, fast = (TwoViews(S, backend=b, normalize_on_device=True) for b in ("pil", "fast"))
    random.seed(0)
    errors: dict[str, list[float]] = {}

    def compare(name, image, parameters):
        a, b = (two_views.apply(image, parameters).float() for two_views in (plain, fast))
        errors.setdefault(name, []).append((a - b).abs().mean().item())

    for path in paths:
        image = open_with_pil(path)
        difference = np.abs(np.asarray(image).astype(int) - decode_file(path))
        errors.setdefault("decode", []).append(difference.mean())
        for view in (0, 1):
            p = fast.sample_parameters(image.height, image.width, view)
            jitter = dict(p.jitter)
            compare("crop", image, ViewParameters(crop=p.crop))
            if jitter:
                others = tuple(step for step in p.jitter if step[0] != "hue")
                compare("brightness, contrast, saturation", image, ViewParameters(jitter=others))
                compare("hue", image, ViewParameters(jitter=(("hue", jitter["hue"]),)))
            if p.blur_sigma is not None:
                compare("blur", image, ViewParameters(blur_sigma=p.blur_sigma))
            compare("whole view", image, p)
        compare("greyscale", image, ViewParameters(grayscale=True))
        compare("solarise", image, ViewParameters(solarize=True))
    return {name: float(np.mean(values)) for name, values in errors.items()}


def measure(size: tuple[int, int], batch_size: int, repeats: int) -> dict[str, dict]:
    """All that is measured on images of (width, height)."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_jpegs(Path(folder), batch_size, size)
        candidates = pipelines(batch_size)
        random.seed(0)
        torch.manual_seed(0)
        calls = {name: partial(run, paths) for name, run in candidates.items()}
        times = interleaved_times(calls, repeats=repeats, clock=time.process_time)
        stages = {
            "pil": profile("pil", open_with_pil, paths, repeats),
            "fast": profile("fast", decode_file, paths, repeats),
        }
        errors = grey_levels(paths)
    ratios = {
        name: {ref: median_ratio(times[ref], values) for ref in TARGETS if ref in times}
        for name, values in times.items()
    }
    return {
        "images_per_second": {name: batch_size / median(values) for name, values in times.items()},
        "ratios": ratios,
        "stages_ms": stages,
        "grey_levels": errors,
    }


def tables(found: Mapping[str, dict]) -> list[str]:
    """The rates, the stages and the differences of one size."""
    rates, ratios, stages = (found[key] for key in ("images_per_second", "ratios", "stages_ms"))
    errors = found["grey_levels"]
    return [
        markdown_table(
            ["pipeline", "images/s", *(f"times {reference}" for reference in TARGETS)],
            [[name, rates[name], *(ratios[name].get(ref) for ref in TARGETS)] for name in rates],
        ),
        markdown_table(
            ["stage", "plain, ms", "fast, ms", "difference, grey levels"],
            [
                [name, stages["pil"].get(name), stages["fast"].get(name), errors.get(name)]
                for name in [*stages["fast"], "whole view"]
            ],
        ),
    ]


def draw_figure(path: Path, results: Mapping[str, dict]) -> None:
    figure, rows = plt.subplots(
        len(results), 2, figsize=(12, 4 * len(results)), layout="constrained", squeeze=False
    )
    for (size, found), (left, right) in zip(results.items(), rows):
        rates, stages = found["images_per_second"], found["stages_ms"]
        names = list(rates)[::-1]
        bars = left.barh(names, [rates[name] for name in names], color="#4878d0")
        ratios = [f"{rates[name] / rates[AUTHORS]:.2f}x" for name in names]
        left.bar_label(bars, ratios, padding=3)
        left.margins(x=0.12)
        left.set_xlabel(f"{size}: images per second on one core (two views each)")
        colors = plt.get_cmap("tab10").colors
        start = np.zeros(len(stages))
        for color, stage in zip(colors, next(iter(stages.values()))):
            lengths = np.array([max(0.0, times[stage]) for times in stages.values()])
            right.barh(list(stages), lengths, left=start, label=stage, color=color)
            start += lengths
        right.set_xlabel(f"{size}: milliseconds per image")
        right.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    batch_size, repeats = (8, 5) if args.quick else (32, 9)
    results = {name: measure(size, batch_size, repeats) for name, size in SIZES.items()}
    write_results(
        args.out,
        "views",
        table="\n\n".join(
            part for name, found in results.items() for part in (f"{name}:", *tables(found))
        ),
        results={"targets": TARGETS, **results},
    )
    draw_figure(args.out / "views.png", results)


if __name__ == "__main__":
    main()
