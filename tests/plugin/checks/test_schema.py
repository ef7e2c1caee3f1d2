"""The plugin's own keys: one schema and what is made from it; keys that nothing reads are refused."""

import importlib.util
from pathlib import Path

import pytest
from vissl_runs import ANYWHERE, compose, resolve, run_engines

from vissl_barlow.paths import config_folder
from vissl_barlow.vissl_plugin import settings
from vissl_barlow.vissl_plugin.checks.unknown_names import unknown_key
from vissl_barlow.vissl_plugin.errors import ConfigError

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
LINEAR = "benchmark/vissl_barlow/imagenet1k_linear"
SIMSIAM = "pretrain/vissl_barlow/ablations/simsiam"
# Another value than the default for every key.
OTHERS = {
    "CHECK_IMAGES": -1,
    "MAX_CONSECUTIVE_UNREADABLE": 1,
    "KEEP_CHECKPOINTS": 0,
    "KEEP_EVERY_EPOCHS": 1,
    "EXTEND": True,
    "TIMEOUT_MINUTES": 0.5,
    "SLURM_TIME_LIMITS": 9,
    "GRACE_SECONDS": 0.5,
    "WEIGHTS_TRUNK": "encoder_k",
    "AMP_DTYPE": "bfloat16",
    "CHANNELS_LAST": False,
    "COMPILE": True,
    "CHUNK_SIZE": 16,
    "CHUNK_BATCH_NORM": "exact",
    "MAP_IMAGES": 9,
    "RANKED_IMAGES": 2,
    "COLLAPSED_STD": 0,
    "COLLAPSED_RANK": 1,
    "WANDB_PROJECT": "barlow",
    "PROBE.KIND": "knn",
    "PROBE.EVERY_EPOCHS": 1,
    "PROBE.WHILE_TRAINING": "knn",
    "PROBE.IMAGES": 1,
    "PROBE.NEIGHBOURS": 1,
    "PROBE.CORRELATION_IMAGES": 2,
}


def flat(section) -> dict:
    """A section of settings by dotted names."""
    probe = {f"PROBE.{key}": value for key, value in section["PROBE"].items()}
    return {key: value for key, value in section.items() if key not in ("PROBE", "COMMAND")} | probe


