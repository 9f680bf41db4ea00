"""The exponent that benchmarks/scaling.py fits, and that each of its curves and tables can be made."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import scaling


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_the_exponent_leaves_fixed_costs_out(power: float) -> None:
    sizes = [1, 10, 100, 1000, 10_000, 100_000]
    times = [5 + 1e-1 * size**power for size in sizes]
    alone = np.polyfit(np.log(sizes), np.log(times), 1)[0]
    fitted = scaling.exponent(sizes, times)
    assert abs(fitted - power) < abs(alone - power) / 2


@pytest.mark.slow
def test_every_curve_can_be_measured(tmp_path: Path) -> None:
    report = scaling.measure(quick=True)
    assert report.keys() == scaling.CURVES.keys()
    assert all(min(curve["seconds"]) > 0 and np.isfinite(curve["exponent"]) for curve in report.values())
    scaling.draw(report, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
