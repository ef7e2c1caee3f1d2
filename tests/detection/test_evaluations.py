"""Which model each evaluation is of, and that all processes evaluate the same one."""

import pytest
import torch
from detection_runs import SMALL, VOC, config, read_results
from gloo import run_gloo
from torch import nn

from vissl_barlow.detection.run_folder import why_not_final
from vissl_barlow.provenance import file_sha256

pytestmark = pytest.mark.detectron2
BOXES = {"AP": 50.0, "AP50": 80.0, "AP75": 55.0}


def _statistics_evaluated(rank: int) -> torch.Tensor:
    from vissl_barlow.detection.trainer import TransferTrainer

    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    model[1].running_mean.fill_(rank)
    model[1].running_var.fill_(10.0 + rank)
    TransferTrainer.test(config(VOC, "DATASETS.TEST", "()"), model)
    return torch.stack([model[1].running_mean, model[1].running_var])


def test_all_processes_evaluate_with_the_statistics_that_the_first_one_saves():
    expected = torch.tensor([[0.0, 0.0], [10.0, 10.0]])
    for statistics in run_gloo(_statistics_evaluated, 2):
        assert torch.equal(statistics, expected)


@pytest.fixture
def make_trainer(data, checkpoints, tmp_path):
    """Makes trainers of two iterations, evaluated after each; evaluating itself is put aside.

    Their `found` has results.json as each evaluation left it.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_pascal_voc

    from vissl_barlow.detection.trainer import TransferTrainer

    class Watched(TransferTrainer):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.found = []

        @classmethod
        def test(cls, cfg, model, evaluators=None):
            return {"bbox": BOXES}

        def _evaluate(self):
            super()._evaluate()
            self.found.append(read_results(tmp_path)["drawn_voc"])

    register_pascal_voc("drawn_voc", str(data / "VOC2007"), "trainval", 2007)
    MetadataCatalog.get("drawn_voc").evaluator_type = "pascal_voc"
    options = ("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "(1,)", "TEST.EVAL_PERIOD", 1)
    options += ("SOLVER.WARMUP_ITERS", 1)
    names = ("DATASETS.TRAIN", "('drawn_voc',)", "DATASETS.TEST", "('drawn_voc',)")
    where = ("MODEL.WEIGHTS", checkpoints.authors, "OUTPUT_DIR", tmp_path)
    try:
        yield lambda: Watched(config(VOC, *SMALL, *options, *names, *where))
    finally:
        DatasetCatalog.remove("drawn_voc")
        MetadataCatalog.remove("drawn_voc")


def test_only_the_evaluation_after_the_last_iteration_counts(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.resume_or_load(resume=False)
    trainer.train()
    during, final = trainer.found
    assert during["bbox"] == final["bbox"] == BOXES
    assert (during["evaluated"]["iteration"], during["evaluated"]["max_iter"]) == (1, 2)
    assert during["evaluated"]["weights"] is None  # no checkpoint was due
    assert "iteration 1 of 2" in why_not_final(during)
    assert final["evaluated"]["weights"]["sha256"] == file_sha256(tmp_path / "model_final.pth")
    assert why_not_final(final) is None

    # What was finished is evaluated again, without another step.
    resumed = make_trainer()
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert resumed.found == [final]


def test_a_training_that_fails_in_its_last_iteration_has_no_result(make_trainer):
    trainer = make_trainer()
    step = trainer.run_step

    def fail_in_the_last():
        if trainer.iter + 1 == trainer.max_iter:
            raise FloatingPointError("loss is NaN")
        step()

    trainer.run_step = fail_in_the_last
    trainer.resume_or_load(resume=False)
    with pytest.raises(FloatingPointError):
        trainer.train()
    # Detectron2 evaluates all the same.
    assert [entry["evaluated"]["iteration"] for entry in trainer.found] == [1, 1]
    assert all("iteration 1 of 2" in why_not_final(entry) for entry in trainer.found)
