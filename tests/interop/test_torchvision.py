"""torchvision's RetinaNets, built by torchvision, imported and compared on real images."""

import json

import pytest
import torch
from PIL import Image
from torchvision.models.detection import (
    RetinaNet_ResNet50_FPN_Weights,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.transforms.functional import pil_to_tensor

from retinaconf import load
from retinaconf.errors import InputError
from retinaconf.interop.categories import coco_categories
from retinaconf.interop.import_weights import import_weights
from retinaconf.training import loop

SHORT, LONG = 96, 160  # instead of 800 and 1333, so that minutes become seconds
BUILDERS = {"v1": retinanet_resnet50_fpn, "v2": retinanet_resnet50_fpn_v2}


def theirs(version, classes, seed=0):
    """A model with random weights, random norm statistics and a class bias at which hundreds of boxes survive."""
    torch.manual_seed(seed)
    model = BUILDERS[version](
        weights=None, weights_backbone=None, num_classes=classes, min_size=SHORT, max_size=LONG
    ).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "bn1.bias", "bn2.bias", "bn3.bias")):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    # Logits of every size, none saturated; boxes that move by pixels.
    classes, boxes = model.head.classification_head.cls_logits, model.head.regression_head.bbox_reg
    with torch.no_grad():
        outputs = model.head(list(model.backbone(torch.randn(1, 3, 96, 160)).values()))
        classes.weight *= 1 / outputs["cls_logits"].std()
        boxes.weight *= 0.05 / outputs["bbox_regression"].std()
        classes.bias.normal_(-3, 0.5)
    return model


def imported(state, folder, **options):
    torch.save(state, folder / "weights.pth")
    run = import_weights(folder / "weights.pth", folder / "run", **options)
    flat = json.loads((folder / "run" / "config.json").read_text())
    assert (flat["data.short_side"], flat["data.long_side"]) == (800, 1333)
    detector = load(folder / "run", "cpu")
    detector.config = detector.config.changed(**{"data.short_side": SHORT, "data.long_side": LONG})
    return run, detector


def assert_same(detector, model, paths, to_theirs=None):
    """The same boxes with the same scores in the same order; `to_theirs` are their labels of our classes.

    The networks compute in double precision: in single precision, scores of random weights are so close to each other
    that rounding (5e-6 in scores, 2e-3 pixels) changes their order now and then.
    """
    model.double()
    detector.model.double()
    for path in paths:
        image = Image.open(path).convert("RGB")
        with torch.inference_mode():
            (expected,) = model([pil_to_tensor(image).double() / 255])
        (found,) = detector.predict([path])
        assert len(found) == len(expected["boxes"]) >= 200
        torch.testing.assert_close(torch.from_numpy(found.scores).double(), expected["scores"], rtol=0, atol=1e-4)
        boxes, labels = torch.from_numpy(found.boxes).double(), torch.from_numpy(found.labels)
        labels = labels if to_theirs is None else torch.tensor(to_theirs)[labels]
        tolerance = 1e-4 + 1e-6 * max(image.size)  # pixels; the second part for single precision
        for row in range(len(boxes)):
            # Our images and scores are single precision: what is so close may come in another order.
            tied = torch.nonzero((expected["scores"] - expected["scores"][row]).abs() < 1e-5).flatten()
            same = (boxes[row] - expected["boxes"][tied]).abs().amax(dim=1) < tolerance
            assert (same & (expected["labels"][tied] == labels[row])).any(), (path.name, row)


@pytest.fixture(scope="module")
def photographs(shared_data):
    """Four images of different sizes."""
    paths = {Image.open(path).size: path for path in sorted((shared_data / "coco-mini" / "val2017").iterdir())[:10]}
    return list(paths.values())[:4]


@pytest.mark.parametrize("version", [pytest.param("v1", marks=pytest.mark.slow), "v2"])
@pytest.mark.ci
def test_detections_are_torchvisions(photographs, tmp_path, version):
    model = theirs(version, classes=5)
    run, detector = imported(model.state_dict(), tmp_path)
    assert run.family == f"torchvision {version}"
    assert run.config.model.p6_from == {"v1": "p5", "v2": "c5"}[version]
    assert run.classes == ("class 1", "class 2", "class 3", "class 4", "class 5")
    assert_same(detector, model, photographs)


