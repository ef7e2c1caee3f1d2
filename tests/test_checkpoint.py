import contextlib
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from vissl_barlow import checkpoint as ck

# The same float32 convolutions on the same machine; room for another algorithm's choice of order.
SAME_OUTPUT = 1e-6


def resnet(depth, small_stem=False):
    """Trunk with statistics of its own in every BN layer, so that no two tensors can be swapped."""
    torch.manual_seed(depth)
    model = getattr(torchvision.models, f"resnet{depth}")()
    model.fc = nn.Identity()
    if small_stem:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.8, 1.2)
            layer.num_batches_tracked.fill_(12_345)
    return model.eval()


@pytest.fixture(scope="module")
def resnet18():
    return resnet(18)


@pytest.fixture(scope="module")
def resnet50():
    return resnet(50)


def features(model, *arguments):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(images, *arguments)


def prefixed(prefix, state_dict):
    return {prefix + name: tensor for name, tensor in state_dict.items()}


def vissl_training_checkpoint(trunk, prefix="_feature_blocks."):
    heads = {"0.clf.0.weight": torch.ones(4, 2), "0.clf.0.bias": torch.ones(4)}
    model = {"model": {"trunk": prefixed(prefix, trunk), "heads": heads}, "meta": {"trunk": {}}}
    return {
        "phase_idx": 3,
        "iteration": 12,
        "loss": 0.5,
        "type": "consolidated",
        "classy_state_dict": {"base_model": model, "optimizer": {"momentum": torch.ones(3)}},
    }


def authors_training_checkpoint(trunk):
    projector = {
        "module.projector.0.weight": torch.ones(8, 2),
        "module.bn.running_mean": torch.ones(2),
    }
    optimizer = {"state": {0: {"mu": torch.zeros(3)}}, "param_groups": [{"lr": 0.2, "params": [0]}]}
    model = prefixed("module.backbone.", trunk) | projector
    return {"epoch": 1000, "model": model, "optimizer": optimizer}


LAYOUTS = {
    "authors' resnet50.pth": dict,
    "authors' checkpoint.pth": authors_training_checkpoint,
    "torchvision with fc": lambda trunk: (
        trunk | {"fc.weight": torch.ones(9, 2), "fc.bias": torch.ones(9)}
    ),
    "Lightning": lambda trunk: {"state_dict": prefixed("encoder.", trunk), "epoch": 1},
    "MoCo, query only": lambda trunk: {
        "state_dict": prefixed("module.encoder_q.", trunk | {"fc.0.weight": torch.ones(2, 2)}),
        "arch": "resnet18",
    },
    "VISSL": vissl_training_checkpoint,
    "VISSL feature extractor": lambda trunk: vissl_training_checkpoint(
        trunk, "base_model._feature_blocks."
    ),
    "VISSL converted zoo": lambda trunk: {"model_state_dict": prefixed("_feature_blocks.", trunk)},
    "VISSL whole model": lambda trunk: (
        prefixed("trunk._feature_blocks.", trunk) | {"heads.0.clf.0.weight": torch.ones(2, 2)}
    ),
}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_reads_every_layout(tmp_path, resnet18, layout, zipped):
    trunk = dict(resnet18.state_dict())
    path = tmp_path / "in.pth"
    torch.save(LAYOUTS[layout](trunk), path, _use_new_zipfile_serialization=zipped)
    assert_same(ck.load_trunk(path), trunk)


def convert(source, target, to, *options):
    return ck.main(["--to", to, *options, str(source), str(target)])


@pytest.mark.parametrize("depth", [18, 50])
def test_every_pair_of_formats_is_lossless(tmp_path, depth, request):
    model = request.getfixturevalue(f"resnet{depth}")
    torch.save(model.state_dict(), tmp_path / "0")
    # A circuit through each ordered pair of the three formats, starting from torchvision.
    circuit = ["vissl", "detectron2", "torchvision", "detectron2", "vissl", "torchvision"]
    for step, to in enumerate(circuit):
        assert convert(tmp_path / str(step), tmp_path / str(step + 1), to) == 0
    final = torch.load(tmp_path / str(len(circuit)), weights_only=True)
    assert_same(final, model.state_dict())
    arrived = getattr(torchvision.models, f"resnet{depth}")()
    arrived.fc = nn.Identity()
    arrived.load_state_dict(final, strict=True)
    assert torch.equal(features(arrived.eval()), features(model))


