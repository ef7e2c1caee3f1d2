"""The overlays of sections 4 and 5: what each changes, on both bases, and their command line."""

import argparse
import copy
import json
import shlex
from pathlib import Path

import pytest
import torch
from pretend_runs import experiment, probed
from torch.nn import functional as F
from vissl_runs import ANYWHERE, resolve

from vissl_barlow.paths import config_folder
from vissl_barlow.reproduce import ablations
from vissl_barlow.reproduce.__main__ import main
from vissl_barlow.vissl_plugin.errors import ConfigError

PRETRAIN = "pretrain/vissl_barlow"
HEADS = "MODEL.HEAD.PARAMS"
LR = "OPTIMIZER.param_schedulers.lr"
PROJECTOR = {"in_dim": 2048, "dims": [8192, 8192, 8192]}
NO_BN = {HEADS: [["barlow_projector", {**PROJECTOR, "use_bn": False}]]}
PREDICTOR = [
    ["barlow_projector", PROJECTOR],
    ["barlow_predictor", {"in_dim": 8192, "dims": [8192, 8192]}],
]


def _objective(name, world=32, **options):
    section = {
        "objective": name,
        **options,
        "reference_world_size": world,
    }
    prefixed = {f"LOSS.barlow_objective.{key}": value for key, value in section.items()}
    return {"LOSS.name": "barlow_objective", **prefixed}


BYOL = {
    "DATA.TRAIN.BATCHSIZE_PER_REPLICA": 128,
    "MODEL.BASE_MODEL_NAME": "barlow_byol_model",
    "MODEL.TARGET_MOMENTUM": 0.99,
    HEADS: [
        ["barlow_projector", {"in_dim": 2048, "dims": [4096, 256]}],
        ["barlow_predictor", {"in_dim": 256, "dims": [4096, 256]}],
    ],
    "LOSS.name": "barlow_byol_loss",
    "LOSS.barlow_byol_loss.reference_world_size": 1,
    "OPTIMIZER.bias_lr_scale": 1.0,
    "OPTIMIZER.weight_decay": 1.0e-6,
    f"{LR}.auto_lr_scaling.base_value": 0.3,
    f"{LR}.start_value": 0.3,
    f"{LR}.end_value": 0.0,
}
# What each overlay changes in the 300-epoch baseline, the checkpoints' folder aside.
CHANGES = {
    "ablations/only_invariance": {"LOSS.barlow_loss.lambda_": 0.0},
    "ablations/only_redundancy": _objective("weighted_terms", invariance_weight=0.0, lambda_=0.005),
    "ablations/feature_normalisation": _objective("feature_normalised", radius=1.0, lambda_=0.005),
    "ablations/no_bn": NO_BN,
    "ablations/no_bn_no_normalisation": {**NO_BN, **_objective("cross_covariance", lambda_=0.005)},
    "ablations/cross_entropy": _objective("cross_entropy", temperature=0.1, lambda_=1.0),
    "ablations/stop_gradient": {
        "MODEL.BASE_MODEL_NAME": "barlow_asymmetric_twins_model",
        "MODEL.STOP_GRADIENT": True,
    },
    "ablations/predictor": {
        "MODEL.BASE_MODEL_NAME": "barlow_asymmetric_twins_model",
        "MODEL.STOP_GRADIENT": False,
        HEADS: PREDICTOR,
    },
    "ablations/stop_gradient_predictor": {
        "MODEL.BASE_MODEL_NAME": "barlow_asymmetric_twins_model",
        "MODEL.STOP_GRADIENT": True,
        HEADS: PREDICTOR,
    },
    "ablations/byol": BYOL,
    # Learning rate and weight decay are then those of Barlow Twins.
    "ablations/byol_1000ep": {
        **{
            key: BYOL[key]
            for key in BYOL
            if not key.endswith(("decay", "base_value", "start_value"))
        },
        "MODEL.TARGET_MOMENTUM": 0.996,
        "OPTIMIZER.num_epochs": 1000,
    },
    "ablations/simsiam": {
        "DATA.TRAIN.BATCHSIZE_PER_REPLICA": 16,
        "MODEL.BASE_MODEL_NAME": "barlow_simsiam_model",
        HEADS: [
            ["barlow_normalised_projector", {"in_dim": 2048, "dims": [2048, 2048, 2048]}],
            ["barlow_predictor", {"in_dim": 2048, "dims": [512, 2048]}],
        ],
        "LOSS.name": "barlow_simsiam_loss",
        "LOSS.barlow_simsiam_loss.reference_world_size": 1,
        "OPTIMIZER.name": "sgd",
        "OPTIMIZER.weight_decay": 1.0e-4,
        "OPTIMIZER.regularize_bn": True,
        "OPTIMIZER.regularize_bias": True,
        f"{LR}.auto_lr_scaling.base_value": 0.05,
        f"{LR}.start_value": 0.05,
        f"{LR}.end_value": 0.0,
        f"{LR}.warmup_epochs": 0,
    },
    "objectives/auto_correlation": _objective("auto_correlation", lambda_=0.005),
    "objectives/cross_covariance": _objective("cross_covariance", lambda_=0.005),
    "objectives/hsic": _objective("hsic", lambda_=1 / 8192),
    "objectives/info_nce": _objective("info_nce", world=1, temperature=0.1),
    "objectives/cosine": _objective("cosine", world=1),
    "objectives/imax": _objective("imax", world=1, eps=0.001),
    "objectives/vicreg": _objective(
        "vicreg",
        world=1,
        invariance_weight=25.0,
        variance_weight=25.0,
        covariance_weight=1.0,
    ),
    "objectives/w_mse": {
        HEADS: [["barlow_projector", {"in_dim": 2048, "dims": [8192, 8192, 512]}]],
        **_objective("w_mse", world=1, sub_batch_size=1024),
    },
}