@pytest.mark.slow
def test_names_of_the_released_v1_and_its_epsilon_of_0(photographs, tmp_path):
    """Written before torchvision 0.14, with frozen norms, whose epsilon torchvision then sets to 0; 91 outputs."""
    model = theirs("v1", classes=91)
    coco = coco_categories()
    with torch.no_grad():
        bias = model.head.classification_head.cls_logits.bias.view(9, 91)
        bias[:, [label for label in range(91) if label not in coco.ids]] = -100  # as trained: these never fire
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if "_head.conv." in name:
            before, _, layer, _, kind = name.rsplit(".", 4)
            name = f"{before}.conv.{2 * int(layer)}.{kind}"
        elif "_blocks." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
            assert name.count(".") == 4
        state[name] = tensor
    state = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    model.load_state_dict(state)  # torchvision still reads these names
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-30  # as good as 0, which torch 2.11 refuses
    run, detector = imported(state, tmp_path)
    assert run.classes == coco.names
    assert_same(detector, model, photographs[:1], to_theirs=coco.ids)


@pytest.mark.ci
def test_the_background_of_ones_own_classes_is_dropped(photographs, tmp_path):
    model = theirs("v2", classes=3)
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.view(9, 3)[:, 0] = -100
    (tmp_path / "names.txt").write_text("cat\n\ndog\n")
    run, detector = imported(model.state_dict(), tmp_path, classes=tmp_path / "names.txt")
    assert run.classes == ("cat", "dog")
    assert detector.category_ids == (1, 2)
    assert_same(detector, model, photographs[:1], to_theirs=(1, 2))


@pytest.mark.ci
def test_fine_tuned_to_three_classes_it_keeps_every_tensor_that_fits(tiny_data, tmp_path, run_cli, monkeypatch):
    """One class is of COCO, spelled otherwise. Training ends before its first step; test_start.py takes steps."""
    for file in tiny_data.glob("*.json"):
        file.write_text(file.read_text().replace('"green"', '"Traffic_Light"'))
    state = theirs("v2", classes=91).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    import_weights(tmp_path / "weights.pth", tmp_path / "run")
    first = {}

    def look(network, *args):
        first.update(network.state_dict())
        raise InputError("seen")

    monkeypatch.setattr(loop, "build_optimizer", look)
    small = ("--data.short-side", 64, "--data.long-side", 96, "--data.batch-size", 2, "--data.workers", 0)
    words = ("train", tmp_path / "run", "--data", tiny_data, "--out", tmp_path / "new", *small)
    result = run_cli(*words, "--max-steps", 1, "--device", "cpu")
    assert (result.code, result.err) == (1, "retinaconf: seen\n")
    line = "backbone, pyramid, towers, box: kept; class: 1 of 3 by name (Traffic_Light), new: red, blue"
    assert line in result.out

    features = {name.replace("backbone.fpn.", "fpn."): t for name, t in state.items() if name.startswith("backbone.")}
    ours = {name: tensor for name, tensor in first.items() if name.startswith(("backbone.", "fpn."))}
    assert ours.keys() == {name for name in features if not name.endswith("num_batches_tracked")}  # ours count none
    assert all(tensor.equal(features[name]) for name, tensor in ours.items())
    assert first["head.classification_tower.1.weight"].equal(state["head.classification_head.conv.0.1.weight"])
    assert first["head.localization_tower.9.weight"].equal(state["head.regression_head.conv.3.0.weight"])
    boxes = state["head.regression_head.bbox_reg.weight"]
    assert first["head.box_conv.weight"].equal(boxes)
    label = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"].index("traffic light")
    rows = state["head.classification_head.cls_logits.weight"].view(9, 91, 256, 3, 3)
    ours = first["head.class_conv.weight"].view(9, 3, 256, 3, 3)
    assert ours[:, 1].equal(rows[:, label])
    assert not ours[:, 0].equal(rows[:, 0])
    torch.testing.assert_close(
        torch.sigmoid(first["head.class_conv.bias"].view(9, 3)[:, [0, 2]]), torch.full((9, 2), 0.01)
    )


@pytest.mark.ci
def test_too_many_names_are_an_error(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\nhen\n")
    with pytest.raises(InputError, match="3 classes, and 4 are named; name them with --classes"):
        imported(theirs("v1", classes=3).state_dict(), tmp_path, classes=tmp_path / "names.txt")
    assert not (tmp_path / "run").exists()
