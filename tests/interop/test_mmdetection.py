"""MMDetection's RetinaNets under their exact names, imported and compared with a slow transcription of their rules."""

import pytest
import torch
from reference import Reference, assert_same

from retinaconf import load
from retinaconf.errors import InputError
from retinaconf.interop.categories import coco_categories
from retinaconf.interop.import_weights import import_weights

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CONFIG = """
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    type='RetinaNet',
    backbone=dict(type='ResNet', depth=50, style='pytorch'),
    neck=dict(type='FPN', start_level=1, add_extra_convs='on_input'),
    bbox_head=dict(type='RetinaHead', num_classes=4),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(166, 100), transforms=[dict(type='Normalize', **img_norm_cfg)])]
"""


def mmdetection_name(name):
    """The reference's names to MMDetection's."""
    part, _, kind = name.rpartition(".")
    head, _, number = part.partition(".")
    return {
        "lateral": f"neck.lateral_convs.{number}.conv.{kind}",
        "output": f"neck.fpn_convs.{number}.conv.{kind}",
        "p6": f"neck.fpn_convs.3.conv.{kind}",
        "p7": f"neck.fpn_convs.4.conv.{kind}",
        "cls_tower": f"bbox_head.cls_convs.{number}.conv.{kind}",
        "box_tower": f"bbox_head.reg_convs.{number}.conv.{kind}",
        "cls_norm": f"bbox_head.cls_convs.{number}.gn.{kind}",
        "box_norm": f"bbox_head.reg_convs.{number}.gn.{kind}",
        "cls": f"bbox_head.retina_cls.{kind}",
        "box": f"bbox_head.retina_reg.{kind}",
        "iou": f"bbox_head.retina_iou.{kind}",
    }.get(head, name)


def imported(state, folder, meta=None, **options):
    torch.save({"state_dict": state, "meta": meta or {}}, folder / "weights.pth")
    run = import_weights(folder / "weights.pth", folder / "run", **options)
    return run, load(folder / "run", "cpu")


RULES = {"by_size_first": False, "clip_first": True, "limits_shrinking": True}


@pytest.mark.parametrize("groups", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "group norm"])
@pytest.mark.ci
def test_detections_are_mmdetections(images, tmp_path, groups):
    torch.manual_seed(0)
    model = Reference(classes=4, groups=groups)
    state = model.named(mmdetection_name)
    assert {"neck.lateral_convs.0.conv.weight", "backbone.layer1.0.downsample.1.running_var"} <= set(state)
    meta = {"config": CONFIG, "CLASSES": ("a", "b", "c", "d"), "mmdet_version": "2.25.0"}
    run, detector = imported(state, tmp_path, meta)
    assert run.classes == ("a", "b", "c", "d")
    assert (run.config.data.short_side, run.config.data.long_side) == (100, 166)
    assert run.config.model.head_norm == ("group" if groups else "none")
    assert_same(detector, model, images, (MEAN, STD), RULES)


@pytest.mark.parametrize("tower", ["classification", pytest.param("localization", marks=pytest.mark.slow)])
@pytest.mark.ci
def test_the_joint_score_ranks_where_there_is_a_quality_branch(images, tmp_path, tower):
    torch.manual_seed(1)
    model = Reference(classes=4, quality=tower)
    run, detector = imported(model.named(mmdetection_name), tmp_path, {"config": CONFIG}, quality=tower)
    alpha = {"classification": 0.4, "localization": 0.5}[tower]
    assert (run.config.model.quality, run.config.inference.alpha) == (tower, alpha)
    assert_same(detector, model, images, (MEAN, STD), RULES | {"alpha": alpha})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generator", "ratios", "scales"),
    [
        ("octave_base_scale=3, scales_per_octave=2, ratios=[0.25, 1.0]", (0.25, 1.0), (3, 3 * 2**0.5)),
        pytest.param(*("scales=[8], ratios=[1.0], strides=[8, 16, 32, 64, 128]", (1.0,), (8,)), marks=pytest.mark.slow),
    ],
    ids=["octaves", "one square"],
)
def test_the_anchors_are_those_of_its_configuration(images, tmp_path, generator, ratios, scales):
    torch.manual_seed(3)
    model = Reference(classes=4, anchors=len(ratios) * len(scales))
    text = CONFIG.replace("num_classes=4", f"num_classes=4, anchor_generator=dict(type='AnchorGenerator', {generator})")
    run, detector = imported(model.named(mmdetection_name), tmp_path, {"config": text})
    assert (run.config.model.anchor_ratios, run.config.model.anchor_scales) == (ratios, scales)
    assert_same(detector, model, images, (MEAN, STD), RULES | {"ratios": ratios, "scales": scales})


