"""The snippets of docs/diagnosis.md run: torchvision's with torchvision, the others with stand-ins for their library.

A stand-in returns what its library documents: the same attributes, types and order of columns.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from planted import truth

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections, read_detections, write_detections
from retinaconf.diagnosis.measures.diagnose import diagnose
from retinaconf.diagnosis.report.summary import summarize

DOCS = Path(__file__).parents[2] / "docs" / "diagnosis.md"
BOXES = np.array([[10.0, 20, 60, 90], [12, 22, 62, 92], [5, 5, 25, 30]], dtype=np.float32)
SCORES = np.array([0.9, 0.6, 0.3], dtype=np.float32)
CLASSES = np.array([1, 1, 0])


def snippet(title: str) -> str:
    """The Python block of the section with this title."""
    text = DOCS.read_text(encoding="utf-8")
    section = text[text.index(f"#### {title}") :]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found.group(1)


def written(title: str, tmp_path: Path, **names: Any) -> tuple[GroundTruth, Detections]:
    """What the snippet writes of two images of ids 7 and 3, given the names that its section lets a user bring."""
    ground_truth = truth([[[10, 20, 60, 90]], [[5, 5, 25, 30]]], labels=[[1], [0]], image_ids=[7, 3])
    path = tmp_path / "boxes.npz"
    given = {"path": path, "category_ids": dict(enumerate(ground_truth.category_ids)), **names}
    exec(snippet(title), {"write_detections": write_detections, **given})
    return ground_truth, read_detections(path, ground_truth)


def check(ground_truth: GroundTruth, boxes: Detections) -> None:
    """Both images have the boxes that the stand-ins give."""
    assert boxes.image_index.tolist() == [0, 0, 0, 1, 1, 1]
    assert boxes.labels.tolist() == [*CLASSES, *CLASSES]
    assert boxes.boxes == pytest.approx(np.vstack([BOXES, BOXES]), abs=1e-4)
    assert boxes.scores == pytest.approx(np.hstack([SCORES, SCORES]))
    assert diagnose(ground_truth, boxes, replicates=2).metrics.overall["AP"] > 0


def test_yoloxs_snippet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 120 x 240, of which the network sees 60 x 120 pixels of 64 x 120; it puts out centre and size there."""
    torch = pytest.importorskip("torch")

    class ValTransform:
        def __call__(
            self, image: np.ndarray, res: object, input_size: tuple[int, int]
        ) -> tuple[np.ndarray, np.ndarray]:
            assert image.shape == (120, 240, 3)
            return np.zeros((3, *input_size), np.float32), np.zeros((1, 5))

    module = ModuleType("yolox.data.data_augment")
    module.ValTransform = ValTransform  # type: ignore[attr-defined]
    for name in ("yolox", "yolox.data", "yolox.data.data_augment"):
        monkeypatch.setitem(sys.modules, name, module)

    small = torch.tensor(BOXES) / 2
    objectness = torch.tensor([0.95, 0.75, 0.5, 0.01])
    classes = torch.full((4, 2), 0.05)
    classes[torch.arange(3), torch.tensor(CLASSES)] = torch.tensor(SCORES) / objectness[:3]
    centre_size = torch.cat([(small[:, :2] + small[:, 2:]) / 2, small[:, 2:] - small[:, :2]], dim=1)
    centre_size = torch.cat([centre_size, centre_size[:1]])  # with a score of 0.0005, which is left out
    output = torch.cat([centre_size, objectness[:, None], classes], dim=1)

    def model(batch: Any) -> Any:
        assert batch.shape == (1, 3, 64, 120)
        return output[None]

    images = [(7, np.zeros((120, 240, 3), np.uint8)), (3, np.zeros((120, 240, 3), np.uint8))]
    exp = SimpleNamespace(test_size=(64, 120))
    ground_truth, boxes = written("YOLOX", tmp_path, exp=exp, model=model, images=images)
    check(ground_truth, boxes)
    assert boxes.quality == pytest.approx(np.tile(objectness[:3].numpy(), 2))
    diagnosis = diagnose(ground_truth, candidates=boxes, replicates=2)
    assert diagnosis.own_score.rule == "product"
    assert diagnosis.quality is not None


