"""`barlow_stl10`: the images of STL-10 to pretrain on, in its binary format.

VISSL's `torchvision_dataset` has its 5,000 labelled training images alone, and holds all it has in
memory, once per loader worker.
"""

from pathlib import Path

import numpy as np
from torchvision.datasets import STL10

from vissl_barlow.regular_files import regular_size
from vissl_barlow.vissl_plugin.components.data import BarlowSource, register_source
from vissl_barlow.vissl_plugin.errors import ConfigError

# Files, and the images in each.
FILES = {"train_X.bin": 5_000, "unlabeled_X.bin": 100_000}
# An image: planes, columns, rows; "column-major order", as the data set's page says.
SHAPE = (3, 96, 96)
IMAGE_BYTES = 3 * 96 * 96


@register_source("barlow_stl10")
class BarlowStl10(BarlowSource):
    """VISSL data source over STL-10's training and unlabelled images, in this order, read one by one.

    Its path is the folder in which `torchvision.datasets.STL10(FOLDER, download=True)` leaves
    `stl10_binary`.
    """

    def __init__(self, cfg, data_source: str, path: str, split: str, dataset_name: str) -> None:
        super().__init__(cfg, data_source, path, split, dataset_name)
        self.folder = Path(path, STL10.base_folder)
        self.check_files(path, split)

    @staticmethod
    def check_files(path: str, split: str) -> None:
        """Raises ConfigError unless the files of STL-10 in folder `path` are there, and whole."""
        folder = Path(path, STL10.base_folder)
        problems = []
        for name, count in FILES.items():
            wanted = count * IMAGE_BYTES
            try:
                size = regular_size(folder / name)
            except OSError as error:
                problems.append(f"{folder / name}: {error.strerror}")
                continue
            if size != wanted:
                problems.append(
                    f"{folder / name} has {size:,} bytes, and {count:,} images {wanted:,}"
                )
        if problems:
            raise ConfigError(
                f"DATA.{split.upper()}.DATA_PATHS",
                f"[{path}]",
                f"{'; '.join(problems)}; name the folder in which torchvision.datasets.STL10(FOLDER, "
                "download=True) leaves them",
            )

    def __len__(self) -> int:
        return sum(FILES.values())

    def read(self, index: int) -> tuple[np.ndarray, bool]:
        for name, count in FILES.items():
            if index < count:
                path = self.folder / name
                data = np.fromfile(path, np.uint8, IMAGE_BYTES, offset=index * IMAGE_BYTES)
                return np.ascontiguousarray(data.reshape(SHAPE).transpose(2, 1, 0)), True
            index -= count
        raise IndexError(index)
