from types import SimpleNamespace
from typing import Any

import pytest

from retinaconf.diagnosis.report.advice import _better_score


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"model.quality": "none", "inference.alpha": 0.0}, "add a quality branch with retinaconf retrofit"),
        ({"model.quality": "classification"}, "its score learns the IoU already"),
        ({"model.quality": "none", "inference.alpha": 0.0, "model.class_target": "iou"}, "its score learns the IoU"),
    ],
)
def test_a_run_is_advised_what_it_does_not_do_yet(tiny_config: Any, changes: dict[str, Any], advice: str):
    diagnosis = SimpleNamespace(run=tiny_config(**changes), quality=None)
    assert advice in _better_score(diagnosis)  # type: ignore[arg-type]
