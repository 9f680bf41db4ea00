"""RetinaNets under the names and by the rules of MMDetection and Detectron2, slow and obvious, to compare with.

Written from the libraries' documents and sources, without anything of ours: torchvision's ResNet is the backbone, and
boxes are found by loops over images, levels and classes.
"""

import math
from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet50
from torchvision.ops import box_iou

STRIDES = (8, 16, 32, 64, 128)


class Reference(nn.Module):
    """ResNet-50, pyramid with P6 from C5, towers of two convolutions of 32 channels."""

    def __init__(self, classes, quality=None, caffe=False, groups=False, relu_before_p7=False, anchors=9):
        super().__init__()
        self.quality, self.relu_before_p7 = quality, relu_before_p7
        self.backbone = resnet50(weights=None)
        if caffe:
            for stage in (self.backbone.layer2, self.backbone.layer3, self.backbone.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        self.lateral = nn.ModuleList(nn.Conv2d(c, 32, 1) for c in (512, 1024, 2048))
        self.output = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(3))
        self.p6 = nn.Conv2d(2048, 32, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.cls_tower = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1, bias=not groups) for _ in range(2))
        self.box_tower = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1, bias=not groups) for _ in range(2))
        self.cls_norm = nn.ModuleList(nn.GroupNorm(32, 32) for _ in range(2)) if groups else None
        self.box_norm = nn.ModuleList(nn.GroupNorm(32, 32) for _ in range(2)) if groups else None
        self.cls = nn.Conv2d(32, anchors * classes, 3, padding=1)
        self.box = nn.Conv2d(32, 4 * anchors, 3, padding=1)
        self.iou = nn.Conv2d(32, anchors, 3, padding=1) if quality else None
        self.classes = classes
        self.eval()
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if name.endswith("running_mean"):
                    tensor.normal_(0, 0.1)
                elif name.endswith("running_var"):
                    tensor.uniform_(0.5, 1.5)
            # Logits of every size, none saturated; boxes that move by pixels.
            logits, deltas, qualities = self(torch.randn(1, 3, 128, 160))
            self.cls.weight *= 1 / torch.cat([x.flatten() for x in logits]).std()
            self.box.weight *= 0.1 / torch.cat([x.flatten() for x in deltas]).std()
            self.cls.bias.normal_(-2.5, 0.5)
            self.box.bias.normal_(0, 0.05)
            if self.iou is not None:
                self.iou.weight *= 1 / torch.cat([x.flatten() for x in qualities]).std()

    def forward(self, images):
        """Maps of P3 ... P7: class logits (N, 9K, H, W), deltas (N, 36, H, W), quality logits (N, 9, H, W) or None."""
        b = self.backbone
        c2 = b.layer1(b.maxpool(b.relu(b.bn1(b.conv1(images)))))
        c3 = b.layer2(c2)
        c4 = b.layer3(c3)
        c5 = b.layer4(c4)
        l3, l4, l5 = (conv(c) for conv, c in zip(self.lateral, (c3, c4, c5)))
        l4 = l4 + F.interpolate(l5, size=l4.shape[2:], mode="nearest")
        l3 = l3 + F.interpolate(l4, size=l3.shape[2:], mode="nearest")
        levels = [conv(level) for conv, level in zip(self.output, (l3, l4, l5))]
        levels.append(self.p6(c5))
        levels.append(self.p7(levels[3].relu() if self.relu_before_p7 else levels[3]))
        logits, deltas, qualities = [], [], []
        for level in levels:
            c, r = level, level
            for i in range(2):
                c, r = self.cls_tower[i](c), self.box_tower[i](r)
                if self.cls_norm is not None:
                    c, r = self.cls_norm[i](c), self.box_norm[i](r)
                c, r = c.relu(), r.relu()
            logits.append(self.cls(c))
            deltas.append(self.box(r))
            qualities.append(self.iou(c if self.quality == "classification" else r) if self.iou is not None else None)
        return logits, deltas, qualities

    def named(self, rename):
        """The state dict under another library's names: `rename` takes ours of this file to theirs."""
        state = OrderedDict()
        for name, tensor in self.state_dict().items():
            if "backbone.fc" not in name and (new := rename(name)) is not None:
                state[new] = tensor.clone()
        return state


