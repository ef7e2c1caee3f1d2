"""Detection and segmentation transfer with Detectron2 (Table 4 of the paper).

`python -m vissl_barlow.detection --config-file voc0712_faster_rcnn_R50_C4_24k MODEL.WEIGHTS ...`
trains and evaluates. `config` and `datasets` need no Detectron2; the other modules do.
"""
