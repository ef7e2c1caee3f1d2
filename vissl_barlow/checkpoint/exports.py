"""A trunk in the formats of others' programs, as the bytes of a file: safetensors and ONNX."""

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from vissl_barlow.checkpoint.architecture import trunk_depth
from vissl_barlow.checkpoint.torch_file import CheckpointError
from vissl_barlow.resnet import build_trunk

# Packages that ONNX needs, which the extra `export` brings.
ONNX_PACKAGES = ("onnx", "onnxruntime")
ONNX_INPUT, ONNX_OUTPUT = "images", "representations"
# Between torch's numbers and onnxruntime's, of representations of the order of 1.
_ONNX_TOLERANCE = 1e-5


def to_safetensors(state_dict: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of this trunk, in the names it has, as timm and Hugging Face's hub read them.

    The format knows neither strides nor shared memory: each tensor is written row by row, for itself.
    """
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
    }
    return save(tensors, metadata={"format": "pt"})


def to_onnx(state_dict: Mapping[str, Tensor]) -> bytes:
    """An ONNX model of this trunk (torchvision's names) in evaluation mode, in float32.

    Its input `images` is (N, 3, H, W), normalised as in training (`vissl_barlow.views.normalize`), its
    output `representations` (N, R); N, H and W are free. The model is run by onnxruntime once, on
    images of another number and size than it was traced with, and compared with torch.

    Raises:
        CheckpointError: onnx or onnxruntime is not installed, or its numbers are others than torch's.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CheckpointError(
            f"ONNX needs {' and '.join(missing)}, not installed: pip install {' '.join(ONNX_PACKAGES)}"
        )
    import onnxruntime

    depth, small_stem, width = trunk_depth(state_dict)
    trunk = build_trunk(depth, small_stem=small_stem, width_multiplier=width).eval()
    trunk.load_state_dict(dict(state_dict), strict=False)
    generator = torch.Generator().manual_seed(0)
    traced = torch.randn(2, 3, 64, 64, generator=generator)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        # The exporter by tracing, which torch calls legacy: the newer one wants onnxscript as well.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        path = Path(folder, "trunk.onnx")
        torch.onnx.export(
            trunk,
            (traced,),
            str(path),
            dynamo=False,
            input_names=[ONNX_INPUT],
            output_names=[ONNX_OUTPUT],
            dynamic_axes={
                ONNX_INPUT: {0: "images", 2: "height", 3: "width"},
                ONNX_OUTPUT: {0: "images"},
            },
        )
        model = path.read_bytes()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 96, 32, generator=generator)
    with torch.no_grad():
        expected = trunk(images).numpy()
    (found,) = session.run([ONNX_OUTPUT], {ONNX_INPUT: images.numpy()})
    difference = np.abs(found - expected).max() / max(np.abs(expected).max(), 1)
    if not difference <= _ONNX_TOLERANCE:
        raise CheckpointError(
            f"the ONNX model differs from the trunk by {difference:.2g}: not written; try another "
            "version of torch or onnxruntime"
        )
    return model
