"""The transfer runs, for real, on CPU: drawn data sets, Detectron2's own trainer and evaluators."""

from types import SimpleNamespace

import pytest
from detection_runs import COCO, VOC, read_results, succeed, train

from vissl_barlow.detection.run_folder import why_not_final
from vissl_barlow.provenance import file_sha256, read_provenance

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def voc_run(data, checkpoints, tmp_path_factory):
    """Two processes on CPU, from VISSL's format."""
    output = tmp_path_factory.mktemp("voc")
    metrics, results = train(data, output, VOC, checkpoints.vissl, "--num-gpus", 2)
    return SimpleNamespace(output=output, metrics=metrics, results=results)


def test_voc_trains_in_two_processes_and_is_evaluated_on_voc2007(voc_run):
    first, last = voc_run.metrics
    assert (first["iteration"], last["iteration"]) == (19, 39)
    assert last["total_loss"] < first["total_loss"]
    assert last["lr"] == pytest.approx(0.02 * 0.01)
    assert "VOC2007's 11-point" in voc_run.results["voc_2007_test"]["metric"]
    assert voc_run.results["voc_2007_test"]["bbox"].keys() == {"AP", "AP50", "AP75"}


def test_the_model_that_two_processes_evaluate_is_the_one_they_saved(voc_run, data):
    """Each process has running statistics of its own: of one model that is one, of two halves none."""
    final = voc_run.output / "model_final.pth"
    trained = voc_run.results["voc_2007_test"]
    assert trained["evaluated"] == {
        "start": "training",
        "iteration": 40,
        "max_iter": 40,
        "weights": {"path": str(final), "sha256": file_sha256(final)},
    }
    assert why_not_final(trained) is None
    files = {p: p.read_bytes() for p in voc_run.output.glob("*") if p.suffix in (".json", ".yaml")}

    succeed(data, voc_run.output, VOC, final, "--eval-only", options=("SOLVER.BASE_LR", "0.01"))
    alone = read_results(voc_run.output / "eval_only")["voc_2007_test"]
    assert alone["bbox"]["AP50"] > 0
    assert alone["bbox"] == trained["bbox"]
    assert alone["evaluated"] == {**trained["evaluated"], "start": "eval-only"}
    assert "--eval-only" in why_not_final(alone)
    # What the training left is as it was.
    assert files == {path: path.read_bytes() for path in files}
    assert {"results.json", "config.yaml", "barlow_run.json"} <= {path.name for path in files}
    (start,) = read_provenance(voc_run.output / "eval_only")
    assert start["weights"] == trained["evaluated"]["weights"]


def test_resume_continues_the_schedule(voc_run, data, checkpoints):
    (voc_run.output / "last_checkpoint").write_text("model_0000019.pth")
    (voc_run.output / "metrics.json").unlink()
    metrics, _ = train(data, voc_run.output, VOC, checkpoints.vissl, "--resume")
    # A run begun anew would report at iteration 19 first; a schedule begun anew would end at 0.02.
    assert [line["iteration"] for line in metrics] == [39]
    assert metrics[0]["lr"] == pytest.approx(0.02 * 0.01)


def test_coco_trains_boxes_and_masks(data, checkpoints, tmp_path):
    (first, last), results = train(data, tmp_path, COCO, checkpoints.authors)
    assert last["total_loss"] < first["total_loss"]
    assert last["loss_mask"] > 0
    assert "COCO's" in results["coco_2017_val"]["metric"]
    for task in ("bbox", "segm"):
        assert {"AP", "AP50", "AP75"} <= results["coco_2017_val"][task].keys()
