"""Laws of the checkpoint converters that hold for all inputs."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from vissl_barlow import checkpoint as ck
from vissl_barlow.resnet import build_trunk


@settings(deadline=None, max_examples=10)
@given(
    some.sampled_from([18, 50]),
    some.permutations(["vissl", "torchvision", "detectron2"]),
    some.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    some.booleans(),
)
def test_converters_compose_to_the_identity(tmp_path_factory, depth, route, dtype, contiguous):
    folder = tmp_path_factory.mktemp("converted")
    with torch.device("meta"):
        shapes = build_trunk(depth).state_dict()
    weights = {}
    for index, (name, tensor) in enumerate(shapes.items()):
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        # One number behind a whole tensor: small files, and a stride of 0.
        value = torch.tensor(index, dtype=kind).expand(tensor.shape)
        weights[name] = value.clone() if contiguous and value.numel() < 5000 else value
    torch.save(weights, folder / "0.pth")
    for step, to in enumerate(route):
        source, target = folder / f"{step}.pth", folder / f"{step + 1}.pth"
        assert ck.main(["--to", to, str(source), str(target)]) == 0
    back = ck.load_trunk(folder / f"{len(route)}.pth")
    assert back.keys() == weights.keys()
    for name, tensor in weights.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
