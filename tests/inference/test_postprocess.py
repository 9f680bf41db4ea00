import math
from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops import batched_nms, box_iou

from retinaconf.cell_anchors import CellAnchors
from retinaconf.config import InferenceConfig
from retinaconf.inference import postprocess as module
from retinaconf.inference.joint_score import product, proportional, released
from retinaconf.inference.postprocess import RULES, _Anchors, postprocess
from retinaconf.inference.suppression import Boxes, suppressed
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.model.boxes import decode
from retinaconf.model.retinanet import Outputs

CANVAS = (128, 160)
CLS = product(0.0)


def outputs(n=2, classes=5, seed=0, bias=-3.5, quality=True, canvas=CANVAS):
    """Random outputs of which `bias` decides how many pass the threshold."""
    generator = torch.Generator().manual_seed(seed)
    shapes = level_shapes(*canvas)
    anchors = anchor_boxes(shapes, torch.device("cpu"), CellAnchors())
    a = len(anchors)
    return Outputs(
        torch.randn(n, a, classes, generator=generator) + bias,
        torch.randn(n, a, 4, generator=generator) * 0.3,
        torch.randn(n, a, generator=generator) if quality else None,
        anchors,
        tuple(h * w * CellAnchors().count for h, w in shapes),
    )


def slow(outputs, n, size, config, joint):
    """The rules of section 3.3 for one image, level by level, box by box."""
    found, start = [], 0
    class_scores = torch.sigmoid(outputs.class_logits[n])
    quality = None if outputs.quality_logits is None else torch.sigmoid(outputs.quality_logits[n])
    for level in outputs.level_sizes:
        rows = range(start, start + level)
        best = {a: joint(class_scores[a], None if quality is None else quality[a]).max().item() for a in rows}
        chosen = sorted(sorted(rows, key=lambda a: -best[a])[: config.candidates])
        for a in chosen:
            box = decode(outputs.anchors[a], outputs.box_deltas[n, a])
            box = torch.stack(
                [box[0].clamp(0, size[1]), box[1].clamp(0, size[0]), box[2].clamp(0, size[1]), box[3].clamp(0, size[0])]
            )
            if box[2] <= box[0] or box[3] <= box[1]:
                continue
            for k in range(class_scores.shape[1]):
                score = joint(class_scores[a, k], None if quality is None else quality[a]).item()
                if joint.proportional:
                    score = best[a] * (class_scores[a, k] / class_scores[a].max()).item()
                if score > config.score_threshold:
                    found.append((score, a, k, box))
        start += level
    if not found:
        return [], []
    found.sort(key=lambda f: -f[0])
    boxes = torch.stack([f[3] for f in found]).double()
    rank = torch.arange(len(found), 0, -1).double()  # batched_nms does not promise an order among equal scores
    kept = batched_nms(boxes, rank, torch.tensor([f[2] for f in found]), config.nms_iou)
    kept = kept[: config.detections].tolist()
    return [found[i][:3] for i in kept], [found[i][3] for i in kept]


@pytest.mark.parametrize("joint", [product(0.0), product(0.4), product(1.0), proportional(0.7)], ids=lambda j: j.name)
@pytest.mark.parametrize("bias", [-6.0, -3.5, -1.0])
def test_against_the_rules_written_as_loops(joint, bias):
    out = outputs(bias=bias, canvas=(64, 96))
    config = InferenceConfig(candidates=100, detections=50)
    sizes = torch.tensor([[64, 96], [50, 70]])
    (images,) = postprocess(out, sizes, config, [joint])
    for n in range(2):
        expected, boxes = slow(out, n, sizes[n].tolist(), config, joint)
        assert len(images[n].scores) == len(expected)
        torch.testing.assert_close(images[n].scores, torch.tensor([e[0] for e in expected]))
        assert images[n].labels.tolist() == [e[2] for e in expected]
        if expected:
            torch.testing.assert_close(images[n].boxes, torch.stack(boxes))


