"""Batches: which images, at which size, in which order; then their pixels and boxes.

Order and augmentation are functions of (seed, epoch, image), never of a generator's state, so that a resumed run sees
exactly what the uninterrupted one would have seen, and two processes together see what one would.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retinaconf.config import Augment, DataConfig
from retinaconf.data.augment import augmentation, generator
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.images import read_image
from retinaconf.data.photometric import photometric
from retinaconf.data.transforms import Augmentation, Mosaic, apply, are_targets, by_canvas, canvas, joined, resized
from retinaconf.data.workers import leave_signals_to_the_main_process, watched
from retinaconf.errors import InputError

# Batches are sorted by aspect ratio within blocks of this many, which keeps padding small and the order random.
BATCHES_SORTED_TOGETHER = 16


@dataclass(frozen=True)
class Batch:
    """Images padded to one size, and their ground truth padded to one length."""

    images: Tensor  # (N, 3, H, W) uint8, or float32 if data.resize is torchvision; 0 to 255
    sizes: Tensor  # (N, 2) int64: height and width of each image within the padded one
    boxes: Tensor  # (N, G, 4) float32 xyxy in pixels of the resized image
    labels: Tensor  # (N, G) int64, -1 where there is no box
    index: Tensor  # (N,) int64 row in the ground truth

    def to(self, device: torch.device, non_blocking: bool = True) -> Batch:
        """The same batch on another device."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the loader calls this where there is a GPU."""
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))


@dataclass(frozen=True)
class Plan:
    """What a batch will hold: images, what happens to each, and the padded size."""

    index: tuple[int, ...]
    augmentations: tuple[Augmentation | Mosaic, ...]
    canvas: tuple[int, int]
    draws: tuple[int, int] | None = None  # seed and epoch of a training batch


class PlannedBatches(Dataset[Batch]):
    """Turns plans into batches, in the loader's worker processes."""

    def __init__(self, ground_truth: GroundTruth, knobs: Augment):
        self.ground_truth = ground_truth
        self.knobs = knobs

    def __getitem__(self, plan: Plan) -> Batch:
        """Read, augment and pad the images of a plan; crowd regions and too small boxes are no targets."""
        with _one_thread():
            return self._batch(plan)

    def _batch(self, plan: Plan) -> Batch:
        images: list[np.ndarray] = []
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        for i, change in zip(plan.index, plan.augmentations):
            pixels, boxes, labels = self._changed(i, change)
            if plan.draws is not None:
                pixels = photometric(pixels, self.knobs, partial(generator, *plan.draws, i))
            images.append(pixels)
            seen = are_targets(boxes)
            kept.append((boxes[seen], labels[seen]))
        longest = max(len(labels) for _, labels in kept)
        boxes_out = torch.zeros(len(kept), longest, 4)
        labels_out = torch.full((len(kept), longest), -1)
        for n, (boxes, labels) in enumerate(kept):
            boxes_out[n, : len(boxes)] = torch.from_numpy(boxes)
            labels_out[n, : len(labels)] = torch.from_numpy(labels)
        sizes = torch.tensor([(change.height, change.width) for change in plan.augmentations])
        return Batch(padded(images, plan.canvas), sizes, boxes_out, labels_out, torch.tensor(plan.index))

    def _changed(self, i: int, change: Augmentation | Mosaic) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels (H, W, 3), boxes (B, 4) and labels (B,); of a mosaic, of its four images one after the other."""
        if isinstance(change, Mosaic):
            parts = [self._changed(*part) for part in change.parts]
            return *joined([part[:2] for part in parts]), np.concatenate([labels for _, _, labels in parts])
        gt = self.ground_truth
        declared = (int(gt.image_sizes[i, 0]), int(gt.image_sizes[i, 1]))
        rows = np.arange(gt.offsets[i], gt.offsets[i + 1])
        rows = rows[~gt.crowd[rows]]
        return *apply(read_image(gt.path(i), declared), gt.boxes[rows], change), gt.labels[rows]


@contextmanager
def _one_thread() -> Iterator[None]:
    """A worker has one thread. With more, torch's resize rounds otherwise, and a run without workers would differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def padded(images: list[np.ndarray], canvas: tuple[int, int]) -> Tensor:
    """(N, 3, H, W), each image (h, w, 3) in the top left corner of a canvas (H, W), of the images' type."""
    batch = torch.zeros(len(images), *canvas, 3, dtype=torch.uint8 if images[0].dtype == np.uint8 else torch.float32)
    for n, pixels in enumerate(images):
        batch[n, : pixels.shape[0], : pixels.shape[1]] = torch.from_numpy(pixels.copy())
    return batch.permute(0, 3, 1, 2)


