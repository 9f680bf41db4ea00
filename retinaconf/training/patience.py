"""When a run has stopped getting better: `schedule.patience`, and what it saves or would have saved.

The best validation is the one whose weights are kept: of equal ones the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LEAST = 3  # epochs; a shorter patience may stop at the noise between two epochs, and is not proposed


class Validation(NamedTuple):
    """The AP after an epoch, which is a fraction where a run was ended within one."""

    epoch: float
    ap: float


def waited(validations: Sequence[Validation]) -> int:
    """The number of validations after the best one."""
    return next((n for n, one in enumerate(reversed(validations)) if one.ap == _best(validations)), 0)


def is_over(validations: Sequence[Validation], patience: int) -> bool:
    """Whether a run with this patience ends here; 0 never ends one."""
    return 0 < patience <= waited(validations)


def verdict(validations: Sequence[Validation], patience: int, epochs: int) -> str:
    """What is said at the end of a run that has validated and was to last `epochs`.

    The best epoch, and what patience has saved; or what the shortest patience that is proposed and would have kept the
    same weights would have saved, if it would have saved anything.
    """
    last, best = validations[-1].epoch, len(validations) - 1 - waited(validations)
    found = f"AP was best in epoch {validations[best].epoch:g} of {last:g}"
    if is_over(validations, patience) and last < epochs:
        return f"{found}; schedule.patience {patience} stopped the run and saved {1 - last / epochs:.0%} of the time"
    enough = max(LEAST, *(waited(validations[:n]) + 1 for n in range(1, best + 1)), 1)
    end = best + enough
    if end >= len(validations) - 1:
        return found
    saved = 1 - validations[end].epoch / last
    return (
        f"{found}; schedule.patience {enough} would have stopped after epoch {validations[end].epoch:g} and saved "
        f"{saved:.0%} of the time"
    )


def _best(validations: Sequence[Validation]) -> float:
    return max(one.ap for one in validations)
