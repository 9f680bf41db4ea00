"""The public face: a trained detector, from images to detections."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from PIL import Image
from torch import Tensor

from retinaconf.config import SOFT_NMS_IOU, Config, InferenceConfig
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.images import read_image
from retinaconf.data.loader import Batch, evaluation_batches, padded
from retinaconf.data.transforms import Augmentation, apply, by_canvas, resized
from retinaconf.detections import Detections
from retinaconf.device import find_device
from retinaconf.errors import InputError
from retinaconf.evaluation.tuning import Tuning, tuning_of
from retinaconf.inference.cuda_graphs import CudaGraphs
from retinaconf.inference.joint_score import WITH_ALPHA, JointScore, joint_score
from retinaconf.inference.model_card import best_metrics, model_card
from retinaconf.inference.postprocess import postprocess
from retinaconf.inference.sources import find_images
from retinaconf.inference.tables import gathered, tables_of, to_table
from retinaconf.inference.winograd import Winograd
from retinaconf.model.backbone import make_plain
from retinaconf.model.retinanet import Outputs, with_weights
from retinaconf.run_folder import CONFIG, MODEL, Weights, read_weights, write_config, write_weights

BATCH = 8  # images a pass when many are given
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # owner/name
_UNREACHED = "the Hugging Face Hub cannot be reached ({}); go online, or give a run folder"


def load(run: str | Path, device: str | torch.device = "auto") -> Detector:
    """The detector of a run folder (or of a `model.safetensors`), on a device by its name in `retinaconf.device`.

    What is not there and reads as `owner/name`, with no local folder `owner`, is fetched from the Hugging Face Hub.

    Raises:
        InputError: the folder holds no model, or one that does not fit its configuration; the Hub has no such model or
            cannot be reached; there is no such device.
    """
    path = Path(run)
    name = path.as_posix()
    if _HUB_NAME.fullmatch(name) and not path.exists() and not path.parent.exists():
        try:
            return Detector.from_pretrained(name, device=device)
        except RepositoryNotFoundError:
            reason = "the Hugging Face Hub has no such model, or not for you; correct the name, or `hf auth login`"
        except (LocalEntryNotFoundError, HFValidationError) as error:  # the first: neither online nor in the cache
            reason = _UNREACHED.format(type(error).__name__)
        except EntryNotFoundError:
            reason = f"the model of this name on the Hugging Face Hub has no {MODEL}; it is not one of retinaconf's"
        except OSError as error:
            reason = _UNREACHED.format(type(error).__name__)
        raise InputError(f"{run}: no such folder here, and {reason}")
    weights = read_weights(path)
    try:
        return Detector(weights, device, best_metrics(path if path.is_dir() else path.parent))
    except InputError as error:
        raise InputError(f"{run}: {error}") from None


class Detector(ModelHubMixin):
    """A trained network with its classes and settings.

    `save_pretrained(folder)` and `push_to_hub("owner/name")` write `config.json`, `model.safetensors` and a model card;
    `from_pretrained` reads them, from either place.
    """

    def __init__(
        self,
        weights: Weights,
        device: str | torch.device = "auto",
        metrics: Mapping[str, float] | None = None,
    ):
        self.config: Config = weights.config
        self.classes = weights.classes
        self.category_ids = weights.category_ids
        self.metrics = metrics  # of the validation that chose the weights, if that is known
        self.tuning: Tuning | None = None if weights.tuning is None else tuning_of(weights.tuning)
        self.device = find_device(device)
        try:
            self.model = with_weights(self.config.model, len(self.classes), weights.state).eval()
        except InputError as error:
            raise InputError(f"its weights do not fit its configuration ({error}); restore it, or train anew") from None
        self.state = weights.state  # as trained; those of `model` hold the norms, too
        make_plain(self.model)
        # Channels last makes inference faster: two thirds of the time on a CPU.
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._graphs = CudaGraphs(self.model) if self.device.type == "cuda" else None

    def _save_pretrained(self, save_directory: Path) -> None:
        write_config(save_directory / CONFIG, self.config)
        tuning = None if self.tuning is None else self.tuning.values()
        categories = (self.classes, self.category_ids)
        write_weights(save_directory / MODEL, self.state, self.config, *categories, tuning)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,  # device
    ) -> Detector:
        device = model_kwargs.get("device", "auto")
        if Path(model_id).is_dir():
            return load(model_id, device)
        file = hf_hub_download(
            model_id,
            MODEL,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return load(file, device)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """What `README.md` of a saved model says."""
        return ModelCard(model_card(self.config, self.classes, self.metrics))

    def predict(
        self, images: Any, alpha: float | None = None, score_threshold: float | None = None, bgr: bool = False
    ) -> list[Detections]:
        """Detections of each image, in the order of `images`.

        What is found in an image does not depend on the others, but for rounding: their number, and the image's place
        among them, can change a score by about 1e-6.

        Args:
            images: a path, a PIL image, an array (H, W, 3), a tensor (3, H, W), or an iterable of these, such as a list
                or a generator; or a folder, of which all images at any depth are taken, or a pattern such as
                `photos/**/*.jpg`, both sorted by path. The channels of arrays and tensors are red, green, blue.
            alpha: exponent of the quality in the joint score, instead of the run's own.
            score_threshold: joint score that a detection must exceed, instead of the run's own.
            bgr: the channels of arrays and tensors are blue, green, red, as OpenCV has them.

        Raises:
            InputError: an image cannot be read, or `alpha` is not in [0, 1] or has no quality branch to weigh. All
                files of a list are read once before the first detection, so that no work is lost to a bad one.
        """
        return list(self.stream(images, alpha, score_threshold, bgr))

    def stream(
        self, images: Any, alpha: float | None = None, score_threshold: float | None = None, bgr: bool = False
    ) -> Iterator[Detections]:
        """As `predict`, but one by one: images are read, in batches of 8, as their detections are asked for.

        A generator may have no end, and memory does not grow with the number of images.

        Raises:
            InputError: as `predict`, at once. An image of a generator or a folder that cannot be read: when it comes.
        """
        changes = {"alpha": alpha, "score_threshold": score_threshold}
        config = self.inference_config(**{name: value for name, value in changes.items() if value is not None})
        return self._stream(find_images(images), config, bgr)

    def _stream(self, images: Iterable[Any], config: InferenceConfig, bgr: bool) -> Iterator[Detections]:
        sources = iter(images)
        while part := list(islice(sources, BATCH)):
            yield from self._predict([read_image(source, bgr=bgr) for source in part], config)

    def inference_config(self, **changes: Any) -> InferenceConfig:
        """The run's inference settings, as tuned if it is, with some changed. An `alpha` asks for equation (11) where
        the run's joint score has none.

        Raises:
            InputError: a value does not fit, or it needs a quality branch and there is none.
        """
        own = self.config.inference
        settings: dict[str, Any] = {"joint": own.joint, "alpha": own.alpha}
        if self.tuning is not None:
            settings = {"joint": self.tuning.joint, "alpha": self.tuning.alpha}
            if self.tuning.soft_nms:
                settings |= {"soft_nms": True, "nms_iou": SOFT_NMS_IOU}
        if "alpha" in changes and settings["joint"] not in WITH_ALPHA:
            settings["joint"] = "product"
        settings |= changes
        return self.config.changed(**{f"inference.{name}": value for name, value in settings.items()}).inference

    def detect(
        self,
        ground_truth: GroundTruth,
        config: InferenceConfig,
        joints: Sequence[JointScore] | None = None,
        suppress: bool = True,
        done: Callable[[int], None] = lambda images: None,
        look: Callable[[Batch, Outputs], None] = lambda batch, outputs: None,
    ) -> list[Detections]:
        """Detections of every image of a split, one table for each of `joints` (default: the configured one).

        Without `suppress` they are the candidates before NMS. `done` hears how many images each batch has; `look` is
        shown each batch, on the device, and what the network says. Of several processes of torch.distributed each
        takes a part of the images, and all get the whole tables.
        """
        distributed = torch.distributed.is_initialized()
        turn = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
        joints = [joint_score(config)] if joints is None else joints
        found: list[dict[int, Detections]] = [{} for _ in joints]
        for batch in evaluation_batches(ground_truth, self.config.data, BATCH, *turn):
            with torch.no_grad():
                on_device = batch.to(self.device)
                outputs = self.outputs(on_device.images, on_device.sizes)
                results = postprocess(outputs, on_device.sizes, config, joints, suppress)
                look(on_device, outputs)
            for tables, images in zip(found, results):
                tables |= tables_of(images, batch, ground_truth)
            done(len(batch.index))
        return [self.with_confidence(gathered(tables), joint) for tables, joint in zip(found, joints)]

    def outputs(self, images: Tensor, sizes: Tensor) -> Outputs:
        """What the network says of padded images on the device: the arguments of `RetinaNet.forward`."""
        with Winograd() if self.device.type == "cpu" else nullcontext():
            outputs: Outputs = (self._graphs or self.model)(images, sizes)
        return outputs

    def tuned_for(self, joint: JointScore) -> Tuning | None:
        """What `retinaconf tune` has kept, if it is of scores by `joint`."""
        return self.tuning if joint == joint_score(self.inference_config()) else None

    def with_confidence(self, table: Detections, joint: JointScore) -> Detections:
        """The boxes with the IoU to expect of their scores, which are by `joint`, if the run is tuned to these."""
        tuning = self.tuned_for(joint)
        if tuning is None:
            return table
        ids = np.array(self.category_ids)[table.labels]
        return replace(table, confidence=tuning.score_map(ids, table.scores.astype(np.float64)))

    def _predict(self, images: list[Image.Image], config: InferenceConfig) -> list[Detections]:
        data = self.config.data
        sizes = [
            resized((image.height, image.width), data.short_side, data.long_side, resize=data.resize)
            for image in images
        ]
        joint = joint_score(config)
        found: dict[int, Detections] = {}
        for padded_size, numbers in by_canvas(sizes).items():
            changes = [Augmentation(*sizes[n], resize=data.resize) for n in numbers]
            pixels = [apply(images[n], np.zeros((0, 4)), change)[0] for n, change in zip(numbers, changes)]
            with torch.inference_mode():
                on_device = torch.tensor([sizes[n] for n in numbers], device=self.device)
                outputs = self.outputs(padded(pixels, padded_size).to(self.device), on_device)
                (results,) = postprocess(outputs, on_device, config, [joint])
            for n, boxes in zip(numbers, results):
                table = to_table(boxes, sizes[n], (images[n].height, images[n].width), self)
                found[n] = self.with_confidence(table, joint)
        return [found[n] for n in range(len(images))]