RATIOS, SCALES = (0.5, 1, 2), tuple(4 * 2 ** (octave / 3) for octave in range(3))


def cell_anchors(stride, by_size_first, ratios=RATIOS, scales=SCALES):
    """Boxes around the origin; by size, then ratio (Detectron2), or by ratio, then size (MMDetection)."""
    sizes = [stride * scale for scale in scales]
    pairs = [(s, r) for s in sizes for r in ratios] if by_size_first else [(s, r) for r in ratios for s in sizes]
    boxes = []
    for size, ratio in pairs:
        width = math.sqrt(size * size / ratio)
        boxes.append([-width / 2, -width * ratio / 2, width / 2, width * ratio / 2])
    return torch.tensor(boxes, dtype=torch.float64)


def detections(
    maps, size, classes, by_size_first, clip_first, limits_shrinking, alpha=0.0, ratios=RATIOS, scales=SCALES
):
    """(boxes, scores, labels) of one resized image of `size` (h, w), by the library's rules."""
    boxes, scores, labels = [], [], []
    for stride, logits, deltas, quality in zip(STRIDES, *maps):
        _, _, height, width = logits.shape
        cell = cell_anchors(stride, by_size_first, ratios, scales)
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        anchors = (torch.stack([x, y, x, y], -1)[:, :, None].double() + cell).reshape(-1, 4)
        score = logits[0].view(len(cell), classes, height, width).permute(2, 3, 0, 1).reshape(-1, classes).sigmoid()
        if quality is not None:
            score = quality[0].permute(1, 2, 0).reshape(-1, 1).sigmoid() ** alpha * score ** (1 - alpha)
        delta = deltas[0].view(len(cell), 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
        above = torch.nonzero(score > 0.05)
        order = score[above[:, 0], above[:, 1]].sort(descending=True).indices[:1000]
        anchor, label = above[order].unbind(1)
        a, d = anchors[anchor], delta[anchor]
        limit = math.log(1000 / 16)
        log = d[:, 2:].clamp(min=-limit if limits_shrinking else None, max=limit)
        side = a[:, 2:] - a[:, :2]
        centre = (a[:, :2] + a[:, 2:]) / 2 + d[:, :2] * side
        boxes.append(torch.cat([centre - side * log.exp() / 2, centre + side * log.exp() / 2], 1))
        scores.append(score[anchor, label])
        labels.append(label)
    boxes, scores, labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    border = torch.tensor([size[1], size[0], size[1], size[0]])
    if clip_first:
        boxes = torch.minimum(boxes.clamp(min=0), border)
        whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        boxes, scores, labels = boxes[whole], scores[whole], labels[whole]
    kept, label_of = [], labels.tolist()
    for row in scores.sort(descending=True).indices.tolist():
        rivals = [k for k in kept if label_of[k] == label_of[row]]
        if not rivals or box_iou(boxes[row][None], boxes[rivals]).max() <= 0.5:
            kept.append(row)
        if len(kept) == 100:
            break
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    boxes = torch.minimum(boxes.clamp(min=0), border)
    whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    return boxes[whole], scores[whole], labels[whole]


def padded(image, mean, std, bgr=False):
    """(1, 3, H, W) double, normalised, then padded with zeros to multiples of 32."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).double()
    pixels = pixels.flip(0) if bgr else pixels
    pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    _, height, width = pixels.shape
    return F.pad(pixels, (0, -width % 32, 0, -height % 32))[None]


def assert_same(detector, model, images, normal, rules):
    """The same boxes, scores and labels; rows whose scores are within 1e-5 of each other in any order."""
    detector.model.double()
    model.double()
    for image in images:
        with torch.inference_mode():
            maps = model(padded(image, *normal))
        boxes, scores, labels = detections(maps, (image.height, image.width), model.classes, **rules)
        (found,) = detector.predict([image])
        assert len(found) == len(boxes) >= 80
        torch.testing.assert_close(torch.from_numpy(found.scores).double(), scores, rtol=0, atol=1e-5)
        for row in range(len(boxes)):
            tied = torch.nonzero((scores - scores[row]).abs() < 1e-5).flatten()
            same = (torch.from_numpy(found.boxes[row]) - boxes[tied]).abs().amax(dim=1) < 1e-3
            assert (same & (labels[tied] == found.labels[row])).any()
