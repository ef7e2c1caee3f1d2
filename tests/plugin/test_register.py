"""The plugin is in every process VISSL starts, and in none that has nothing to do with VISSL."""

import json
import multiprocessing
import multiprocessing.forkserver
import subprocess
import sys

import pytest
from plugin_probe import registered_names
from vissl_runs import resolve, run_engines, succeeded

import vissl_barlow

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
SHORT = (
    f"config={DIGITS}",
    "config.BARLOW.PROBE.KIND=''",
    "config.DATA.TRAIN.DATA_LIMIT=128",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16",
    "config.OPTIMIZER.num_epochs=2",
    "config.LOG_FREQUENCY=1",
)
# What the plugin adds to VISSL's registries.
NAMES = {
    "barlow_loss",
    "barlow_projector",
    "barlow_resnet",
    "barlow_twins_model",
    "barlow_lars",
    "barlow_warmup_cosine",
    "BarlowTwoViews",
    "barlow_collator",
    "barlow_folder",
    "barlow_digits",
}


def logged(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "barlow.jsonl").read_text().splitlines()]


@pytest.fixture
def plain_forkserver():
    """One of its own: a task's, of an earlier test, has the plugin, and its processes hold SIGTERM
    back, without which a pool may wait for them for ever."""
    multiprocessing.forkserver._forkserver._stop()
    multiprocessing.set_forkserver_preload([])
    yield
    multiprocessing.forkserver._forkserver._stop()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.usefixtures("plain_forkserver")
def test_a_pickled_config_registers_the_plugin_where_it_arrives(tmp_path, method):
    config = resolve(tmp_path, DIGITS)
    with multiprocessing.get_context(method).Pool(1) as pool:
        # The child imports VISSL and this helper only; the config's pickle brings the rest.
        assert pool.apply(registered_names, (config,)) >= NAMES


def test_a_registration_that_fails_is_not_taken_for_done(monkeypatch):
    vissl_barlow.register()
    from vissl_barlow.vissl_plugin import mends, register

    calls = []

    def fail() -> None:
        calls.append(1)
        raise ImportError("no such module")

    monkeypatch.setattr(register, "_registered", False)
    monkeypatch.setattr(mends, "apply", fail)
    for _ in range(2):
        with pytest.raises(ImportError, match="no such module"):
            register.register()
    assert len(calls) == 2


def test_two_processes_with_loader_workers_train_as_one_job(tmp_path):
    succeeded(
        run_engines(
            tmp_path,
            *SHORT,
            "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
            "config.DATA.NUM_DATALOADER_WORKERS=1",
            env={},  # a Python of its own, whose processes are spawned
        )
    )
    entries = logged(tmp_path / "quickstart")
    # 128 images, 2 x 16 a step, 2 epochs.
    assert [entry["iteration"] for entry in entries] == list(range(1, 9))
    # The rate follows the global batch of both: the peak, 4 * 32 / 256, falls by the cosine from
    # the end of the warm-up, step 4 of 8 (counted from 0).
    assert entries[4]["lr"] == pytest.approx(4 * 32 / 256)
    assert entries[0]["lr"] == 0
    assert (tmp_path / "quickstart" / "model_final_checkpoint_phase1.torch").exists()


def test_importing_the_package_imports_neither_vissl_nor_detectron2():
    code = (
        "import sys, vissl_barlow, vissl_barlow.loss, vissl_barlow.lars, vissl_barlow.views, "
        "vissl_barlow.schedule, vissl_barlow.projector, vissl_barlow.checkpoint\n"
        "print(sorted({'vissl', 'classy_vision', 'detectron2'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_other_hydra_applications_do_not_import_vissl(tmp_path):
    (tmp_path / "app.yaml").write_text("lr: 1\n")
    code = (
        "import sys\n"
        "from hydra import compose, initialize_config_dir\n"
        f"with initialize_config_dir({str(tmp_path)!r}, version_base=None):\n"
        "    assert compose('app').lr == 1\n"
        "print(sorted({'vissl', 'torch', 'vissl_barlow.vissl_plugin.register'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