def _flat(section, prefix=""):
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _composed(name):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(config_folder("configs")), version_base="1.3"):
        config = compose(f"config/{PRETRAIN}/{name}").config
    return dict(_flat(OmegaConf.to_container(config)))


def test_every_overlay_is_listed_here():
    folder = config_folder("configs") / "config" / PRETRAIN
    files = [*folder.glob("ablations/*.yaml"), *folder.glob("objectives/*.yaml")]
    assert {f"{path.parent.name}/{path.stem}" for path in files} == set(CHANGES)


@pytest.mark.parametrize("overlay", CHANGES)
def test_overlay_changes_what_the_paper_says_and_nothing_else(overlay):
    base, changed = _composed("resnet50_in1k_300ep"), _composed(overlay)
    assert not set(base) - set(changed)
    different = {key: value for key, value in changed.items() if base.get(key) != value}
    assert different.pop("CHECKPOINT.DIR") == f"checkpoints/{overlay}"
    assert different == CHANGES[overlay]


def _on_digits(folder, overlay, *overrides):
    experiment = ablations.Experiment("", "", overlay)
    config, *rest = ablations.pretraining(experiment, "digits", folder)
    return resolve(folder, config.removeprefix("config="), *rest, *overrides)


@pytest.mark.parametrize("overlay", CHANGES)
def test_overlay_trains_on_the_digits_base_too(overlay, tmp_path):
    """One step of its model and loss: the trunk learns from both views, or from one behind a stop."""
    from classy_vision.losses import build_loss
    from vissl.models import build_model

    config = _on_digits(tmp_path, overlay)
    assert config.DATA.TRAIN.DATA_SOURCES == ["barlow_digits"]
    assert config.OPTIMIZER.num_epochs == ablations.DIGITS_EPOCHS
    model = build_model(config.MODEL, config.OPTIMIZER).train()
    section = config.LOSS[config.LOSS.name]
    loss = build_loss({"name": config.LOSS.name, **section})
    rows = section.get("sub_batch_size") or 8
    value = loss(model(torch.randn(2, rows, 3, 32, 32)), None)
    value.backward()
    assert torch.isfinite(value)
    assert torch.stack(list(loss.terms)).isfinite().all()
    for parameter in model.trunk.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("overlay", "predicts", "stops"),
    [
        ("stop_gradient", False, True),
        ("predictor", True, False),
        ("stop_gradient_predictor", True, True),
    ],
)
def test_table_6_predicts_on_one_branch_and_stops_on_the_other(overlay, predicts, stops, tmp_path):
    from vissl.models import build_model

    config = _on_digits(tmp_path, f"ablations/{overlay}")
    model = build_model(config.MODEL, config.OPTIMIZER).train()
    views = torch.randn(2, 6, 3, 32, 32)
    reference = copy.deepcopy(model)
    embeddings = []
    for view in views:
        embeddings.append(reference.heads[0](reference.trunk(view)[0]))
    out_a, out_b = model(views)
    if predicts:
        linear, bn, _, last = reference.heads[1].projector
        embeddings[0] = last(F.relu(bn(linear(embeddings[0]))))
    torch.testing.assert_close(out_a, embeddings[0])
    torch.testing.assert_close(out_b, embeddings[1])
    assert out_a.requires_grad and out_b.requires_grad != stops
    torch.testing.assert_close(model.eval()(views)[0], model.heads[0](model.trunk(views[0])[0]))