def slow_vote(box, candidates, sigma=0.025):
    """PAA's score voting of one box b: sum of p_i b_i / sum of p_i, over the candidates b_i of its class that overlap
    it, of score s_i, with p_i = s_i exp(-(1 - IoU(b, b_i))^2 / sigma)."""
    total, mean = 0.0, [0.0] * 4
    for other, score in candidates:
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        if width <= 0 or height <= 0:
            continue
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
        p = score * math.exp(-((1 - width * height / (sum(areas) - width * height)) ** 2) / sigma)
        total += p
        mean = [m + p * x for m, x in zip(mean, other)]
    return [m / total for m in mean] if total else list(box)


@pytest.mark.parametrize("bias", [-50.0, -5.5, -2.5])
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("joint", [product(0.0), product(0.4)], ids=lambda j: j.name)
def test_voting_against_the_papers_text_one_object_at_a_time(joint, rules, bias):
    out = outputs(n=1, classes=2, bias=bias, canvas=(64, 64))
    out.box_deltas[0, 5::7] *= 6  # boxes that reach out of the image
    out.box_deltas[0, 3::11, 0] = 100  # and some that are all outside
    config = InferenceConfig(rules=rules, candidates=100_000, detections=20, vote=True)
    height, width = 60, 50
    ((found,),) = postprocess(out, torch.tensor([[height, width]]), config, [joint])

    def clipped(box):
        return [min(max(x, 0.0), float(limit)) for x, limit in zip(box, [width, height] * 2)]

    scores = joint.of_classes(torch.sigmoid(out.class_logits[0]), torch.sigmoid(out.quality_logits[0]))
    boxes = decode(out.anchors, out.box_deltas[0], RULES[rules].min_log_ratio).tolist()
    pairs = []
    for anchor, label in (scores > config.score_threshold).nonzero().tolist():
        box = clipped(boxes[anchor]) if RULES[rules].clip_first else boxes[anchor]
        if RULES[rules].keep_empty or (box[2] > box[0] and box[3] > box[1]):
            pairs.append((box, float(scores[anchor, label]), label))
    pairs.sort(key=lambda pair: -pair[1])
    expected = []
    if pairs:
        columns = [torch.tensor(column).double() for column in zip(*pairs)]
        for n in batched_nms(columns[0], columns[1], columns[2], config.nms_iou)[:20].tolist():
            box, score, label = pairs[n]
            box = clipped(slow_vote(box, [(b, s) for b, s, k in pairs if k == label]))
            if RULES[rules].keep_empty or (box[2] > box[0] and box[3] > box[1]):
                expected.append((box, score, label))
    assert bool(expected) == (bias > -50)
    assert found.labels.tolist() == [label for _, _, label in expected]
    torch.testing.assert_close(found.scores, torch.tensor([score for _, score, _ in expected]))
    torch.testing.assert_close(found.boxes, torch.tensor([b for b, _, _ in expected]).view(-1, 4), rtol=0, atol=1e-4)
    ((plain,),) = postprocess(out, torch.tensor([[height, width]]), config.model_copy(update={"vote": False}), [joint])
    if bias > -5:
        assert (plain.boxes - found.boxes).abs().amax() > 0.1


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("rules", [name for name, rules in RULES.items() if rules.clip_first])
def test_soft_nms_against_a_loop_over_pairs(rules, threshold):
    """Each survivor of NMS, best first, lowers the scores of all behind it."""
    out = outputs(n=2, classes=3, bias=-2.0, canvas=(64, 96))
    out.box_deltas[0, 5::7] *= 6  # boxes that reach out of the image
    config = InferenceConfig(rules=rules, nms_iou=0.75, detections=80, score_threshold=threshold)
    sizes, joint = torch.tensor([[64, 96], [50, 70]]), product(0.4)
    (plain,) = postprocess(out, sizes, config, [joint])
    (soft,) = postprocess(out, sizes, config.model_copy(update={"soft_nms": True}), [joint])
    for kept, found in zip(plain, soft):
        scores = kept.scores.tolist()
        for i in range(len(scores)):
            for j in range(i + 1, len(scores)):
                if kept.labels[i] == kept.labels[j]:
                    overlap = float(box_iou(kept.boxes[i, None], kept.boxes[j, None]).nan_to_num())  # NaN: no area
                    scores[j] *= math.exp(-(overlap**2) / 0.7)
        order = sorted((n for n in range(len(scores)) if scores[n] > threshold), key=lambda n: -scores[n])
        assert len(order) > 10
        assert (len(order) < len(scores)) == (threshold > 0)
        torch.testing.assert_close(found.scores, torch.tensor([scores[n] for n in order]), rtol=1e-4, atol=0)
        assert (found.scores.diff() <= 0).all()
        for ours, theirs in zip(found[::2], kept.rows(torch.tensor(order))[::2]):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_torchvision_gives_the_same_where_its_rules_agree(seed):
    """torchvision ranks (anchor, class) pairs, so fewer than its limit must pass, and it keeps boxes without area."""
    out = outputs(n=1, seed=seed, bias=-3.0, quality=False)
    boxes = decode(out.anchors, out.box_deltas[0]).clamp(min=0).minimum(torch.tensor([160, 128, 160, 128]))
    out.class_logits[0, ((boxes[:, 2:] - boxes[:, :2]) <= 0).any(1)] = -20
    network = RetinaNet(
        torch.nn.Module.__new__(_Backbone),
        5,
        head=RetinaNetHead(8, 9, 5),
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        topk_candidates=10_000,
    )
    split = list(out.level_sizes)
    theirs = network.postprocess_detections(
        {
            "cls_logits": list(out.class_logits.split(split, 1)),
            "bbox_regression": list(out.box_deltas.split(split, 1)),
        },
        [list(out.anchors.split(split))],
        [CANVAS],
    )[0]
    config = InferenceConfig(candidates=10_000)
    ((ours,),) = postprocess(out, torch.tensor([CANVAS]), config, [CLS])
    assert len(ours.scores) == 100
    torch.testing.assert_close(ours.scores, theirs["scores"])
    torch.testing.assert_close(ours.boxes, theirs["boxes"], rtol=1e-5, atol=1e-4)
    assert torch.equal(ours.labels, theirs["labels"])


