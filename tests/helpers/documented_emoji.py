"""How the commands of docs/example-emoji.md are run, on digits that stand in for its images."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable

from documented import ROOT, documented, program
from documented_runs import Place

from vissl_barlow.reproduce import __main__ as reproduce
from vissl_barlow.views import __main__ as views

PAGE = ROOT / "docs" / "example-emoji.md"
STAMPS = "/usr/share/tuxpaint/stamps"
CATEGORIES = ("Flags", "Food & Drink", "Component")


def item(first_line: str) -> str:
    """What the page has that begins so."""
    (found,) = (each for each in documented(PAGE.read_text()) if each.startswith(first_line))
    return found


def downloads(place: Place, command: str) -> None:
    """Not run: it fetches from outside. The programs after it read what it leaves."""
    assert re.search(r"^(npm pack|apt-get install) ", command)


def lays_out_emoji(place: Place, command: str) -> None:
    """A third of each category's subcategories is held out, whole."""
    source = sorted((place.digits.imagenet / "train").rglob("*.JPEG"))
    images = place.folder / "package" / "img" / "google" / "64"
    images.mkdir(parents=True)
    listed = []
    for number, image in enumerate(source[:18]):
        shutil.copy(image, images / f"{number}.png")
        one = {"category": CATEGORIES[number % 3], "subcategory": str(number // 3 % 3)}
        listed.append(one | {"image": f"{number}.png", "has_img_google": number != 0})
    (place.folder / "package" / "emoji.json").write_text(json.dumps(listed))
    within(place, lambda: exec(program(PAGE, command), {}))
    found = {}
    for path in (place.folder / "emoji").rglob("*.png"):
        found.setdefault(path.parent.relative_to(place.folder / "emoji").as_posix(), set()).add(
            int(path.stem)
        )
    assert found == {
        "train/Flags": {6, 9, 15},  # 0 has no image
        "val/Flags": {3, 12},
        "train/Food_Drink": {1, 7, 10, 16},
        "val/Food_Drink": {4, 13},
    }


def lays_out_stamps(place: Place, command: str) -> None:
    image = next((place.digits.imagenet / "train").rglob("*.JPEG"))
    for kind in ("animals", "food", "plants", "vehicles"):
        (place.folder / "installed" / kind / "some").mkdir(parents=True)
        for name in ("1.png", "some/1.png", "some/2.png"):
            shutil.copy(image, place.folder / "installed" / kind / name)
    code = program(PAGE, command)
    assert STAMPS in code
    within(place, lambda: exec(code.replace(STAMPS, "installed"), {}))
    for part, count in (("train", 2), ("val", 1)):
        assert len(list((place.folder / "stamps" / part / "plants").iterdir())) == count


def compares_with_pixels(place: Place, command: str) -> None:
    (place.folder / "emoji").symlink_to(place.digits.imagenet)
    output = within(place, lambda: exec(program(PAGE, command), {}))
    found = dict(re.findall(r"^(.+) (\d+\.\d)%$", output, re.MULTILINE))
    assert float(found["pixels KNeighborsClassifier"]) > 90  # digits are easy
    assert len(found) == 4


def prepared(place: Place) -> None:
    for name in ("emoji", "stamps"):
        (place.folder / name).symlink_to(place.digits.imagenet)
    run = place.folder / "own_images" / "emoji"
    run.mkdir(parents=True)
    (run / "checkpoint.torch").symlink_to(place.trunk)
    transforms = "[{name: BarlowTwoViews, size: 32}]"
    data = f"{{DATA_SOURCES: [barlow_own_folder], TRANSFORMS: {transforms}}}"
    (run / "train_config.yaml").write_text(f"DATA: {{TRAIN: {data}}}")


def composes(place: Place, command: str) -> None:
    """Such a pretraining is run as docs/own-images.md has it: here, that the config has the keys."""
    from vissl.utils.hydra_config import compose_hydra_configuration

    compose_hydra_configuration(place.words(command)[3:])


def within(place: Place, call: Callable[[], object]) -> str:
    """What a call prints that runs in the folder, without the seconds that a process takes to start."""
    printed = io.StringIO()
    with contextlib.chdir(place.folder), contextlib.redirect_stdout(printed):
        assert not call()
    return printed.getvalue()


def printed(what: str) -> Callable[[Place, str], None]:
    """Not run, but for what is checked and printed before."""

    def run(place: Place, command: str) -> None:
        prepared(place)
        words = [*place.words(command)[3:], "--dry-run"]
        assert what in within(place, lambda: reproduce.main(words))

    return run


def draws_views(place: Place, command: str) -> None:
    prepared(place)
    within(place, lambda: views.main(place.words(command)[3:]))
    assert (place.folder / "views.png").exists()


REPRODUCE = "python -m vissl_barlow.reproduce"
OWN = f"{REPRODUCE} own --checkpoint own_images/emoji/checkpoint.torch --images"
VIEWS = "config.DATA.TRAIN.TRANSFORMS.0.size=32"
TRUNK = "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.25"
RATE = "config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value=3.0"
EMOJI: dict[str, Callable[[Place, str], None]] = {
    item("npm pack"): downloads,
    item("apt-get install"): downloads,
    item("import json"): lays_out_emoji,
    item("import shutil"): lays_out_stamps,
    item("import numpy"): compares_with_pixels,
    "python -m tools.run_distributed_engines config=pretrain/vissl_barlow/own_images "
    f"config.DATA.TRAIN.DATA_PATHS=[emoji] {VIEWS} {TRUNK} config.OPTIMIZER.num_epochs=40 {RATE}": (
        composes
    ),
    "python -m vissl_barlow.views emoji --config own_images/emoji/train_config.yaml "
    "--out views.png": draws_views,
    f"{OWN} emoji --only knn": printed("own_knn"),
    f"{OWN} emoji --only semi": printed("own_semi"),
    f"{OWN} stamps --out stamps_report --only knn": printed("stamps_report/own/knn/untrained"),
    f"{REPRODUCE} figure3 --data emoji {VIEWS} {TRUNK} {RATE}": printed(
        "config.DATA.TRAIN.TRANSFORMS.0.grayscale_p=0.0"
    ),
}