@pytest.mark.parametrize(
    ("generator", "complaint"),
    [
        ("strides=[4, 8, 16, 32, 64]", "lie otherwise than RetinaNet's"),
        ("ratios=[1.0]", "9 anchors a cell, and what is known of them makes 3"),
    ],
)
def test_other_anchors_are_refused(tmp_path, generator, complaint):
    text = CONFIG.replace("num_classes=4", f"num_classes=4, anchor_generator=dict(type='AnchorGenerator', {generator})")
    with pytest.raises(InputError, match=complaint):
        imported(Reference(classes=4).named(mmdetection_name), tmp_path, {"config": text})


@pytest.mark.ci
def test_caffe_style_takes_bgr_and_strides_early(images, tmp_path):
    torch.manual_seed(2)
    model = Reference(classes=4, caffe=True)
    text = CONFIG.replace("style='pytorch'", "style='caffe'").replace("to_rgb=True", "to_rgb=False")
    text = text.replace("[123.675, 116.28, 103.53]", "[103.53, 116.28, 123.675]")
    text = text.replace("[58.395, 57.12, 57.375]", "[1.0, 1.0, 1.0]")
    # Deviations of 1 make large inputs; smaller weights bring the activations back.
    with torch.no_grad():
        model.backbone.conv1.weight /= 57
    run, detector = imported(model.named(mmdetection_name), tmp_path, {"config": text})
    assert run.config.model.stride_in_1x1
    assert_same(detector, model, images, ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), True), RULES)


@pytest.mark.ci
def test_a_configuration_of_version_3(tmp_path):
    """Other names for the same: data_preprocessor, scale, dataset_meta; and logs that no class here can hold."""
    text = """
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=50, style='pytorch'),
    test_cfg=dict(nms_pre=500, score_thr=0.01, nms=dict(type='nms', iou_threshold=0.6), max_per_img=50))
test_pipeline = [dict(type='Resize', scale=(1000, 600), keep_ratio=True)]
"""
    torch.manual_seed(0)
    model = Reference(classes=80)
    meta = {"cfg": text, "dataset_meta": {"classes": coco_categories().names}}
    run, detector = imported(model.named(mmdetection_name), tmp_path, meta)
    assert detector.category_ids == coco_categories().ids
    inference = run.config.inference
    assert (inference.candidates, inference.score_threshold, inference.nms_iou) == (500, 0.01, 0.6)
    assert (inference.detections, run.config.data.short_side, run.config.data.long_side) == (50, 600, 1000)


@pytest.fixture(scope="module")
def retinanet():
    """The weights of a RetinaNet with group norms, by MMDetection's names."""
    return Reference(classes=2, groups=True).named(mmdetection_name)


@pytest.mark.parametrize(
    ("rename", "complaint"),
    [
        ({"retina_cls": "gfl_cls"}, "GFL head, whose boxes are distributions; only RetinaNets"),
        ({"retina_cls": "atss_cls"}, "ATSS head"),
        ({"retina_cls": "something"}, "without `bbox_head.retina_cls`"),
        ({".gn.": ".bn."}, "batch norms in its head"),
        ({"retina_reg": "retina_box"}, "lacks what becomes"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_other_heads_are_refused(retinanet, tmp_path, rename, complaint):
    state = retinanet
    for old, new in rename.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    with pytest.raises(InputError, match=complaint) as error:
        imported(state, tmp_path)
    assert str(tmp_path / "weights.pth") in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.ci
def test_a_branch_without_a_tower_is_asked_for(tmp_path):
    state = Reference(classes=2, quality="localization").named(mmdetection_name)
    with pytest.raises(InputError, match=r"say --quality localization .* or --quality classification"):
        imported(state, tmp_path)
