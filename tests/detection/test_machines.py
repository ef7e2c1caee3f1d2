"""Machines whose commands or files differ: they train nothing together."""

import pytest
from detection_runs import VOC
from gloo import run_gloo

pytestmark = pytest.mark.detectron2
DATA = {"train": {"images": 16551}, "test": {"images": 4952}}


def told(rank, cases) -> list[str]:
    """What the process of a machine of its own says to each case: folders, images and options."""
    from vissl_barlow.detection import trainer
    from vissl_barlow.detection.machines import UnlikeMachines, refuse_unlike_machines

    said = []
    for of_each in cases:
        folder, data, options = of_each[rank]
        given = ["--resume", "--num-machines", "2", "--config-file", VOC, "OUTPUT_DIR", str(folder)]
        args = trainer.argument_parser().parse_args([*given, *options])
        try:
            refuse_unlike_machines(trainer.build_config(args), args, data)
            said.append("")
        except UnlikeMachines as error:
            said.append(str(error))
    return said


def test_machines_that_would_not_run_the_same_are_refused(tmp_path):
    folders = [tmp_path / name for name in ("shared", "its_own", "first")]
    for folder in folders:
        folder.mkdir()
        (folder / "weights.pth").write_bytes(b"pretrained")
    shared, its_own, first = (
        (folder, DATA, ["MODEL.WEIGHTS", str(folder / "weights.pth")]) for folder in folders
    )
    (folders[0] / "last_checkpoint").write_text("model_0004999.pth")
    (folders[1] / "weights.pth").write_bytes(b"pretrained otherwise")
    less = DATA | {"train": {"images": 5011}}
    typed = (folders[1], less, [*its_own[2], "SEED", "1", "SOLVER.BASE_LR", "0.02"])
    workers = (*shared[:2], [*shared[2], "DATALOADER.NUM_WORKERS", "8"])
    cases = [[shared, workers], [shared, its_own], [first, typed]]
    for alike, resumed, other in run_gloo(told, 2, cases):
        assert alike == ""
        assert "the checkpoint to resume is model_0004999.pth on machine 0 and none on " in resumed
        assert "SEED is -1 on machine 0 and 1 on machine 1" in other
        assert "SOLVER.BASE_LR is 0.1 on machine 0 and 0.02 on machine 1" in other
        assert "SHA-256 of MODEL.WEIGHTS" in other and "train images is 16551 on machine 0" in other
