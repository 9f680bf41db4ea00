"""The splits that a command works on: of the expected categories, and every image decoded before work begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from retinaconf.config import DataConfig
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.images import Check, check_image, check_images, see_share_left_out
from retinaconf.data.layouts import find_layout, load_split
from retinaconf.errors import InputError


class HasCategories(Protocol):
    """A split, or a detector."""

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Their K ids on disk."""


def other_category(one: HasCategories, other: HasCategories) -> str:
    """The first category in which two differ, in words; they go together by id and name, and nothing is guessed."""
    here, there = (dict(zip(each.category_ids, each.classes)) for each in (one, other))
    for category_id in sorted(here.keys() | there.keys()):
        names = [repr(names[category_id]) if category_id in names else "missing" for names in (here, there)]
        if names[0] != names[1]:
            return f"category {category_id} is {names[0]} here and {names[1]} there"
    return "they are in another order"


def read_split(
    root: Path,
    split: str,
    data: DataConfig,
    layout: str | None = None,
    val_fraction: float | None = None,
    val_list: Path | None = None,
    like: HasCategories | None = None,
    whose: Path | str = "",
    images: int | None = None,
    check: Check = check_image,
) -> GroundTruth:
    """One split, each of its images decoded once.

    Args:
        root: the data set's folder.
        split: as `load_split` takes it.
        data: which records may be left out, and the share of `train` that is held out where there is no `val`.
        layout: of the folder, instead of the one found by looking.
        val_fraction: that share, instead of the one in `data`.
        val_list: a run's list of the images of `val`.
        like: what the split must share its categories with, and `whose` these are, for the message.
        images: take at most this many images, drawn at random.
        check: what checks an image, as `check_images` takes it.

    Raises:
        InputError: no such split, bad data or too many left out, other categories, or a `val_fraction` beside a list.
    """
    fraction = data.val_fraction if val_fraction is None else val_fraction
    truth = load_split(root, split, data.skip_bad, layout, val_fraction=fraction, val_list=val_list, check=check)
    if val_fraction is not None and truth.val_split is not None and truth.val_split.kept_in is not None:
        raise InputError(f"--val-fraction {val_fraction:g}: {val_list} says which images are val; leave the option out")
    if like is not None and (truth.category_ids, truth.classes) != (like.category_ids, like.classes):
        other = other_category(truth, like)
        raise InputError(
            f"{truth.source}: its {len(truth.classes)} categories are not the {len(like.classes)} of {whose} ({other})"
            "; use data with the same categories"
        )
    see_share_left_out(truth, data.max_skipped)
    if images is not None and len(truth) > images:
        chosen = np.random.default_rng(0).choice(len(truth), images, replace=False)
        truth = replace(truth.subset(np.sort(chosen)), dropped=())  # which is about all images
    return check_images(truth, data.skip_bad, data.max_skipped, check)


def read_train_and_val(
    root: Path,
    data: DataConfig,
    layout: str | None = None,
    val_fraction: float | None = None,
    val_list: Path | None = None,
    like: HasCategories | None = None,
    whose: Path | str = "",
    check: Check = check_image,
) -> tuple[GroundTruth, GroundTruth | None]:
    """The splits `train`, which must have boxes, and `val`, held out of `train` where the data set has none.

    `val` is None where nothing is held out. Arguments as of `read_split`.

    Raises:
        InputError: as `read_split`; nothing to learn from; or the two have different categories.
    """
    train = read_split(root, "train", data, layout, val_fraction, val_list, like, whose, check=check)
    if train.crowd.all():  # also where there are no boxes
        raise InputError(f"{train.source}: no boxes to learn from; give a split with annotated objects")
    if train.val_split is None and "val" not in find_layout(root, layout).splits(root):
        return train, None
    return train, read_split(root, "val", data, layout, val_fraction, val_list, train, train.source, check=check)
