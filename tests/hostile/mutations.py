"""Valid files made hostile, by a random generator: bytes, and trees of plain values."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

# Marks that stand for texts which no library would write.
_DEEPEST, _DEEP, _DIGITS, _HUGE = "@deepest@", "@deep@", "@digits@", "@huge@"
_TEXTS = {
    _DEEPEST: "[" * 50_000 + "]" * 50_000,
    _DEEP: "[" * 900 + "]" * 900,  # near Python's limit
    _DIGITS: "7" * 5_000,
    _HUGE: "1e999",
}

NAMES = [
    *("", " ", ".", "..", "/", "../../../etc/passwd", "/etc/passwd", "/dev/zero", "images/../../outside.png", "~/x"),
    *("a\x00b", "\ud800", "x\udcff.png", "\x1b[31mred\x1b[0m", "two\nlines", "\u202egnp.exe", "[/bold] [red]", "%s%n"),
    *(
        "<script>alert(1)</script>",
        "'\"><img src=x onerror=alert(1)>",
        "${x}",
        "{0.__class__}",
        "a" * 300,
        "n" * 100_000,
    ),
    *("é", "犬", "CON", "nan", "null", "-1", "--help", "*", "?", "[a-z]", "\\", "\\\\server\\share", "http://x/y.png"),
]
NUMBERS: list[Any] = [
    *(0, -0.0, -1, 1, 2, 0.5, -0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf"), 1e19),
    *(2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400, 1e6, 1_000_000_000, 3.7),
]


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def hostile_value(rng: random.Random) -> Any:
    """Anything but what is expected."""
    return rng.choice(
        [
            lambda: rng.choice(NAMES),
            lambda: rng.choice(NUMBERS),
            lambda: rng.choice([None, True, False, [], {}, [[]], {"": {}}, [None], "1", "1.5"]),
            lambda: rng.choice([nested(40), nested(90), _DEEPEST, _DEEP, _DIGITS, _HUGE]),
            lambda: [rng.choice(NUMBERS) for _ in range(rng.choice([1, 3, 4, 5, 1000]))],
            lambda: {rng.choice(NAMES): rng.choice(NUMBERS), "id": rng.choice(NUMBERS)},
        ]
    )()


def mutated_tree(rng: random.Random, tree: Any) -> Any:
    """A copy with one to four changes."""
    tree = deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        tree = _changed(rng, tree)
    return tree


def _changed(rng: random.Random, tree: Any) -> Any:
    place: Any = tree
    if not isinstance(place, dict | list) or not place or rng.random() < 0.03:
        return hostile_value(rng)
    while True:  # walk down to some container
        below = list(place.values() if isinstance(place, dict) else place)
        below = [value for value in below if isinstance(value, dict | list) and value]
        if not below or rng.random() < 0.2:
            break
        place = rng.choice(below)
    key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    change = rng.choice(["replace"] * 5 + ["remove", "add", "double", "swap", "nudge"])
    if change == "remove":
        del place[key]
    elif change == "add" and isinstance(place, dict):
        place[rng.choice(NAMES)] = hostile_value(rng)
    elif change == "add":
        place.insert(key, hostile_value(rng))
    elif change == "double" and isinstance(place, list):
        place.extend([deepcopy(place[key])] * rng.choice([1, 1, 50]))
    elif change == "swap":
        other = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        place[key], place[other] = place[other], place[key]
    elif change == "nudge" and isinstance(place[key], int | float) and abs(place[key]) < 1e300:
        place[key] = rng.choice([-place[key], place[key] + 1, place[key] * 1e6, str(place[key]), [place[key]]])
    else:
        place[key] = hostile_value(rng)
    return tree


def json_text(tree: Any) -> str:
    """JSON of a tree, with what no library would write in the place of its marks."""
    text = json.dumps(tree)
    for mark, written in _TEXTS.items():
        text = text.replace(json.dumps(mark), written)
    return text


def mutated_json(rng: random.Random, data: bytes) -> bytes:
    """A JSON file with a change of its tree, or of its text."""
    if rng.random() < 0.8:
        return json_text(mutated_tree(rng, json.loads(data))).encode()
    return mutated_bytes(rng, data)


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to eight changes of bytes."""
    for _ in range(rng.choice([1, 1, 2, 8])):
        data = rng.choice(_BYTE_CHANGES)(rng, data)
    return data


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 10, 100]) if data else 0):
        changed[rng.randrange(min(len(data), rng.choice([64, 1024, 1 << 30])))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.choice([0, 1, rng.randrange(len(data) + 1), max(0, len(data) - 1)])]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    what = rng.choice([b"\x00", b"\xff" * 8, b"\xed\xa0\x80", rng.randbytes(rng.choice([1, 100])), b"[" * 3000, b"\n"])
    return data[:at] + what + data[at:]


def _splice(rng: random.Random, data: bytes) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[begin:end] + data[rng.choice([at, end]) :]


def _overwrite(rng: random.Random, data: bytes) -> bytes:
    """A number of some bytes becomes the largest or the smallest."""
    if len(data) < 8:
        return data
    at = rng.randrange(min(len(data) - 7, rng.choice([64, 1024, 1 << 30])))
    length = rng.choice([1, 2, 4, 8])
    return data[:at] + rng.choice([b"\xff", b"\x00", b"\x7f"]) * length + data[at + length :]


_BYTE_CHANGES: list[Callable[[random.Random, bytes], bytes]] = [_flip, _flip, _cut, _insert, _splice, _overwrite]
