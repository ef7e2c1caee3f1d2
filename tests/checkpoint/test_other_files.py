"""Files that torch did not write: safetensors, and pickles of numpy arrays."""

import json
import os
import pickle
import struct
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from trunks import assert_same, convert, prefixed

from vissl_barlow import checkpoint as ck


@pytest.mark.parametrize("name", ["model.safetensors", "renamed.pth"])
def test_safetensors_are_read_whatever_their_name(tmp_path, resnet18, name):
    content = dict(resnet18.state_dict()) | {"fc.weight": torch.ones(2, 2)}
    save_file(content, tmp_path / name, metadata={"format": "pt"})
    assert_same(ck.load_trunk(tmp_path / name), resnet18.state_dict())
    assert convert(tmp_path / name, tmp_path / "out.torch", "vissl") == 0
    assert_same(ck.load_trunk(tmp_path / "out.torch"), resnet18.state_dict())


def test_safetensors_with_two_trunks(tmp_path, resnet18):
    query = {name: tensor + 1 for name, tensor in resnet18.state_dict().items()}
    content = prefixed("encoder_q.", query) | prefixed("encoder_k.", resnet18.state_dict())
    save_file(content, tmp_path / "moco.safetensors")
    assert_same(ck.load_trunk(tmp_path / "moco.safetensors"), query)
    assert_same(ck.load_trunk(tmp_path / "moco.safetensors", "encoder_k"), resnet18.state_dict())


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (2**63, {}),  # declared, far longer than the file
        (10**8 - 1, entry()),
        (None, entry(shape=(2**40,), offsets=(0, 2**42))),
        (None, entry(shape=(2**62, 2**62))),
        (None, entry(shape=(4,))),
        (None, entry(offsets=(8, 0))),
        (None, entry(offsets=(0, 2**64 - 1))),
        (None, entry(dtype="OBJECT")),
        (None, {"a": 3}),
        (None, []),
    ],
)
def test_safetensors_that_declare_what_is_not_there_are_refused(tmp_path, length, header):
    text = json.dumps(header).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(8))
    with pytest.raises(
        ck.CheckpointError, match=r"bad\.safetensors: damaged, truncated"
    ) as refused:
        ck.load_trunk(path)
    assert "\n" not in str(refused.value)


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_headers_of_safetensors_are_refused_or_harmless(tmp_path, data):
    path = tmp_path / "damaged.safetensors"
    save_file({"weight": torch.arange(4.0), "bias": torch.ones(2)}, path)
    damaged = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(damaged) - 25))
    if data.draw(st.booleans()):
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[at:]
    path.write_bytes(damaged)
    try:
        content = ck.read_checkpoint(path)
    except ck.CheckpointError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert all(tensor.nbytes <= 24 for tensor in content.values())


def test_without_safetensors_one_line_says_to_install_it(tmp_path, monkeypatch):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ck.CheckpointError, match=r"not installed: pip install safetensors$"):
        ck.load_trunk(tmp_path / "a.safetensors")


class Code:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


CAFFE2 = {"conv1_w": np.ones((64, 3, 7, 7), "f4"), "res2_0_branch2a_w": np.ones((2, 2), "f4")}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_caffe2_pickles_are_refused_with_the_command_that_converts(tmp_path, protocol, nested):
    blobs = CAFFE2 | {"lr": np.ones(1, "f4"), "zz": Code(tmp_path / "ran")}
    (tmp_path / "c2.pkl").write_bytes(pickle.dumps({"blobs": blobs} if nested else blobs, protocol))
    with pytest.raises(ck.CheckpointError) as refused:
        ck.load_trunk(tmp_path / "c2.pkl")
    message = str(refused.value)
    assert message.startswith(f"{tmp_path}/c2.pkl: a Caffe2 model in a pickle of numpy arrays")
    assert (
        "-m extra_scripts.convert_caffe2_to_torchvision_resnet --bgr2rgb true --c2_model" in message
    )
    assert "\n" not in message
    assert not (tmp_path / "ran").exists()


def test_what_vissls_converter_writes_is_read(tmp_path, resnet50, monkeypatch):
    """The command that the refusal names, on the blobs of a Caffe2 ResNet-50."""
    from extra_scripts import convert_caffe2_to_torchvision_resnet as converter

    blobs = {}
    for name, tensor in resnet50.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        for ours, theirs in [
            *((f"layer{s}.", f"res{s + 1}_") for s in (1, 2, 3, 4)),
            ("downsample.0", "branch1"),
            ("downsample.1", "branch1_bn"),
            *((f".conv{i}.", f"_branch2{'abc'[i - 1]}.") for i in (1, 2, 3)),
            *((f".bn{i}.", f"_branch2{'abc'[i - 1]}_bn.") for i in (1, 2, 3)),
            ("bn1.", "res_conv1_bn."),
            ("_bn.weight", "_bn_s"),
            (".weight", "_w"),
            ("running_mean", "rm"),
            ("running_var", "riv"),
            (".bias", "_b"),
            (".", "_"),
        ]:
            name = name.replace(ours, theirs)
        blobs[name] = tensor.numpy()
    blobs["conv1_w"] = blobs["conv1_w"][:, ::-1].copy()  # blue first
    (tmp_path / "c2.pkl").write_bytes(pickle.dumps({"blobs": blobs}, 2))
    with pytest.raises(ck.CheckpointError) as refused:
        ck.load_trunk(tmp_path / "c2.pkl")
    command = str(refused.value).split("python -m ")[1].split(" (VISSL's)")[0].split()
    command = [word.replace("OUT.pth", str(tmp_path / "out.pth")) for word in command]
    monkeypatch.setattr(sys, "argv", command)
    converter.main()
    expected = {k: v for k, v in resnet50.state_dict().items() if "num_batches" not in k}
    assert_same(ck.load_trunk(tmp_path / "out.pth"), expected)


def test_numpy_pickles_for_detectron2_are_refused_with_a_remedy(tmp_path):
    """solo-learn's and MoCo's converters write them."""
    model = {"stem.conv1.weight": np.ones((64, 3, 7, 7), "f4"), "res2.0.conv1.weight": np.ones(2)}
    content = {"model": model, "__author__": "solo-learn", "matching_heuristics": True}
    (tmp_path / "d2.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(
        ck.CheckpointError, match=r"d2\.pkl: a pickle of numpy .* take the checkpoint"
    ):
        ck.load_trunk(tmp_path / "d2.pkl")
