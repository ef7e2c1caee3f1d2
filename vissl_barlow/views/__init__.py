"""The two-view augmentation (paper 2.2, BYOL's parameters); `two_views.py` is what to open first.

`parameters.py` draws the random choices of one view, `opencv.py` and `pillow.py` apply them, and
`normalize.py` ends on the tensors the model reads. Importable without VISSL.

Command line: `python -m vissl_barlow.views FOLDER --out views.png` draws the views of a config.
"""

from vissl_barlow.views.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize
from vissl_barlow.views.parameters import Rng, ViewParameters, view_seed
from vissl_barlow.views.two_views import BACKENDS, INTERPOLATIONS, TwoViews

__all__ = [
    "BACKENDS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "Rng",
    "TwoViews",
    "ViewParameters",
    "normalize",
    "view_seed",
]