class _Backbone(torch.nn.Module):
    out_channels = 8


def test_many_joint_scores_at_once_are_each_alone():
    out = outputs()
    sizes = torch.tensor([CANVAS, CANVAS])
    joints = [product(0.0), product(0.3), product(0.9)]
    together = postprocess(out, sizes, InferenceConfig(), joints)
    for joint, images in zip(joints, together):
        (alone,) = postprocess(out, sizes, InferenceConfig(), [joint])
        for a, b in zip(images, alone):
            assert torch.equal(a.boxes, b.boxes)
            assert torch.equal(a.scores, b.scores)


def assert_close(mine: list[Boxes], others: list[Boxes]) -> None:
    """The same boxes in the same order, up to the last bits of their scores."""
    for found, expected in zip(mine, others, strict=True):
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(
    "joint",
    [product(0.0), product(0.4), product(1.0), proportional(0.7), released(0.4), product(0.4, 0.5)],
    ids=lambda j: j.name,
)
def test_where_very_many_anchors_pass_the_best_give_what_all_give(joint, rules, ties, monkeypatch):
    out, sizes = outputs(bias=-1.0), torch.tensor([CANVAS, (100, 130)])
    if ties:
        out = out._replace(class_logits=out.class_logits.round(), quality_logits=out.quality_logits.round())
    config = InferenceConfig(rules=rules, detections=20, soft_nms=True)
    monkeypatch.setattr(module, "VERY_MANY", 10**9)
    (expected,) = postprocess(out, sizes, config, [joint])
    looked_at_all = []
    monkeypatch.setattr(module, "VERY_MANY", 100)
    best_of_levels = _Anchors.best_of_levels
    monkeypatch.setattr(_Anchors, "best_of_levels", lambda anchors: looked_at_all.append(1) or best_of_levels(anchors))
    (found,) = postprocess(out, sizes, config, [joint])
    assert len(looked_at_all) == 0 or ties  # where all the best are equal, the bar leaves none
    assert min(len(image.scores) for image in found) > 5
    assert_close(found, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"nms_iou": 0.01, "detections": 60},  # NMS leaves too few
        {"candidates": 90},  # more may be among the best than a level's candidates
        {"detections": 2000},
        {"vote": True},  # all candidates vote
    ],
)
def test_where_the_best_anchors_are_not_enough_all_are_looked_at(changes, monkeypatch):
    out, sizes = outputs(bias=-1.0), torch.tensor([CANVAS, (100, 130)])
    config = InferenceConfig(**{"detections": 20} | changes)
    monkeypatch.setattr(module, "VERY_MANY", 10**9)
    (expected,) = postprocess(out, sizes, config, [product(0.4)])
    monkeypatch.setattr(module, "VERY_MANY", 100)
    monkeypatch.setattr(_Anchors, "best_of_levels", lambda anchors: pytest.fail("all are looked at"))
    with pytest.raises(pytest.fail.Exception):
        postprocess(out, sizes, config, [product(0.4)])
    monkeypatch.undo()
    monkeypatch.setattr(module, "VERY_MANY", 100)
    (found,) = postprocess(out, sizes, config, [product(0.4)])
    assert_close(found, expected)


