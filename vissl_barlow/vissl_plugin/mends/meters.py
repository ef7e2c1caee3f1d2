"""vissl/meters/mean_ap_meter.py, on which mean_ap_list_meter rests."""

import inspect

import numpy as np
from vissl.meters import mean_ap_meter
from vissl.meters.mean_ap_meter import MeanAPMeter

from vissl_barlow.distributed import all_gather_rows, batch_sizes
from vissl_barlow.vissl_plugin.wrap import in_barlow_run, overlay, wrap


def compute_mean_average_precision() -> None:
    """vissl/meters/mean_ap_meter.py:68: `np.float`.

    Broken since numpy 1.24, which removed it. The meter takes the AP out of VISSL's own array of one
    element, so it gets the function that gives one (see `svm_tools.compute_svm_average_precision`).
    """
    overlay(mean_ap_meter, "np", float=np.float64)
    mean_ap_meter.get_precision_recall = inspect.unwrap(mean_ap_meter.get_precision_recall)


def gather_scores_of_unequal_numbers() -> None:
    """vissl/meters/mean_ap_meter.py:86 and 98: `gather_from_all`.

    A fault of VISSL 0.1.6: it wants as many images on all processes, which takes padding, and images
    that are counted twice.
    """
    for name in ("gather_scores", "gather_targets"):

        @wrap(MeanAPMeter, name, applies=in_barlow_run)
        def gather(original, meter, rows):
            return all_gather_rows(rows, batch_sizes(len(rows)))
