"""The snippets of docs/diagnosis.md that can run here do."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from planted import truth

from retinaconf.diagnosis.candidates import read_candidates
from retinaconf.diagnosis.diagnose import diagnose

DOCS = Path(__file__).parents[2] / "docs" / "diagnosis.md"


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

    snippet = re.search(r"torchvision \(.*?```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S).group(1)
    path = tmp_path / "candidates.npz"
    exec(snippet, {"model": model, "images": images, "path": path})

    ground_truth = truth([[[10, 10, 60, 60]], [[5, 20, 90, 80]]], image_ids=[7, 3], num_classes=12)
    from dataclasses import replace

    ground_truth = replace(ground_truth, category_ids=tuple(range(12)))  # the network's labels are its category ids
    candidates = read_candidates(path, ground_truth)
    assert len(candidates) > sum(len(found["scores"]) for found in after_nms)
    diagnosis = diagnose(ground_truth, candidates=candidates)
    assert len(diagnosis.summary()) >= 4
    # Our post-processing of the candidates gives what torchvision's gave.
    assert (diagnosis.suppressor >= 0).any()
    for image, found in enumerate(after_nms):
        ours = diagnosis.after.boxes.take(diagnosis.after.boxes.image_index == image)
        theirs = np.sort(found["scores"].numpy()[:100])
        np.testing.assert_allclose(np.sort(ours.scores), theirs, rtol=1e-6)
