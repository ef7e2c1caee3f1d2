"""tools/nearest_neighbor_test.py; vissl/utils/knn_utils.py of main."""

import json

import torch
from vissl.utils.checkpoint import get_checkpoint_folder
from vissl.utils.misc import merge_features

from vissl_barlow.atomic_files import write_text_atomically
from vissl_barlow.vissl_plugin.mends.tools import tool_modules
from vissl_barlow.vissl_plugin.wrap import of_barlow_config, wrap

try:
    from vissl.utils import knn_utils
except ImportError:  # VISSL 0.1.6 has all of it in the tool
    knn_utils = None

# Test images whose similarities to all training images are held at once: 1 GB for ImageNet.
KNN_CHUNK = 200


def find_nearest_neighbours_anywhere() -> None:
    """tools/nearest_neighbor_test.py:39: `.cuda()`; :52: `imgs_per_chunk = num_test_images // 100`;
    :90: `correct.narrow(1, 0, 5)`.

    Faults of VISSL 0.1.6: the tool fails on CPUs, with fewer than 100 test images and with fewer than
    5 classes. What replaces it also writes `knn_<layer>.json`. Main (knn_utils.py:248) fails with fewer
    than 100 test images, and says 0 for the top-5 of fewer than 5 classes.
    """
    if knn_utils is not None:
        for name in ("run_knn_at_layer", "run_knn_at_layer_low_memory"):

            @wrap(knn_utils, name, applies=of_barlow_config)
            def run(original, cfg, layer_name="heads"):
                result = _evaluate(cfg, layer_name)
                return result["top_1"], result["top_5"], result["images"]

        return
    for module in tool_modules("nearest_neighbor_test"):

        @wrap(module, "nearest_neighbor_test", applies=of_barlow_config)
        def replacement(original, cfg, layer_name="heads"):
            return nearest_neighbor_test(cfg, layer_name)


def nearest_neighbor_test(cfg, layer_name: str = "heads") -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent of a weighted vote of the nearest training images.

    A neighbour of similarity s votes with exp(s / SIGMA); TOPK neighbours vote, or all images if
    there are fewer (`config.NEAREST_NEIGHBOR`). With fewer than 5 classes top-5 is 100.
    """
    result = _evaluate(cfg, layer_name)
    return result["top_1"], result["top_5"]


def _evaluate(cfg, layer_name: str) -> dict:
    options = cfg.NEAREST_NEIGHBOR
    folder = get_checkpoint_folder(cfg)
    features_in = options.get("FEATURES", {}).get("PATH") or folder  # a key of main's
    device = torch.device("cuda" if cfg.MACHINE.DEVICE == "gpu" else "cpu")

    def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        merged = merge_features(features_in, split, layer_name)
        features = torch.from_numpy(merged["features"]).float().flatten(1).to(device)
        if broken := int((~features.isfinite()).any(dim=1).sum()):
            raise FloatingPointError(
                f"the features of {broken} of {len(features)} {split} images are not finite, and have "
                "no neighbours; take a checkpoint from before its training diverged"
            )
        if options.L2_NORM_FEATS:
            features = torch.nn.functional.normalize(features)
        return features, torch.from_numpy(merged["targets"]).long().flatten().to(device)

    features, labels = load("train")
    test_features, test_labels = load("test")
    classes = int(labels.max()) + 1
    neighbours = min(options.TOPK, len(labels))
    correct = torch.zeros(2, device=device)
    for queries, targets in zip(test_features.split(KNN_CHUNK), test_labels.split(KNN_CHUNK)):
        similarities, indices = (queries @ features.T).topk(neighbours)
        # The largest similarity taken off: exp() cannot overflow, and all votes scale alike.
        weights = ((similarities - similarities[:, :1]) / options.SIGMA).exp()
        votes = torch.zeros(len(queries), classes, device=device)
        votes.scatter_add_(1, labels[indices], weights)
        ranked = votes.topk(min(5, classes)).indices == targets[:, None]
        correct += torch.stack([ranked[:, 0].sum(), ranked.sum()])
    top1, top5 = (100 * correct / len(test_labels)).tolist()
    result = {
        "top_1": top1,
        "top_5": top5,
        "neighbours": neighbours,
        "images": len(test_labels),
        "classes": len(labels.unique()),
    }
    write_text_atomically(f"{folder}/knn_{layer_name}.json", json.dumps(result, indent=2))
    # The tool has closed its log by now.
    print(f"{layer_name} k-NN top-1: {top1:.2f}, top-5: {top5:.2f}", flush=True)
    return result