def refusals(folder, config: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        resolve(folder / "run", config, *overrides)
    return str(raised.value).splitlines()


def test_the_yaml_group_is_the_schema():
    """To mend this: `python -m vissl_barlow.vissl_plugin.settings yaml` prints the group."""
    group = config_folder("configs") / "config/vissl_barlow/settings.yaml"
    assert group.read_text() == settings.yaml()


def test_every_key_can_be_set_on_the_command_line_of_pretrainings_and_benchmarks():
    assert OTHERS.keys() == {key.name for key in settings.all_keys()}
    overrides = [f"config.BARLOW.{key}={value}" for key, value in OTHERS.items()]
    for config in (DIGITS, SIMSIAM, LINEAR):
        assert flat(compose(config, *overrides).BARLOW) == OTHERS
    assert not [key.name for key in settings.all_keys() if key.problem(OTHERS[key.name])]
    assert not [key.name for key in settings.all_keys() if key.default == OTHERS[key.name]]


def test_keys_a_config_leaves_out_get_their_defaults(tmp_path):
    defaults = {key.name: key.default for key in settings.all_keys()}
    left_out = [f"~config.BARLOW.{key}" for key in defaults if key != "PROBE.KIND"]
    resolved = resolve(tmp_path, DIGITS, *left_out, "config.BARLOW.PROBE.KIND=none")
    assert flat(resolved.BARLOW) == defaults
    assert resolved.BARLOW.PROBE.KIND == ""
    assert flat(resolve(tmp_path, DIGITS, "~config.BARLOW.PROBE").BARLOW) == defaults | {
        "AMP_DTYPE": "bfloat16",
        "CHANNELS_LAST": False,
    }


@pytest.mark.parametrize("kind", ["none", "''", "null", ""])
def test_no_probe_has_several_spellings(kind, tmp_path):
    assert resolve(tmp_path, DIGITS, f"config.BARLOW.PROBE.KIND={kind}").BARLOW.PROBE.KIND == ""


def test_values_out_of_range_are_all_said_at_once(tmp_path):
    wrong = {
        "CHECK_IMAGES=-2": "set a whole number of at least -1",
        "MAX_CONSECUTIVE_UNREADABLE=0": "set a whole number of at least 1",
        "KEEP_CHECKPOINTS=2.5": "set a whole number of at least 0",
        "KEEP_EVERY_EPOCHS=True": "set a whole number of at least 0",
        "TIMEOUT_MINUTES=soon": "set a number above 0",
        "GRACE_SECONDS=0": "set a number above 0",
        "AMP_DTYPE=float8": "set float16 or bfloat16",
        "CHANNELS_LAST=1": "set true or false",
        "COLLAPSED_STD=inf": "set a number of at least 0",
        "PROBE.KIND=svm": "set none or linear or knn",
        "PROBE.NEIGHBOURS=None": "set a whole number of at least 1",
    }
    overrides = [f"config.BARLOW.{key}".replace("None", "null") for key in wrong]
    assert sorted(refusals(tmp_path, DIGITS, *overrides)) == sorted(
        f"config.BARLOW.{key}: {remedy}" for key, remedy in wrong.items()
    )


def test_keys_that_nothing_reads_are_refused_with_the_near_name(tmp_path):
    lr = "config.OPTIMIZER.param_schedulers.lr"
    wrong = {
        "config.BARLOW.PROB.KIND=linear": "there is no such key; did you mean PROBE.KIND?",
        "config.BARLOW.AMP_TYPE=float16": "there is no such key; did you mean AMP_DTYPE?",
        "config.LOSS.barlow_loss.lambd=0.5": "barlow_twins_loss has no lambd; did you mean lambda_?",
        "config.OPTIMIZER.eta=0.1": "barlow_lars has no eta; it has bias_lr_scale, clip, momentum, "
        "trust_coefficient, weight_decay",
        f"{lr}.warmup=1": "barlow_warmup_cosine has no warmup; did you mean warmup_epochs?",
        "config.MODEL.TRUNK.RESNETS.SMAL_STEM=True": "barlow_resnet has no SMAL_STEM; did you mean "
        "SMALL_STEM?",
    }
    assert sorted(refusals(tmp_path, DIGITS, *(f"+{override}" for override in wrong))) == sorted(
        f"{override}: {remedy}" for override, remedy in wrong.items()
    )


def test_options_that_a_head_or_the_views_have_not(tmp_path):
    head = "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:256,dims:[512],usebn:false}]]"
    views = "config.DATA.TRAIN.TRANSFORMS=[{name:BarlowTwoViews,size:32,blurp:[1,0]}]"
    lines = refusals(tmp_path, DIGITS, head, views)
    assert [line.partition("=")[0] for line in lines] == [
        "config.MODEL.HEAD.PARAMS",
        "config.DATA.TRAIN.TRANSFORMS",
    ]
    assert lines[0].endswith(": barlow_projector has no usebn; did you mean use_bn?")
    assert lines[1].endswith(": BarlowTwoViews has no blurp; did you mean blur_p?")


def test_what_vissl_leaves_open_stays_open(tmp_path):
    resolve(
        tmp_path,
        DIGITS,
        "config.OPTIMIZER.nesterov=false",  # VISSL's own default has it
        "config.OPTIMIZER.param_schedulers.lr.update_interval=step",
        "config.MODEL.TRUNK.RESNETS.GROUPS=1",
        "+config.LOSS.other_loss.lambd=0.5",
        "+config.DATA.NEW=1",
    )
    # Another optimizer's keys are not this plugin's.
    resolve(tmp_path, SIMSIAM, *ANYWHERE, "+config.OPTIMIZER.dampening=0.0")


def test_several_things_wrong_are_several_lines(tmp_path):
    lines = refusals(
        tmp_path,
        DIGITS,
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=1",
        "config.OPTIMIZER.num_epochs=1",
        "config.LOSS.barlow_loss.lambda_=-1",
        "config.OPTIMIZER.momentum=1.5",
        "config.DATA.TEST.DATA_SOURCES=[disk_folder]",
        "config.DATA.TEST.DATA_PATHS=[/absent]",
        "config.TEST_MODEL=true",
    )
    assert [line.partition("=")[0].removeprefix("config.") for line in lines] == [
        "DATA.TRAIN.BATCHSIZE_PER_REPLICA",
        "OPTIMIZER.param_schedulers.lr.warmup_epochs",
        "DATA.TEST.DATA_PATHS",
        "LOSS.barlow_loss",
        "OPTIMIZER",
    ]


def test_the_runner_prints_each_on_a_line(tmp_path):
    overrides = ("+config.BARLOW.PROB.KIND=linear", "+config.LOSS.barlow_loss.lambd=0.5")
    done = run_engines(tmp_path, f"config={DIGITS}", *overrides)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("vissl_barlow: ")] == [
        "vissl_barlow: config.BARLOW.PROB.KIND=linear: there is no such key; did you mean PROBE.KIND?",
        "vissl_barlow: config.LOSS.barlow_loss.lambd=0.5: barlow_twins_loss has no lambd; did you "
        "mean lambda_?",
    ]
    assert not list(tmp_path.rglob("*.torch"))