def epoch_plans(ground_truth: GroundTruth, config: DataConfig, seed: int, epoch: int) -> list[Plan]:
    """The training batches of one epoch, over all processes.

    Every batch is full: the last one is filled up with the first images of the epoch's order.
    """
    images, size = len(ground_truth), config.batch_size
    order = np.random.default_rng([seed, epoch]).permutation(images)
    steps = steps_per_epoch(images, size)
    order = np.resize(order, steps * size)  # repeats from the beginning
    changes = [augmentation(ground_truth, i, config, seed, epoch) for i in range(images)]
    ratio = ground_truth.image_sizes[:, 1] / ground_truth.image_sizes[:, 0]
    for i, change in enumerate(changes):
        if isinstance(change, Augmentation) and (change.turns or change.crop):
            ratio[i] = change.width / change.height
    blocks = np.array_split(order, range(size * BATCHES_SORTED_TOGETHER, len(order), size * BATCHES_SORTED_TOGETHER))
    batches = np.concatenate([block[np.argsort(ratio[block], kind="stable")] for block in blocks]).reshape(-1, size)
    shuffled = np.random.default_rng([seed, epoch, 1]).permutation(len(batches))
    return [_training_plan(batch, [changes[i] for i in batch], (seed, epoch)) for batch in batches[shuffled].tolist()]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches of an epoch."""
    return -(-images // batch_size)


def training_batches(
    ground_truth: GroundTruth,
    config: DataConfig,
    seed: int,
    first_step: int,
    last_step: int,
    parts: int = 1,
    rank: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Batches of steps `first_step` up to but not including `last_step`, each in `parts` pieces for this process.

    Yields (last_step - first_step) * parts batches. The pieces of all processes together are the batch that one
    process would get, on the same padded size.
    """
    if config.batch_size % (parts * processes):
        raise ValueError(f"batch size {config.batch_size} does not divide by {parts} parts x {processes} processes")

    def plans() -> Iterator[Plan]:
        steps = steps_per_epoch(len(ground_truth), config.batch_size)
        for epoch in range(first_step // steps, -(-last_step // steps)):
            for step, plan in enumerate(epoch_plans(ground_truth, config, seed, epoch), epoch * steps):
                if first_step <= step < last_step:
                    for part in range(parts):
                        chosen = slice(part * processes + rank, None, parts * processes)
                        yield replace(plan, index=plan.index[chosen], augmentations=plan.augmentations[chosen])

    return _load(ground_truth, plans(), config)


def evaluation_batches(
    ground_truth: GroundTruth, config: DataConfig, batch_size: int, rank: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """Every image once, resized and nothing else, in batches of images that have the same canvas alone.

    The batches are the same for any number of processes, which take turns.
    """
    sizes = [
        resized((int(h), int(w)), config.short_side, config.long_side, resize=config.resize)
        for h, w in ground_truth.image_sizes
    ]
    plans = [
        Plan(tuple(chunk), tuple(Augmentation(*sizes[i], resize=config.resize) for i in chunk), padded_size)
        for padded_size, images in by_canvas(sizes).items()
        for chunk in (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    ]
    return _load(ground_truth, iter(plans[rank::processes]), config)


def _training_plan(batch: list[int], changes: list[Augmentation | Mosaic], draws: tuple[int, int]) -> Plan:
    return Plan(tuple(batch), tuple(changes), canvas([(c.height, c.width) for c in changes]), draws)


class _Sampler(torch.utils.data.Sampler[Plan]):
    def __init__(self, plans: Iterator[Plan]):
        self.plans = plans

    def __iter__(self) -> Iterator[Plan]:
        return self.plans


def _load(ground_truth: GroundTruth, plans: Iterator[Plan], config: DataConfig) -> Iterator[Batch]:
    loader: DataLoader[Batch] = DataLoader(
        PlannedBatches(ground_truth, config.knobs),
        sampler=_Sampler(plans),
        batch_size=None,  # a plan is a whole batch already
        num_workers=config.workers,
        # Python 3.14 would import torch in every worker of every epoch, and give each its own copy of the annotations.
        multiprocessing_context="fork" if config.workers and sys.platform == "linux" else None,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if config.workers else None,
        worker_init_fn=leave_signals_to_the_main_process,
    )
    try:
        yield from watched(loader)
    except InputError as error:  # a worker's comes wrapped in its traceback, of which the last line is ours
        error.__traceback__ = None  # it would hold the loader, whose workers then end only when it is collected
        message = str(error.args[0]).strip().splitlines()[-1]
        raise InputError(message.removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")) from None