def test_detectron2_names_are_those_of_its_resnet(resnet50):
    written = ck.to_detectron2(resnet50.state_dict())
    assert written["matching_heuristics"] is True
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    convolutions = {"stem.conv1": (64, 3, 7, 7)}
    channels = 64
    for stage, blocks, width in [(2, 3, 64), (3, 4, 128), (4, 6, 256), (5, 3, 512)]:
        for block in range(blocks):
            convolutions |= {
                f"res{stage}.{block}.conv1": (width, channels, 1, 1),
                f"res{stage}.{block}.conv2": (width, width, 3, 3),
                f"res{stage}.{block}.conv3": (4 * width, width, 1, 1),
            }
            if block == 0:
                convolutions[f"res{stage}.0.shortcut"] = (4 * width, channels, 1, 1)
            channels = 4 * width
    expected = {f"{name}.weight": shape for name, shape in convolutions.items()}
    for name, shape in convolutions.items():
        for field in norm:
            expected[f"{name}.norm.{field}"] = () if field == norm[-1] else shape[:1]
    assert {name: tuple(t.shape) for name, t in written["model"].items()} == expected
    assert sum("num_batches_tracked" not in name for name in written["model"]) == 265
    # Pairs of equal shape, which the shapes above cannot tell apart.
    for theirs, ours in {
        "stem.conv1.norm.bias": "bn1.bias",
        "res2.0.conv1.norm.weight": "layer1.0.bn1.weight",
        "res2.0.conv2.norm.weight": "layer1.0.bn2.weight",
        "res5.0.conv3.norm.running_mean": "layer4.0.bn3.running_mean",
        "res5.0.shortcut.norm.running_mean": "layer4.0.downsample.1.running_mean",
        "res4.5.conv2.weight": "layer3.5.conv2.weight",
    }.items():
        assert torch.equal(written["model"][theirs], resnet50.state_dict()[ours])


def test_detectron2_without_num_batches_tracked_is_read(tmp_path, resnet18):
    written = ck.to_detectron2(resnet18.state_dict())
    kept = {k: v for k, v in written["model"].items() if "num_batches_tracked" not in k}
    torch.save(written | {"model": kept}, tmp_path / "frozen.pth")
    trunk = ck.load_trunk(tmp_path / "frozen.pth")
    ck.check_fits(trunk, resnet18)
    resnet18_again = torchvision.models.resnet18()
    resnet18_again.fc = nn.Identity()
    resnet18_again.load_state_dict(trunk, strict=True)
    assert torch.equal(features(resnet18_again.eval()), features(resnet18))


@pytest.mark.parametrize("small_stem", [False, True])
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_depth_is_told_from_names_and_shapes(depth, small_stem):
    with torch.device("meta"):
        trunk = resnet(depth, small_stem).state_dict()
    assert ck.trunk_depth(trunk) == (depth, small_stem, 1)


def test_width_is_told_as_vissl_widens():
    from vissl.models.trunks.resnext import ResNeXt

    config = vissl_model_config()
    config.TRUNK.RESNETS.WIDTH_MULTIPLIER = 2
    with torch.device("meta"):
        trunk = ResNeXt(config, "resnet").state_dict()
    names = {name.removeprefix("_feature_blocks."): tensor for name, tensor in trunk.items()}
    assert ck.trunk_depth(names) == (50, False, 2)


def test_small_stem_travels_but_not_to_detectron2(tmp_path, capsys):
    model = resnet(18, small_stem=True)
    torch.save(model.state_dict(), tmp_path / "a")
    assert convert(tmp_path / "a", tmp_path / "b", "vissl") == 0
    assert_same(ck.load_trunk(tmp_path / "b"), model.state_dict())
    assert convert(tmp_path / "b", tmp_path / "c", "detectron2") == 1
    assert "small stem" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def vissl_model_config(**feature_eval):
    import vissl.config
    from omegaconf import OmegaConf

    defaults = Path(vissl.config.__file__).with_name("defaults.yaml")
    config = OmegaConf.to_container(OmegaConf.load(defaults))["config"]["MODEL"]
    config["FEATURE_EVAL_SETTINGS"] |= feature_eval
    return vissl.config.AttrDict(config)