def test_alpha_0_with_a_branch_is_the_detector_without_it():
    with_branch = outputs()
    without = with_branch._replace(quality_logits=None)
    sizes = torch.tensor([CANVAS, CANVAS])
    for a, b in zip(*(postprocess(o, sizes, InferenceConfig(), [CLS])[0] for o in (with_branch, without))):
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.scores, a.class_scores)
        assert b.quality is None


def test_candidates_before_nms_hold_the_detections():
    out = outputs(n=1)
    sizes = torch.tensor([CANVAS])
    ((all_of_them,),) = postprocess(out, sizes, InferenceConfig(), [product(0.4)], suppress=False)
    ((kept,),) = postprocess(out, sizes, InferenceConfig(detections=10_000), [product(0.4)])
    rows = suppressed(all_of_them, 0.5, 10_000)
    assert 0 < len(kept.scores) < len(all_of_them.scores)
    assert torch.equal(all_of_them.boxes[rows], kept.boxes)
    assert (all_of_them.scores > 0.05).all()
    assert (all_of_them.scores.diff() <= 0).all()


def test_nothing_passes():
    ((found,),) = postprocess(outputs(n=1, bias=-50), torch.tensor([CANVAS]), InferenceConfig(), [product(0.2)])
    assert found.boxes.shape == (0, 4)
    assert len(found.scores) == len(found.labels) == len(found.quality) == 0


def test_boxes_stay_in_the_image_and_empty_ones_go():
    out = outputs(n=1, bias=0)
    out.box_deltas[:, ::2, 0] = 100  # far to the right: nothing is left after clipping
    size = torch.tensor([[100, 90]])
    ((found,),) = postprocess(out, size, InferenceConfig(detections=10_000), [CLS])
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= 90).all()
    assert (found.boxes[:, 3] <= 100).all()
    assert (found.boxes[:, 2] > found.boxes[:, 0]).all()
    assert (found.boxes[:, 3] > found.boxes[:, 1]).all()


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("class_logits", math.nan),
        ("box_deltas", math.nan),
        ("box_deltas", math.inf),
        ("box_deltas", -math.inf),
        ("quality_logits", math.nan),
    ],
)
def test_an_anchor_that_is_not_finite_is_as_one_without_a_score(rules, column, value):
    """Its company is detected as if it were not there: same NMS, same places among the candidates."""
    config = InferenceConfig(rules=rules, candidates=200, detections=10_000)
    sizes = torch.tensor([CANVAS, CANVAS])
    broken, silent = outputs(bias=-1.0), outputs(bias=-1.0)
    for anchor in (3, 7, broken.level_sizes[0] + 2):  # in levels with more anchors than candidates, in one image
        broken.class_logits[0, anchor] = 3  # among the best
        getattr(broken, column)[0, anchor, ...] = value
        silent.class_logits[0, anchor] = -50
    for joint in (product(0.0), product(1.0), proportional(0.4)):
        for suppress in (True, False):
            results = [postprocess(out, sizes, config, [joint], suppress)[0] for out in (broken, silent)]
            for found, expected in zip(*results):
                assert len(found.scores) > 100
                for mine, other in zip(found, expected):
                    assert torch.equal(mine, other)


