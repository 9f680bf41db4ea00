from types import SimpleNamespace
from typing import Any

import pytest

from retinaconf.diagnosis.report.advice import _better_score
from retinaconf.recipes import recipe


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"model.quality": "none", "inference.alpha": 0.0}, "add a quality branch with retinaconf retrofit"),
        ({"model.quality": "classification"}, "its score learns the IoU already"),
        ({"model.quality": "none", "inference.alpha": 0.0, "model.class_target": "iou"}, "or try the recipe aligned"),
    ],
)
def test_a_run_is_advised_what_it_does_not_do_yet(tiny_config: Any, changes: dict[str, Any], advice: str):
    diagnosis = SimpleNamespace(run=tiny_config(**changes), quality=None)
    assert advice in _better_score(diagnosis)  # type: ignore[arg-type]


def test_the_owner_of_an_aligned_detector_is_not_sent_to_aligned() -> None:
    diagnosis: Any = SimpleNamespace(run=recipe("aligned-lite0"), quality=None)
    assert _better_score(diagnosis) == "its score learns the IoU already; train longer or on more images"