def test_vissls_own_trunk_loads_the_file_and_agrees(tmp_path, resnet50):
    from vissl.models.trunks.resnext import ResNeXt

    torch.save(resnet50.state_dict(), tmp_path / "resnet50.pth")
    assert convert(tmp_path / "resnet50.pth", tmp_path / "vissl.torch", "vissl") == 0
    written = torch.load(tmp_path / "vissl.torch", weights_only=True)
    trunk = ResNeXt(vissl_model_config(), "resnet").eval()
    trunk.load_state_dict(written["classy_state_dict"]["base_model"]["model"]["trunk"], strict=True)
    (output,) = features(trunk, ["res5avg"])
    torch.testing.assert_close(output.flatten(1), features(resnet50), rtol=0, atol=SAME_OUTPUT)
    torch.save(vissl_training_checkpoint(trunk.state_dict(), prefix=""), tmp_path / "trained.torch")
    assert_same(ck.load_trunk(tmp_path / "trained.torch"), resnet50.state_dict())


@pytest.mark.parametrize("extractor", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_vissl_initialises_its_models_from_every_layout(tmp_path, resnet18, layout, extractor):
    from vissl.config import AttrDict
    from vissl.utils.checkpoint import get_checkpoint_model_state_dict

    torch.save(LAYOUTS[layout](dict(resnet18.state_dict())), tmp_path / "in")
    pooling = [["res5avg", ["Identity", []]]] if extractor else []
    model = vissl_model_config(
        EVAL_MODE_ON=extractor, FREEZE_TRUNK_ONLY=extractor, LINEAR_EVAL_FEAT_POOL_OPS_MAP=pooling
    )
    checkpoint = ck.as_vissl_checkpoint(tmp_path / "in")
    weights = get_checkpoint_model_state_dict(
        AttrDict({"MODEL": model}), checkpoint["classy_state_dict"]
    )
    prefix = "trunk.base_model._feature_blocks." if extractor else "trunk._feature_blocks."
    heads = {name: weights.pop(name) for name in list(weights) if name.startswith("heads.")}
    assert_same(weights, prefixed(prefix, resnet18.state_dict()))
    assert len(heads) == (2 if layout in ("VISSL", "VISSL feature extractor") else 0)


def test_vissl_checkpoints_of_other_architectures_pass_through(tmp_path):
    sharded = {"type": "shard_list", "shards": ["a_shard0.torch"]}
    torch.save(sharded, tmp_path / "sharded")
    assert ck.as_vissl_checkpoint(tmp_path / "sharded") == sharded
    model = {"model": {"trunk": {"pos_embed": torch.ones(2)}, "heads": {}}}
    torch.save({"classy_state_dict": {"base_model": model}}, tmp_path / "vit")
    passed = ck.as_vissl_checkpoint(tmp_path / "vit")["classy_state_dict"]["base_model"]["model"]
    assert_same(passed["trunk"], model["model"]["trunk"])
    with pytest.raises(ck.CheckpointError, match="convert_sharded_checkpoint"):
        ck.load_trunk(tmp_path / "sharded")


class Code:
    """Creates a folder when unpickled without care."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_files_with_code_are_refused_and_do_not_run(tmp_path, resnet18):
    witness = tmp_path / "ran"
    malicious = {"state_dict": dict(resnet18.state_dict()), "hyper_parameters": Code(witness)}
    torch.save(malicious, tmp_path / "zip.pth")
    torch.save(malicious, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        (tmp_path / f"bare{protocol}.pkl").write_bytes(pickle.dumps(Code(witness), protocol))
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    reasons = {
        "zip.pth": r"refused: it holds posix.mkdir.*ask its author",
        "old.pth": r"refused: it holds posix.mkdir.*ask its author",
        "bare2.pkl": r"refused: it holds posix.mkdir",
        f"bare{pickle.HIGHEST_PROTOCOL}.pkl": r"bare pickle",
        "script.pt": r"TorchScript.*state_dict",
    }
    for name, reason in reasons.items():
        for read in (ck.load_trunk, ck.as_vissl_checkpoint):
            with pytest.raises(ck.CheckpointError, match=rf"{name}: .*{reason}"):
                read(tmp_path / name)
    assert not witness.exists()


SMALL = {"epoch": 3, "model": {"weight": torch.arange(300.0)}, "names": ["a", "b"]}


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "small.pth"
    torch.save(SMALL, path)
    return path


def assert_refused_or_intact(path):
    try:
        content = ck.read_checkpoint(path)
    except ck.CheckpointError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert content["epoch"] == 3 and content["names"] == ["a", "b"]
        assert_same(content["model"], SMALL["model"])


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path, small_file, data):
    whole = small_file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["flip", "zero", "cut"]))
    damaged = bytearray(whole)
    if kind == "flip":
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "zero":
        damaged[at : at + 64] = bytes(len(damaged[at : at + 64]))
    else:
        del damaged[at:]
    path = tmp_path / "damaged.pth"
    path.write_bytes(damaged)
    assert_refused_or_intact(path)


def test_flipped_bit_inside_a_tensor_is_noticed(tmp_path, small_file):
    damaged = bytearray(small_file.read_bytes())
    at = damaged.find(SMALL["model"]["weight"].numpy().tobytes())
    damaged[at + 100] ^= 4
    (tmp_path / "flipped.pth").write_bytes(damaged)
    assert torch.load(tmp_path / "flipped.pth", weights_only=True)["epoch"] == 3
    with pytest.raises(ck.CheckpointError, match="checksum"):
        ck.read_checkpoint(tmp_path / "flipped.pth")


@pytest.mark.parametrize("content", [b"", b"epoch,loss\n1,2\n", b"<!DOCTYPE html>", bytes(99)])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(ck.CheckpointError, match=r"other\.pth: .+") as refused:
        ck.load_trunk(tmp_path / "other.pth")
    assert "\n" not in str(refused.value)


def without(state_dict, *names):
    return {name: tensor for name, tensor in state_dict.items() if name not in names}


def test_a_trunk_that_does_not_fit_says_where(tmp_path, resnet18, resnet50):
    # Full shapes over a single stored number: small files.
    trunk = {k: v.new_zeros(()).expand(v.shape) for k, v in resnet50.state_dict().items()}
    wide = trunk | {"layer1.0.conv1.weight": torch.ones(128, 64, 1, 1)}
    unfit = {
        "no conv1": (without(trunk, "conv1.weight"), r"ResNet-50: 1 missing: conv1\.weight$"),
        "several gone": (
            {
                k: v
                for k, v in trunk.items()
                if not k.startswith("layer2.1.conv1") and "4.2.bn2" not in k
            },
            r"ResNet-50: 5 missing: layer2\.1\.conv1\.weight, layer4\.2\.bn2\.weight, "
            r"layer4\.2\.bn2\.bias, layer4\.2\.bn2\.running_mean, \.\.\.$",
        ),
        "extra": (trunk | {"attention.weight": torch.ones(1)}, "1 unexpected: attention.weight"),
        "wide": (
            wide,
            r"another shape: layer1\.0\.conv1\.weight \(128, 64, 1, 1\) instead of \(64",
        ),
        "no trunk": ({"a": torch.ones(1)}, "no ResNet trunk at its top level; names there: a$"),
        "nothing": ({}, "names there: none"),
        "list": ([trunk], "holds a list"),
        "nested": (
            {"classy_state_dict": {"base_model": 3}},
            "no dict at classy_state_dict.base_model",
        ),
        "twins": (
            {"state_dict": prefixed("student.", trunk) | prefixed("teacher.", trunk)},
            r"2 ResNet trunks under its state_dict, with the prefixes student\., teacher\.",
        ),
    }
    for name, (content, message) in unfit.items():
        path = tmp_path / name
        torch.save(content, path)
        with pytest.raises(ck.CheckpointError, match=message) as refused:
            ck.load_trunk(path)
        assert str(refused.value).startswith(f"{path}: ")
    ck.check_fits(trunk, resnet50)
    with pytest.raises(
        ck.CheckpointError, match=r"does not fit ResNet: .* unexpected: .*layer1\.0\.conv3"
    ):
        ck.check_fits(trunk, resnet18)


def test_command_line_reports_and_refuses_in_one_line(tmp_path, resnet18, capsys):
    source, target = tmp_path / "in.pth", tmp_path / "out.torch"
    torch.save(authors_training_checkpoint(resnet18.state_dict()), source)
    assert convert(source, target, "vissl") == 0
    report = capsys.readouterr().out
    assert report.count("\n") == 1
    for part in ("authors", "ResNet-18", "120 tensors", "2 beside", str(target), "vissl"):
        assert part in report

    before = target.read_bytes()
    refusals = {
        "--force replaces it": (source, target, "torchvision"),
        "No such file": (tmp_path / "gone", tmp_path / "new", "vissl"),
        "No such file or directory: '" + str(tmp_path / "no"): (
            source,
            tmp_path / "no" / "x",
            "vissl",
        ),
        "name it .pth": (source, tmp_path / "r50.pkl", "detectron2"),
    }
    for reason, arguments in refusals.items():
        assert convert(*arguments) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert reason in err
    assert target.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["in.pth", "out.torch"]

    assert convert(source, target, "torchvision", "--force") == 0
    assert_same(torch.load(target, weights_only=True), resnet18.state_dict())


@contextlib.contextmanager
def files_limited_to(n_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failed_save_keeps_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model_phase3.torch"
    ck.save_atomically(SMALL, path)
    # A limit on file sizes stands for a full disk: the system refuses the write half-way.
    with files_limited_to(100_000), pytest.raises(OSError, match=r"File too large.*model_phase3"):
        ck.save_atomically({"weight": torch.zeros(1_000_000)}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        ck.save_atomically({"weight": torch.zeros(3), "code": lambda: None}, path)
    with pytest.raises(FileNotFoundError, match="missing/x"):
        ck.save_atomically(SMALL, tmp_path / "missing" / "x")
    assert_refused_or_intact(path)
    assert os.listdir(tmp_path) == [path.name]


def test_save_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace

    def recorded_sync(descriptor):
        mode = os.fstat(descriptor)
        events.append("folder" if stat.S_ISDIR(mode.st_mode) else mode.st_size)
        sync(descriptor)

    def recorded_replace(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    path = tmp_path / "x.pth"
    umask = os.umask(0o027)
    try:
        ck.save_atomically(SMALL, path)
    finally:
        os.umask(umask)
    assert events == [path.stat().st_size, "rename", "folder"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_kill_before_the_rename_leaves_the_old_file_for_vissl(tmp_path):
    from vissl.config import AttrDict
    from vissl.utils.checkpoint import get_checkpoint_resume_files

    old, new = tmp_path / "model_phase3.torch", tmp_path / "model_final_checkpoint_phase4.torch"
    ck.save_atomically(SMALL, old)
    script = (
        "import os, signal, sys; from vissl_barlow.checkpoint import save_atomically\n"
        "os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_atomically({'epoch': 4}, sys.argv[1])"
    )
    killed = subprocess.run([sys.executable, "-c", script, new], cwd=Path(__file__).parents[1])
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    config = AttrDict({"CHECKPOINT": {"CHECKPOINT_ITER_FREQUENCY": -1}})
    assert get_checkpoint_resume_files(str(tmp_path), config) == old.name
    assert ck.remove_leftovers(tmp_path) == 1
    assert os.listdir(tmp_path) == [old.name]


def test_a_link_is_replaced_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    link = tmp_path / "checkpoint.torch"
    link.symlink_to(outside)
    ck.save_atomically(SMALL, link)
    assert outside.read_text() == "precious"
    assert not link.is_symlink()
    assert_refused_or_intact(link)