@pytest.mark.parametrize("delta", [1e30, 3e38])
@pytest.mark.parametrize("vote", [False, True])
def test_a_box_far_outside_the_image_leaves_nms_to_the_others(vote, delta):
    """Detectron2 clips after NMS. A finite delta can put a box so far out that, measured by it, all others are one."""
    config = InferenceConfig(rules="detectron2", candidates=100_000, detections=10_000, vote=vote)
    lost, silent = (outputs(n=1, bias=-1.0, canvas=(64, 64)) for _ in range(2))
    lost.box_deltas[0, 7, 0] = delta
    silent.class_logits[0, 7] = -50
    ((found,),), ((expected,),) = (postprocess(out, torch.tensor([[64, 64]]), config, [CLS]) for out in (lost, silent))
    assert len(expected.scores) > 100
    for mine, other in zip(found[:4], expected[:4]):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4 * vote)  # a mean rounds by the number of its terms


THERE = torch.device("meta")  # stands for `mps`, which torch knows on a Mac only


class OnAppleGPU(torch.Tensor):
    """A tensor known as being on a device that has no float64; `tensor`, on the CPU, is its content."""

    @staticmethod
    def __new__(cls, tensor):
        assert tensor.dtype != torch.float64, "no float64 here"
        made = torch.Tensor._make_wrapper_subclass(cls, tensor.shape, dtype=tensor.dtype, device=THERE)
        made.tensor = tensor
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of AppleGPU()")

    def tolist(self):
        return self.tensor.tolist()


class AppleGPU(TorchDispatchMode):
    """What is asked of that device is computed on the CPU, but for float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        here = any(isinstance(tensor, OnAppleGPU) for tensor in tensors)
        assert not here or all(isinstance(tensor, OnAppleGPU) or tensor.ndim == 0 for tensor in tensors), "two devices"
        if "device" in kwargs:
            here = kwargs["device"] == THERE
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map(lambda value: getattr(value, "tensor", value), (args, kwargs))
        result = function(*args, **kwargs)
        return tree_map(lambda value: OnAppleGPU(value) if here and isinstance(value, torch.Tensor) else value, result)


@pytest.mark.parametrize("settings", [{"candidates": 200, "vote": True}, {"detections": 51}])
def test_a_device_without_float64(settings, monkeypatch):
    monkeypatch.setattr(module, "VERY_MANY", 100)  # the second tries the best alone
    out, config = outputs(bias=-2.0), InferenceConfig(**settings)
    sizes, joints = torch.tensor([CANVAS, (100, 130)]), [product(0.4), proportional(0.7)]
    with AppleGPU():
        with pytest.raises(AssertionError, match="no float64"):
            OnAppleGPU(out.anchors).double()
        there = Outputs(*map(OnAppleGPU, out[:4]), out.level_sizes)
        # One by one: `AppleGPU()` is of this thread.
        results = [postprocess(there, OnAppleGPU(sizes), config, [joint])[0] for joint in joints]
    for mine, others in zip(results, postprocess(out, sizes, config, joints)):
        for found, expected in zip(mine, others):
            assert len(expected.scores) > 50
            for one, two in zip(found, expected):
                assert type(one) is torch.Tensor
                assert torch.equal(one, two)


def test_the_released_code_leaves_the_quality_out_on_small_levels():
    """Level by level: those with at most `candidates` anchors by cls^(1 - alpha), the others by equation (11)."""
    out = outputs(n=1, bias=-2.0)
    config = InferenceConfig(candidates=200)
    assert any(size > 200 for size in out.level_sizes)
    assert any(size <= 200 for size in out.level_sizes)
    size = torch.tensor([CANVAS])
    ((found,),) = postprocess(out, size, config, [released(0.4)], suppress=False)

    expected, start = [], 0
    for level in out.level_sizes:
        rows = slice(start, start + level)
        # Another way: a network whose objectness is certain on that level.
        certain = out.quality_logits[:, rows] if level > 200 else torch.full((1, level), 100.0)
        one = Outputs(out.class_logits[:, rows], out.box_deltas[:, rows], certain, out.anchors[rows], (level,))
        expected.append(postprocess(one, size, config, [product(0.4)], suppress=False)[0][0].scores)
        start += level
    torch.testing.assert_close(found.scores, torch.cat(expected).sort(descending=True).values)
    assert found.quality.max() < 1  # what is reported is what the branch says
    ((plain,),) = postprocess(out, size, config, [product(0.4)], suppress=False)
    assert len(found.scores) != len(plain.scores)


def test_the_setting_names_all_rules():
    assert tuple(RULES) == get_args(InferenceConfig.model_fields["rules"].annotation)