def test_detectron2s_snippet(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    fields = SimpleNamespace(
        pred_classes=torch.tensor(CLASSES),
        pred_boxes=SimpleNamespace(tensor=torch.tensor(BOXES)),
        scores=torch.tensor(SCORES),
    )
    instances = SimpleNamespace(to=lambda device: fields)
    cfg = SimpleNamespace(
        MODEL=SimpleNamespace(RETINANET=SimpleNamespace()),
        TEST=SimpleNamespace(),
        DATASETS=SimpleNamespace(TEST=["val"]),
    )
    catalog = {"val": SimpleNamespace(thing_dataset_id_to_contiguous_id={10: 0, 11: 1})}
    names = {
        "cfg": cfg,
        "DefaultPredictor": lambda cfg: lambda image: {"instances": instances},
        "MetadataCatalog": SimpleNamespace(get=catalog.get),
        "images": [(7, None), (3, None)],
    }
    check(*written("Detectron2", tmp_path, **names))
    assert cfg.MODEL.RETINANET.NMS_THRESH_TEST == 1


def test_mmdetections_snippet(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    fields = SimpleNamespace(labels=torch.tensor(CLASSES), bboxes=torch.tensor(BOXES), scores=torch.tensor(SCORES))
    sample = SimpleNamespace(pred_instances=SimpleNamespace(cpu=lambda: fields))
    test_cfg = SimpleNamespace(nms=SimpleNamespace())
    names = {
        "config": SimpleNamespace(model=SimpleNamespace(test_cfg=test_cfg)),
        "checkpoint": "weights.pth",
        "init_detector": lambda config, checkpoint: config,
        "inference_detector": lambda model, file: sample,
        "images": [(7, "7.jpg"), (3, "3.jpg")],
    }
    check(*written("MMDetection 3", tmp_path, **names))
    assert test_cfg.nms.iou_threshold == 1


def test_ultralyticss_snippet(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    fields = SimpleNamespace(cls=torch.tensor(CLASSES).float(), xyxy=torch.tensor(BOXES), conf=torch.tensor(SCORES))

    def predict(file: str, *, iou: float, conf: float, max_det: int, verbose: bool) -> list[SimpleNamespace]:
        assert iou == 1
        return [SimpleNamespace(boxes=SimpleNamespace(cpu=lambda: fields))]

    images = [(7, "7.jpg"), (3, "3.jpg")]
    check(*written("Ultralytics", tmp_path, model=SimpleNamespace(predict=predict), images=images))


def test_rf_detrs_snippet(tmp_path: Path) -> None:
    """It returns supervision's detections, here with one of a class that the ground truth does not have."""
    supervision = pytest.importorskip("supervision")
    found = supervision.Detections(
        xyxy=np.vstack([BOXES, BOXES[:1]]), confidence=np.append(SCORES, 0.01), class_id=np.append(CLASSES, 26)
    )
    model = SimpleNamespace(predict=lambda image, threshold: found)
    ground_truth, boxes = written("Detectors without NMS", tmp_path, model=model, images=[(7, None), (3, None)])
    check(ground_truth, boxes)
    assert "if it has none, nothing is missing here" in " ".join(summarize(diagnose(ground_truth, boxes, replicates=2)))


@pytest.mark.ci
def test_torchvisions_snippet(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torchvision.models import resnet18
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(0)
    backbone = _resnet_fpn_extractor(
        resnet18(weights=None), 0, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    model = RetinaNet(backbone, num_classes=12, min_size=96, max_size=128, score_thresh=0.0, topk_candidates=50)
    images = [(7, torch.rand(3, 96, 96)), (3, torch.rand(3, 96, 128))]
    model.eval()
    with torch.no_grad():
        after_nms = [model([image])[0] for _, image in images]

    path = tmp_path / "candidates.npz"
    exec(snippet("torchvision"), {"model": model, "images": images, "path": path})

    ground_truth = truth([[[10, 10, 60, 60]], [[5, 20, 90, 80]]], image_ids=[7, 3], num_classes=12)
    ground_truth = replace(ground_truth, category_ids=tuple(range(12)))  # the network's labels are its category ids
    candidates = read_detections(path, ground_truth)
    assert len(candidates) > sum(len(found["scores"]) for found in after_nms)
    diagnosis = diagnose(ground_truth, candidates=candidates, replicates=2)
    assert len(summarize(diagnosis)) >= 4
    # Our post-processing of the candidates gives what torchvision's gave.
    assert (diagnosis.suppressor >= 0).any()
    for image, found in enumerate(after_nms):
        ours = diagnosis.after.boxes[diagnosis.after.boxes.image_index == image]
        theirs = np.sort(found["scores"].numpy()[:100])
        np.testing.assert_allclose(np.sort(ours.scores), theirs, rtol=1e-6)
