import json
from itertools import product

import pytest

from retinaconf.config import Augment, config_from_flat
from retinaconf.errors import InputError
from retinaconf.recipes import RECIPES, paper_recipe, recipe

DETECTORS = ("retinanet", "iou-aware", "joint", "conf", "aligned")
PAPER = [f"{d}-{b}-{s}" for d, b, s in product(DETECTORS, ("r50", "r101"), ("1x", "2x"))]
LITE = [f"{d}-lite0" for d in DETECTORS]


def test_there_are_these():
    assert sorted(RECIPES) == sorted(PAPER + LITE)
    assert len(RECIPES) == 25


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_setup(name: str):
    config = recipe(name)
    backbone = {"r50": "resnet50.tv_in1k", "r101": "resnet101.tv_in1k"}[name.split("-")[-2]]
    epochs, milestones = {"1x": (12, (8, 11)), "2x": (24, (16, 22))}[name.split("-")[-1]]
    expected = {
        "model.backbone": backbone,
        "model.weights": "imagenet",
        "model.freeze": "stem",
        "model.freeze_norm": True,
        "model.channels": 256,
        "model.head_convs": 4,
        "model.relu_before_p7": False,
        "model.mean": (0.485, 0.456, 0.406),
        "model.std": (0.229, 0.224, 0.225),
        "data.short_side": 600,
        "data.long_side": 1000,
        "data.augment": "flip",
        "data.scale": (1.0, 1.0),
        "data.batch_size": 16,
        "loss.focal_alpha": 0.25,
        "loss.focal_gamma": 2.0,
        "loss.quality": "ce",
        "loss.quality_weight": 1.0,
        "loss.box_weight": 2.0 if name.startswith("aligned") else 1.0,
        "loss.detach_quality_target": False,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.01,
        "optimizer.reference_batch": 16,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 1e-4,
        "optimizer.clip_norm": 0.0,
        "optimizer.ema": 0.0,
        "schedule.epochs": epochs,
        "schedule.decay": "step",
        "schedule.milestones": milestones,
        "schedule.warmup_steps": 500,
        "schedule.warmup_start": 0.001,
        "inference.score_threshold": 0.05,
        "inference.candidates": 1000,
        "inference.nms_iou": 0.75 if name.startswith("aligned") else 0.5,
        "inference.detections": 100,
    }
    assert config == config.changed(**expected)
    assert config.data.knobs == Augment(flip=0.5)


@pytest.mark.parametrize(
    ("detector", "quality", "class_target", "alphas"),
    [
        ("retinanet", "none", "label", (0, 0)),
        ("iou-aware", "localization", "label", (0.4, 0.5)),
        ("joint", "none", "iou", (0, 0)),
        ("conf", "classification", "label", (0.2, 0.4)),
    ],
)
def test_the_four_detectors_of_figure_3(detector: str, quality: str, class_target: str, alphas: tuple[float, float]):
    for name, config in RECIPES.items():
        if name.startswith(f"{detector}-"):
            assert (config.model.quality, config.model.class_target) == (quality, class_target)
            assert alphas[0] <= config.inference.alpha <= alphas[1]  # the paper's best, Table 5


def test_aligned_is_one_anchor_a_cell_whose_distribution_says_the_quality():
    for name, config in RECIPES.items():
        if name.startswith("aligned-"):
            assert len(config.model.cell_anchors.sides(8)) == 1
            assert (config.model.box, config.model.quality) == ("distribution", "distribution")
            assert (config.matching.assigner, config.loss.joint, config.loss.box) == ("atss", "product", "giou")
            assert 0 < config.inference.alpha < 1
            assert (config.inference.vote, config.loss.iou_score) == (True, "varifocal")
            assert (config.inference.soft_nms, config.inference.nms_iou) == (True, 0.75)


@pytest.mark.parametrize("other", ["iou-aware", "joint", "conf"])
@pytest.mark.parametrize("rest", ["r50-1x", "r50-2x", "r101-1x", "r101-2x", "lite0"])
def test_detectors_of_one_setup_differ_in_nothing_else(other: str, rest: str):
    one, two = recipe(f"retinanet-{rest}").flat(), recipe(f"{other}-{rest}").flat()
    different = {name for name in one if one[name] != two[name]}
    assert different <= {"model.quality", "model.class_target", "inference.alpha"}


@pytest.mark.parametrize("name", LITE)
def test_the_small_setup_is_for_small_data_sets(name: str):
    config = recipe(name)
    assert config.model.backbone == "tf_efficientnet_lite0"
    assert config.data.short_side == 320
    assert config.optimizer.name == "adamw"
    assert config.model.channels < 256


@pytest.mark.parametrize("name", PAPER + LITE)
def test_a_recipe_survives_its_file(name: str):
    assert config_from_flat(json.loads(json.dumps(recipe(name).flat())), "test") == recipe(name)


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(InputError, match=r"no recipe 'conf-r18-1x'; there are .*conf-r50-1x.*conf-lite0"):
        recipe("conf-r18-1x")


def test_the_papers_items_start_from_plain_retinanet():
    assert paper_recipe("r50", "2x") == recipe("retinanet-r50-2x")
    assert paper_recipe("lite0", "1x") == recipe("retinanet-lite0")
    assert paper_recipe("lite0", "2x").schedule.epochs == 2 * recipe("retinanet-lite0").schedule.epochs
