"""Convolutions in eight-bit integers: an ONNX file of `retinaconf export`, calibrated on images of a data set."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from retinaconf.data.checked import CheckedImages
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.loader import Batch, evaluation_batches
from retinaconf.data.splits import read_split
from retinaconf.detections import Detections
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.inference.detector import Detector
from retinaconf.inference.suppression import Boxes
from retinaconf.inference.tables import gathered, tables_of
from retinaconf.interop.agreement import Run
from retinaconf.run_folder import val_list

IMAGES = 100  # to calibrate on
# Their outputs are small numbers, of which the joint score and the boxes need every digit.
LAST = ("class_conv", "box_conv", "quality_conv")
BETWEEN = ("Conv", "Add", "Relu", "Clip")  # what stays in integers from one convolution to the next


def quantized(content: bytes, images: Iterable[Batch]) -> bytes:
    """The file with its convolutions in int8, except the last ones of the head.

    Weights have a scale for each output channel, and seven bits, since processors without VNNI add two products of
    eight bits in sixteen and would cut off the sum. Activations have the range that they have on `images`.
    """
    model = onnx.load_from_string(content)
    wanted = quantizable(model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        noisy = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # it advises to prepare the file, which torch's exporter has done
        try:
            quantize_static(
                model,
                file,
                _Reader(images),
                QuantFormat.QDQ,
                op_types_to_quantize=list(BETWEEN),
                nodes_to_quantize=wanted,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.getLogger().setLevel(noisy)
        return file.read_bytes()


def quantizable(model: Any) -> list[str]:
    """The names of the nodes from the first convolution up to the last ones, which are not among them."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    last = [node for node in model.graph.node if node.op_type == "Conv" and _is_last(node)]
    before: dict[str, Any] = {}
    waiting = [node.input[0] for node in last]
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.name not in before:
            before[node.name] = node
            waiting.extend(node.input)
    behind: set[str] = set()  # tensors that come from a convolution; the nodes are in the order of their computation
    for node in model.graph.node:
        if node.op_type == "Conv" or behind.intersection(node.input):
            behind.update(node.output)
    return [
        node.name
        for node in model.graph.node
        if node.name in before and node.op_type in BETWEEN and behind.issuperset(node.output)
    ]


def _is_last(node: Any) -> bool:
    return any(f".{name}." in f".{node.input[1]}." for name in LAST)


class _Reader(CalibrationDataReader):
    def __init__(self, images: Iterable[Batch]):
        self.inputs: Iterator[dict[str, np.ndarray]] = (
            {"images": batch.images.float().numpy(), "sizes": batch.sizes.numpy()} for batch in images
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The inputs of the next run, or None."""
        return next(self.inputs, None)


def quantize_and_measure(
    content: bytes, session: Callable[[bytes], Run], detector: Detector, run: Path, data: Path
) -> tuple[bytes, str]:
    """The quantized file, and what that changes of its AP as words.

    Args:
        content: an ONNX file of finished detections.
        session: what runs such a file.
        detector: of the file.
        run: the detector's run folder.
        data: the data set's folder.

    Raises:
        InputError: no split train or val, bad data, or other categories than the detector's.
    """
    settings = detector.config.data
    kept, check = val_list(run), CheckedImages(run).check
    train = read_split(data, "train", settings, val_list=kept, like=detector, whose=run, images=IMAGES, check=check)
    val = read_split(data, "val", settings, val_list=kept, like=detector, whose=run, check=check)
    integers = quantized(content, evaluation_batches(train, settings, 1))
    evaluator = CocoEvaluator(val)
    before, after = (evaluator(detect(session(file), detector, val)).overall["AP"] for file in (content, integers))
    share = len(integers) / len(content)
    return integers, (
        f"int8: AP on val {before:.4f} before, {after:.4f} after ({100 * (after - before):+.1f} points, {len(val)} "
        f"images), calibrated on {len(train)} images of train, {share:.0%} of the size"
    )


def detect(run: Run, detector: Detector, ground_truth: GroundTruth) -> Detections:
    """The detections that an exported file finds in the images of a split, as `Detector.detect` gives them."""
    found: dict[int, Detections] = {}
    for batch in evaluation_batches(ground_truth, detector.config.data, 1):
        given = run({"images": batch.images.float(), "sizes": batch.sizes})
        count = int(given["counts"][0])
        boxes, scores, labels, classes = (
            given[name][0, :count] for name in ("boxes", "scores", "labels", "class_scores")
        )
        quality = given["quality"][0, :count] if "quality" in given else None
        found |= tables_of([Boxes(boxes, scores, labels, classes, quality)], batch, ground_truth)
    return gathered(found)