def test_the_runner_says_which_key_hydra_did_not_find(tmp_path):
    done = run_engines(tmp_path, f"config={DIGITS}", "config.BARLOW.PROB.KIND=linear")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "vissl_barlow: config.BARLOW.PROB.KIND=linear: there is no such key; did you mean PROBE.KIND?"
    )


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("config.LOSS.barlow_loss.lambd=0.5", "did you mean lambda_?"),
        ("config.MODEL.HEAD.PARAMS.0.1.dim=[8]", "did you mean dims or in_dim?"),
        ("BARLOW.COMPIL=true", "did you mean config.BARLOW.COMPILE?"),
        (
            "config.BARLOW.PROBE.X=",
            "it has CORRELATION_IMAGES, EVERY_EPOCHS, IMAGES, KIND, NEIGHBOURS, WHILE_TRAINING",
        ),
    ],
)
def test_hydras_refusals_name_the_near_keys(override, near):
    from hydra.errors import ConfigCompositionException

    with pytest.raises(ConfigCompositionException) as raised:
        compose(DIGITS, override)
    assert unknown_key(raised.value) == f"{override}: there is no such key; {near}"


def test_hydras_refusals_stay_hydras_for_configs_of_vissl():
    from hydra.errors import ConfigCompositionException

    own = "test/integration_test/quick_simclr"
    assert (Path(importlib.util.find_spec("configs").origin).parent / f"config/{own}.yaml").exists()
    with pytest.raises(ConfigCompositionException) as raised:
        compose(own, "config.LOSS.simclr_info_nce_loss.temprature=1")
    assert unknown_key(raised.value) is None


@pytest.mark.parametrize(
    ("config", "loss", "outputs"),
    [
        (DIGITS, "barlow_loss", 512),
        ("pretrain/vissl_barlow/objectives/w_mse", "barlow_objective", 512),
        ("pretrain/vissl_barlow/ablations/byol", "barlow_byol_loss", 256),
        (SIMSIAM, "barlow_simsiam_loss", 2048),
    ],
)
def test_embedding_dim_is_the_projectors_and_a_number_given_is_compared(
    config, loss, outputs, tmp_path
):
    key = f"config.LOSS.{loss}.embedding_dim"
    resolve(tmp_path / "run", config, *ANYWHERE)
    resolve(tmp_path / "run", config, *ANYWHERE, f"{key}={outputs}")
    [line] = refusals(tmp_path, config, *ANYWHERE, f"{key}=16")
    assert line == f"{key}=16: the projector's last layer has {outputs} outputs; make the two equal"