BAD = [
    (
        "ablations/byol",
        ["config.LOSS.name=barlow_loss"],
        "config.MODEL.BASE_MODEL_NAME=barlow_byol_model: config.LOSS.name=barlow_loss takes",
    ),
    (
        "ablations/predictor",
        ["config.MODEL.BASE_MODEL_NAME=barlow_twins_model"],
        "barlow_twins_model has no predictor",
    ),
    (
        "resnet50_in1k_300ep",
        ["config.MODEL.BASE_MODEL_NAME=barlow_asymmetric_twins_model"],
        "config.MODEL.STOP_GRADIENT=None: set it to true or false",
    ),
    (
        "ablations/stop_gradient",
        ["config.MODEL.STOP_GRADIENT=false"],
        "barlow_asymmetric_twins_model takes a projector, then one barlow_predictor",
    ),
    (
        "ablations/byol",
        ["config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:2048,dims:[256]}]]"],
        "barlow_byol_model takes a projector, then one barlow_predictor",
    ),
    (
        "ablations/predictor",
        ["config.MODEL.HEAD.PARAMS.0.1.dims=[8192,8192,512]"],
        "the projector's embeddings have 512 dimensions; set barlow_predictor's",
    ),
    (
        "ablations/byol",
        ["config.MODEL.TARGET_MOMENTUM=1.5"],
        "config.MODEL.TARGET_MOMENTUM=1.5: set the share in [0, 1]",
    ),
    (
        "objectives/w_mse",
        ["config.LOSS.barlow_objective.sub_batch_size=512"],
        "config.LOSS.barlow_objective.sub_batch_size=512: W-MSE whitens sub-batches with more rows",
    ),
    (
        "objectives/w_mse",
        ["config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=48"],
        "set a divisor of 1536 above 512",
    ),
    (
        "objectives/hsic",
        ["config.LOSS.barlow_objective.objective=hsci"],
        "objective=hsci must be one of weighted_terms",
    ),
    (
        "objectives/info_nce",
        ["+config.LOSS.barlow_objective.tau=0.1"],
        "info_nce_loss has no tau; it has reference_world_size, temperature",
    ),
    (
        "objectives/info_nce",
        ["config.LOSS.barlow_objective.temperature=0"],
        "temperature=0 must be above 0",
    ),
    (
        "objectives/vicreg",
        [
            "config.MODEL.HEAD.PARAMS.0.1.dims=[512]",
            "config.LOSS.barlow_objective.embedding_dim=8192",
        ],
        "config.LOSS.barlow_objective.embedding_dim=8192",
    ),
    (
        "ablations/simsiam",
        ["config/pretrain/vissl_barlow=digits_quickstart"],
        "set barlow_normalised_projector's in_dim to 256",
    ),
]


