"""Detectron2's RetinaNets under their exact names, imported and compared with a slow transcription of their rules."""

import pickle
import re

import pytest
import torch
from reference import Reference, assert_same

from retinaconf import load
from retinaconf.errors import InputError
from retinaconf.interop.categories import coco_categories
from retinaconf.interop.import_weights import import_weights

MEAN = (103.530, 116.280, 123.675)
RULES = {"by_size_first": True, "clip_first": False, "limits_shrinking": False}


def detectron2_name(name):
    """The reference's names to Detectron2's."""
    if name.endswith("num_batches_tracked"):
        return None
    part, _, kind = name.rpartition(".")
    if block := re.fullmatch(r"backbone\.layer(\d)\.(\d+)\.(?:downsample\.(\d)|(conv|bn)(\d))", part):
        stage, number, shortcut, what, conv = block.groups()
        inside = "shortcut" if shortcut else f"conv{conv}"
        norm = ".norm" if shortcut == "1" or what == "bn" else ""
        return f"backbone.bottom_up.res{int(stage) + 1}.{number}.{inside}{norm}.{kind}"
    if part.startswith("backbone."):
        return f"backbone.bottom_up.stem.conv1{'.norm' if 'bn1' in part else ''}.{kind}"
    head, _, number = part.partition(".")
    return {
        "lateral": f"backbone.fpn_lateral{int(number or 0) + 3}.{kind}",
        "output": f"backbone.fpn_output{int(number or 0) + 3}.{kind}",
        "p6": f"backbone.top_block.p6.{kind}",
        "p7": f"backbone.top_block.p7.{kind}",
        "cls_tower": f"head.cls_subnet.{2 * int(number or 0)}.{kind}",
        "box_tower": f"head.bbox_subnet.{2 * int(number or 0)}.{kind}",
        "cls": f"head.cls_score.{kind}",
        "box": f"head.bbox_pred.{kind}",
    }[head]


def reference(classes, seed=0):
    torch.manual_seed(seed)
    model = Reference(classes, caffe=True, relu_before_p7=True)
    with torch.no_grad():
        model.backbone.conv1.weight /= 57  # deviations of 1 make large inputs
    return model


@pytest.mark.ci
def test_detections_are_detectron2s(images, tmp_path):
    """A file like the model zoo's: a pickle of arrays."""
    model = reference(classes=4)
    arrays = {name: tensor.numpy() for name, tensor in model.named(detectron2_name).items()}
    assert "backbone.bottom_up.res2.0.shortcut.norm.running_mean" in arrays
    arrays["anchor_generator.cell_anchors.0"] = arrays["head.bbox_pred.bias"][:4]
    with (tmp_path / "model.pkl").open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo"}, file, protocol=2)
    run = import_weights(tmp_path / "model.pkl", tmp_path / "run")
    assert run.family == "Detectron2"
    assert run.config.model.stride_in_1x1
    detector = load(tmp_path / "run", "cpu")
    detector.config = detector.config.changed(**{"data.short_side": 100, "data.long_side": 166})
    assert_same(detector, model, images, (MEAN, (1.0, 1.0, 1.0), True), RULES)


def test_a_checkpoint_of_ones_own(tmp_path):
    model = reference(classes=80)
    state = model.named(detectron2_name) | {"pixel_mean": torch.tensor(MEAN), "pixel_std": torch.ones(3)}
    torch.save({"model": state, "optimizer": {"lr": 0.1}, "iteration": 100}, tmp_path / "model_final.pth")
    run = import_weights(tmp_path / "model_final.pth", tmp_path / "run")
    assert run.classes == coco_categories().names
    assert run.config.model.mean == pytest.approx((123.675 / 255, 116.28 / 255, 103.53 / 255))


def test_a_network_without_a_pyramid_is_refused(tmp_path):
    state = reference(classes=2).named(detectron2_name)
    torch.save({n: t for n, t in state.items() if "top_block" not in n}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="no pyramid with P6 and P7"):
        import_weights(tmp_path / "weights.pth", tmp_path / "run")