@pytest.mark.parametrize(("overlay", "overrides", "message"), BAD)
def test_an_overlay_that_does_not_fit_says_so_in_one_line(overlay, overrides, message, tmp_path):
    with pytest.raises(ConfigError) as refused:
        resolve(tmp_path, f"{PRETRAIN}/{overlay}", *ANYWHERE, *overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_our_losses_on_a_config_of_vissl_say_what_they_need(tmp_path):
    with pytest.raises(ConfigError, match="takes the outputs of barlow_twins_model or"):
        resolve(
            tmp_path,
            "test/integration_test/quick_simclr",
            "config.LOSS.name=barlow_objective",
            "+config.LOSS.barlow_objective.objective=vicreg",
        )


STUDIES = {
    "table5": (7, 7),
    "table6": (4, 4),
    "table7": (6, 6),
    "figure2": (24, 12),
    "figure3": (5, 4),
    "figure4": (17, 10),
    "figure5": (7, 5),
    "objectives": (11, 11),
}


def test_every_study_has_its_experiments():
    counted = {
        name: tuple(len(ablations.load_study(name, data)[1]) for data in ("imagenet", "digits"))
        for name in ablations.study_names()
    }
    assert counted == STUDIES


@pytest.mark.parametrize("data", ["imagenet", "digits"])
@pytest.mark.parametrize("study", STUDIES)
def test_every_experiment_of_a_study_resolves_in_a_folder_of_its_own(study, data, tmp_path):
    experiments = ablations.load_study(study, data)[1]
    folders = set()
    for each in experiments:
        config, *rest = ablations.pretraining(each, data, tmp_path)
        resolve(tmp_path, config.removeprefix("config="), *rest, *ANYWHERE)
        folders.add(each.folder)
    # Only the baseline may be in a figure twice.
    shared = {"figure4": 1}.get(study, 0)
    assert len(folders) == len(experiments) - shared


def test_table_7_has_the_papers_shapes():
    shapes = []
    for each in ablations.load_study("table7", "imagenet")[1]:
        dims = [o.split("=")[1] for o in each.overrides if ".dims=" in o]
        shapes.append((each.name, *dims))
    for name, *dims in shapes[1:]:
        named = [f"[{widths.replace('-', ',')}]" for widths in name.split(" / ")]
        assert named == dims
    assert shapes[0][0] == "4096-256 / 4096-256"  # the config's own


def _options(tmp_path, *arguments):
    parser = argparse.ArgumentParser()
    ablations.add_arguments(parser)
    return parser.parse_args(["--data", "digits", "--out", str(tmp_path), *arguments])


def _pretend(tmp_path, study, accuracies):
    """Writes the probe's result of each experiment, as a finished run would."""
    for (name, tried), accuracy in accuracies.items():
        probed(experiment(tmp_path, study, name, "digits", tried=tried or None), accuracy)


def test_a_figure_shows_the_best_of_the_grid_and_says_which_data(tmp_path):
    found = {("32", "0.1"): 0.5, ("32", "0.2"): 0.7, ("128", "0.1"): 0.9, ("128", "0.2"): 0.8}
    _pretend(tmp_path, "figure2", found)
    assert main(["figure2", "--list", "--data", "digits", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "digits" / "figure2.md").read_text()
    assert "digits, NOT ImageNet" in table
    assert "| batch size 32 (lr 0.2) | probe | 30.0 | 70.0 | +40.0 |" in table
    assert "| batch size 128 (lr 0.1) | probe | 30.0 | 90.0 | +60.0 |" in table
    assert "| batch size 64 | probe |  |  |  |" in table
    assert (tmp_path / "digits" / "figure2.png").read_bytes().startswith(b"\x89PNG")


def test_several_seeds_are_averaged_and_counted(tmp_path):
    for seed, accuracy in ((0, 0.9), (1, 0.94)):
        probed(experiment(tmp_path, "table6", "(b) predictor", "digits", seed=seed), accuracy)
    assert main(["table6", "--list", "--data", "digits", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "digits" / "table6.md").read_text()
    assert "| (b) predictor | probe | 30.0 | 92.0 ± 2.8 (2 runs) | +62.0 |" in table


def test_the_papers_numbers_stand_beside_imagenets_only(tmp_path):
    for data in ("imagenet", "digits"):
        assert main(["table5", "--list", "--data", data, "--out", str(tmp_path)]) == 0
    row = "| Only invariance term (on-diag term) |"
    assert f"{row} top-1 | 57.3 |  |" in (tmp_path / "table5.md").read_text()
    assert f"{row} probe |  |" in (tmp_path / "digits" / "table5.md").read_text()


def test_only_unfinished_experiments_run(tmp_path, capsys):
    _pretend(tmp_path, "table6", {("Baseline", ""): 0.95, ("(b) predictor", ""): 0.94})
    assert ablations.run("table6", _options(tmp_path, "--dry-run")) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 2
    assert "ablations/stop_gradient " in commands[0]
    assert "ablations/stop_gradient_predictor " in commands[1]
    assert all("config/pretrain/vissl_barlow=digits_quickstart" in line for line in commands)


def test_imagenet_is_pretrained_then_evaluated_and_a_finished_stage_is_not_repeated(
    tmp_path, capsys
):
    options = _options(tmp_path, "--data=imagenet", "--imagenet=/data", "--only=16384", "--dry-run")
    options.slurm = True
    ablations.run("figure4", options)
    pretraining, evaluation = capsys.readouterr().out.splitlines()
    assert "dims=[8192,8192,16384]" in pretraining and "embedding_dim=16384" in pretraining
    assert "config=benchmark/vissl_barlow/imagenet1k_linear" in evaluation
    assert "config.DATA.TEST.DATA_PATHS=[/data/val]" in evaluation
    assert all("config.SLURM.USE_SLURM=true" in line for line in (pretraining, evaluation))

    key = "config.CHECKPOINT.DIR="
    [folder] = [p.removeprefix(key) for p in shlex.split(pretraining) if p.startswith(key)]
    assert f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={folder}/checkpoint.torch" in shlex.split(
        evaluation
    )
    Path(folder).mkdir(parents=True)
    (Path(folder) / "model_final_checkpoint_phase299.torch").touch()
    ablations.run("figure4", options)
    assert capsys.readouterr().out.splitlines() == [evaluation]

    linear = Path(folder) / "linear"
    linear.mkdir()
    (linear / "train_config.yaml").write_text("OPTIMIZER: {num_epochs: 100}")
    meter = {"top_1": {"res5avg": 71.2}, "top_5": {"res5avg": 90.1}}
    last = {"train_phase_idx": 99, "test_accuracy_list_meter": meter}
    (linear / "metrics.json").write_text(json.dumps(last))
    assert ablations.read_result(Path(folder), "imagenet") == {"top-1": 71.2, "top-5": 90.1}
    ablations.run("figure4", options)
    assert capsys.readouterr().out == ""


def test_overrides_of_the_evaluation_and_of_slurm_reach_it(tmp_path, capsys):
    arguments = ["table5", "--imagenet", "/data", "--only", "only inv", "--out", str(tmp_path)]
    overrides = ["config.OPTIMIZER.num_epochs=7", "config.SLURM.PARTITION=p"]
    linear = ["--linear", "config.OPTIMIZER.num_epochs=3", "--linear", "config.LOG_FREQUENCY=9"]
    assert main([*arguments, *overrides, *linear, "--slurm", "--dry-run"]) == 0
    pretraining, evaluation = map(shlex.split, capsys.readouterr().out.splitlines())
    assert {*overrides} <= {*pretraining} and not {*linear} & {*pretraining}
    assert {linear[1], linear[3], "config.SLURM.PARTITION=p"} <= {*evaluation}
    assert overrides[0] not in evaluation


def test_however_many_overrides_the_folder_has_a_name_of_its_own(tmp_path, capsys):
    names = set()
    for last in ("", "config.LOG_FREQUENCY=1", "config.LOG_FREQUENCY=2"):
        many = [f"config.DATA.TRAIN.TRANSFORMS.0.size={size}" for size in range(9)]
        arguments = ["table5", "--data", "digits", "--only", "only inv", "--out", str(tmp_path)]
        assert main([*arguments, *many, *filter(None, [last]), "--dry-run"]) == 0
        key = "config.CHECKPOINT.DIR="
        words = shlex.split(capsys.readouterr().out)
        (folder,) = (Path(word.removeprefix(key)) for word in words if word.startswith(key))
        folder.mkdir(parents=True)
        names.add(folder)
    assert len(names) == 3


def test_a_failed_run_is_told_with_its_last_line_and_a_status(tmp_path, capsys):
    """For real: VISSL's runner refuses the temperature before it trains."""
    options = _options(tmp_path, "--only", "entropy", "config.LOSS.barlow_objective.temperature=0")
    assert ablations.run("table5", options) == 1
    error = capsys.readouterr().err
    assert "failed with exit status 1" in error and "temperature=0 must be above 0" in error


def test_a_miniature_runs_to_its_table(tmp_path, capsys):
    """For real, for an epoch: the command line, VISSL's runner, the probe, the table."""
    arguments = ["table5", "--data", "digits", "--out", str(tmp_path), "--only", "only red"]
    epoch = [
        "config.OPTIMIZER.num_epochs=1",
        "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
    ]
    assert main([*arguments, *epoch]) == 0
    table = (tmp_path / "digits" / "table5.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| Only red"))
    untrained, pretrained = (float(cell) for cell in row.split("|")[3:5])
    assert 5 < pretrained < 100 and 5 < untrained < 100
    assert "with config.OPTIMIZER.num_epochs=1" in table  # not the study's twenty, and says so
    capsys.readouterr()
    assert main([*arguments, "--list"]) == 0
    capsys.readouterr()
    unchanged = (tmp_path / "digits" / "table5.md").read_text().splitlines()
    assert "| Only red. red. term (off-diag term) | probe |  |" in unchanged
    assert main([*arguments, *epoch, "--dry-run"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*arguments, "--dry-run"]) == 0  # one epoch must not pass for the study's twenty
    assert "num_epochs=20" in capsys.readouterr().out


def test_an_unknown_study_or_row_is_an_error_that_lists_what_there_is(tmp_path, capsys):
    with pytest.raises(ValueError, match="table9 is no study; there are figure2"):
        ablations.load_study("table9", "digits")
    with pytest.raises(SystemExit):
        main(["table6", "--only", "xyz", "--out", str(tmp_path)])
    assert "--only xyz matches none of Baseline, (a) stop-gradient" in capsys.readouterr().err
