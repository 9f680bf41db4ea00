"""How a valid file of each kind is spoilt, by a random generator."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from typing import Any

import numpy as np
import yaml
from mutations import NAMES, NUMBERS, hostile_value, json_text, mutated_bytes, mutated_json, mutated_tree
from PIL import Image
from seeds import foreign_weights, torch_saved

CANARY = "canary"  # a file that only code in a pickle, a YAML tag or an XML entity would make


def spoil_jsonl(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = rng.choice([mutated_json, mutated_json, mutated_bytes])(rng, lines[at])
    return b"\n".join(lines + lines[-1:] * rng.choice([0, 0, 2]))


def spoil_text(rng: random.Random, data: bytes) -> bytes:
    """A file of words in lines."""
    if rng.random() < 0.25:
        return mutated_bytes(rng, data)
    lines = [line.split() for line in data.decode().splitlines()]
    for _ in range(rng.choice([1, 1, 3])):
        line = rng.choice(lines)
        word = str(rng.choice([rng.choice(NAMES), rng.choice(NUMBERS), "1_0", "0x10", "١", "1e400", "-0", "9" * 5000]))
        change = rng.randrange(4)
        if change == 0 or not line:
            line.append(word)
        elif change == 1:
            line.pop(rng.randrange(len(line)))
        else:
            line[rng.randrange(len(line))] = word
    return "\n".join(" ".join(line) for line in lines * rng.choice([1, 1, 1, 200])).encode("utf-8", "surrogatepass")


_YAML = [
    f"!!python/object/apply:os.system ['touch {CANARY}']",
    f"!!python/object/new:os.system ['touch {CANARY}']",
    *("!!int abc", "!!float x", "!!timestamp x", "2001-99-99", "!!binary '*'", "!!null x", "!!bool maybe", "!!set {a}"),
    *(
        "*nothing",
        "&a [*a]",
        "&a {<<: *a}",
        "{<<: 3}",
        "!unknown x",
        "!!omap [a]",
        "!!pairs 3",
        "!!map [1]",
        "!!seq {}",
    ),
    *("? [1, 2]\n", "? {a: b}\n: c", "1:30:00", ".nan", ".inf", "-.inf", "0o17", "0b2", "1_000", "~", "=", "<<", "'"),
    *(
        "[" * 400 + "]" * 400,
        "{a: " * 300 + "}" * 300,
        "- " * 3000 + "a",
        "%YAML 9.9",
        "--- a\n--- b",
        "\t- x",
        "!<" * 99,
    ),
    *(
        "[" + "&a [1, 2], " + "*a, " * 9 + "]",
        '"\\ud800"',
        '"\\x00"',
        "9" * 5000,
        "|\n" + "  x\n" * 9,
        "a: b: c",
        "@",
        "`",
    ),
]


def spoil_yaml(rng: random.Random, data: bytes) -> bytes:
    choice = rng.random()
    if choice < 0.2:
        return mutated_bytes(rng, data)
    if choice < 0.6:
        key = rng.choice([b"path: .", b"train: images/train", b"val: val.txt", b"nc: 2", b"- cat", b"names:"])
        name, _, _ = key.partition(b": ")
        return data.replace(key, (b"- " if key == b"- cat" else name + b": ") + rng.choice(_YAML).encode())
    return yaml.dump(mutated_tree(rng, yaml.safe_load(data)), allow_unicode=rng.random() < 0.5).encode(
        "utf-8", "replace"
    )


_ENTITIES = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))
_DOCTYPES = [
    f'<!DOCTYPE a [<!ENTITY e0 "bomb">{_ENTITIES}]>',
    f'<!DOCTYPE a [<!ENTITY e12 "{"x" * 100_000}">]>',
    '<!DOCTYPE a [<!ENTITY e12 SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE a [<!ENTITY % p SYSTEM "http://localhost:9/x.dtd"> %p;]>',
]


def spoil_xml(rng: random.Random, data: bytes) -> bytes:
    choice = rng.random()
    text = data.decode()
    if choice < 0.25:
        return mutated_bytes(rng, data)
    if choice < 0.4:
        entities = "&e12;" * rng.choice([1, 1, 50_000])
        return (rng.choice(_DOCTYPES) + text.replace("cat", entities, 1)).encode()
    if choice < 0.5:
        heads = [*("utf-7", "utf-16", "base64", "rot13", "nothing", "latin1", "idna", "unicode_escape", "zlib")]
        return f'<?xml version="{rng.choice(["1.0", "9"])}" encoding="{rng.choice(heads)}"?>{text}'.encode()
    if choice < 0.6:
        depth = rng.choice([100, 5_000, 200_000])
        return text.replace("<object>", "<object>" * depth).replace("</object>", "</object>" * depth).encode()
    for _ in range(rng.choice([1, 1, 3])):
        word = rng.choice(
            [">0.jpg<", ">1.jpg<", ">cat<", ">dog<", ">48<", ">64<", ">6<", ">40<", ">5<", ">30<", "</name>"]
        )
        value = str(
            rng.choice([rng.choice(NAMES), rng.choice(NUMBERS), "<x/>", "<![CDATA[&<]]>", "&#0;", "&#x1F600;", ""])
        )
        value = value if rng.random() < 0.3 else value.replace("&", "&amp;").replace("<", "&lt;")
        text = text.replace(word, f">{value}<", rng.choice([1, 9])) if rng.random() < 0.8 else text.replace(word, "", 1)
    return text.encode("utf-8", "surrogatepass")


def _npy(shape: Any, descr: str = "<f8", content: bytes = b"\0" * 64, order: str = "False") -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape!r}, }}"
    padded = header + " " * (63 - (len(header) + 10) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode() + content


def spoil_npz(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.35:
        return mutated_bytes(rng, data)
    with np.load(io.BytesIO(data)) as archive:
        columns: dict[str, Any] = dict(archive)
    name = rng.choice(list(columns))
    column = columns[name]
    raw: dict[str, bytes] = {}
    change = rng.randrange(9)
    if change == 0:
        del columns[name]
    elif change == 1:
        kinds = ["f2", "f4", ">f8", "i1", "u8", "?", "c16", "U9", "S3", "M8[s]", "V8", "f8,i4", "O"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            columns[name] = column.astype(rng.choice(kinds))
    elif change == 2 and column.ndim:
        columns[name] = rng.choice([column[None], column.ravel(), column[:0], np.asfortranarray(column), column.T])
    elif change == 3 and column.ndim:
        column[rng.randrange(len(column))] = rng.choice([0, -1, 5, 2**62])
    elif change == 4 and column.ndim and column.dtype.kind == "f":
        column[rng.randrange(len(column))] = rng.choice([np.nan, np.inf, -1e308, 1e308, 1e-320, 2])
    elif change == 5:
        shape = rng.choice([(10**12,), (10**12, 4), (2**40, 2**40), (-1,), (2**64,), "x", (3.5,), (), ((1,),), True])
        raw[name] = _npy(shape, rng.choice(["<f8", "<i8", "|O", "V1000000", [("a", "<f8", (10**9,))], "<f80", "x"]))
    elif change == 6:
        raw[name] = (
            _npy((300_000_000,), "|i1", b"\0" * 300_000_000) if rng.random() < 0.2 else mutated_bytes(rng, _npy((8,)))
        )
    elif change == 7:
        columns |= {rng.choice(["../../x", "/x", "x" * 5000, "score.npy", ""]): np.zeros(3)}
    else:
        buffer = io.BytesIO()
        np.save(buffer, rng.choice([np.zeros(3), np.array([{"a": 1}], dtype=object), np.zeros((3, 4))]))
        return buffer.getvalue()
    for key in raw:
        columns.pop(key, None)
    buffer = io.BytesIO()
    np.savez(buffer, **{key: value for key, value in columns.items() if key not in ("", "file")})
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as zipped:
        for key, content in raw.items():
            zipped.writestr(f"{key}.npy", content)
    return buffer.getvalue()


def spoil_safetensors(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.2:
        return mutated_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    header, content = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header["__metadata__"]
    change = rng.randrange(6)
    if change < 2 and "config" in metadata:
        settings = json.loads(metadata["config"])
        sizes = [name for name in settings if isinstance(settings[name], int | float | list)]
        for _ in range(rng.choice([1, 1, 3])):
            values = [hostile_value(rng), *rng.sample(NUMBERS, 3), 1_000_000, [1e6] * 3, [[1]], [1] * 100_000]
            settings[rng.choice(sizes if rng.random() < 0.7 else list(settings))] = rng.choice(values)
        metadata["config"] = json_text(settings)
    elif change == 2:
        name = rng.choice([key for key in ("classes", "category_ids", "tuning", "replay") if key in metadata])
        metadata[name] = mutated_json(rng, metadata[name].encode()).decode("utf-8", "replace")
    elif change == 3:
        metadata[rng.choice([*metadata, *NAMES])] = rng.choice([*NAMES, "[" * 100_000, "9" * 5000])
    elif change == 4:
        header = mutated_tree(rng, header)
    else:
        entry = header[rng.choice([name for name in header if name != "__metadata__"])]
        shape = entry["shape"]
        kinds = {"dtype": rng.choice(["F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "I8", "X"])}
        entry |= rng.choice(
            [kinds, {"shape": [*shape, 1]}, {"shape": shape[::-1]}, {"shape": [2**62, 0]}, {"shape": []}]
        )
    text = json_text(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(text)) + text + content


class _Touch:
    """Runs code where it is unpickled."""

    def __init__(self, call: Any, *words: Any):
        self.call, self.words = call, words

    def __reduce__(self) -> Any:
        return self.call, self.words


_TOUCHES = [_Touch(os.system, f"touch {CANARY}"), _Touch(open, CANARY, "w"), _Touch(exec, f"open({CANARY!r}, 'w')")]
_HOSTILE_PICKLES = [
    b"\x80\x04" + b"K\x00r\xff\xff\xff\x7f" + b".",  # an index of the memo
    b"\x80\x04" + b"]" * 300_000 + b"a" * 299_999 + b".",  # a list in a list ...
    b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",  # bytes longer than the file
    b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",  # a frame longer than the file
    b"\x80\x04" + b'cbuiltins\neval\n(S\'open("canary", "w")\'\ntR.',
    b"\x80\x04" + b"cnumpy\nndarray\n(I1000000000000\ntR.",
    b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I3000000000\ntS'd'\ntR.",
    b"ctorch\nFloatStorage\n(I3000000000\ntR.",
    b"\x80\x04" + b"I" + b"9" * 5000 + b"\n.",
    b"\x80\x04}" + b"(K\x01K\x02u" * 3 + b".",
]


def spoil_pkl(rng: random.Random, data: bytes) -> bytes:
    """Arrays in a pickle, as Detectron2's model zoo has them."""
    choice = rng.random()
    if choice < 0.4:
        return mutated_bytes(rng, data)
    if choice < 0.6:
        return rng.choice(_HOSTILE_PICKLES)
    content = mutated_tree(rng, pickle.loads(data))
    if choice < 0.75 and isinstance(content, dict):
        content[rng.choice(["model", "meta"])] = rng.choice(
            [*_TOUCHES, np.zeros(3, dtype=object), np.ones((2, 2), np.complex64)]
        )
    return pickle.dumps(content, protocol=rng.randrange(2, 6))


def spoil_pth(rng: random.Random, data: bytes) -> bytes:
    import torch

    choice = rng.random()
    if choice < 0.3:
        return mutated_bytes(rng, data)
    if choice < 0.4:
        return rng.choice(_HOSTILE_PICKLES)
    weights = foreign_weights()
    name = rng.choice(list(weights))
    if choice < 0.5:
        weights[name] = rng.choice(_TOUCHES)
        return pickle.dumps(weights) if rng.random() < 0.3 else torch_saved(weights)
    if choice < 0.55:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            buffer = io.BytesIO()
            torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffer)
        return buffer.getvalue()
    if choice < 0.65:  # what is stored, compressed
        buffer = io.BytesIO()
        zeros = torch_saved({**weights, name: torch.zeros(2_000_000)})
        with zipfile.ZipFile(io.BytesIO(zeros)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
            for part in old.namelist():
                new.writestr(part, old.read(part))
        return buffer.getvalue()
    one = torch.ones(1)
    shape = weights[name].shape
    weights[name] = rng.choice(
        [
            lambda: one.expand(25_000, 25_000),
            lambda: one.expand(shape),
            lambda: one.expand(2**40),
            lambda: torch.empty((2**30, 0)),
            lambda: torch.eye(3).to_sparse(),
            lambda: torch.ones(shape, dtype=torch.complex64),
            lambda: torch.ones(shape, dtype=torch.bool),
            lambda: torch.full(shape, float("nan")),
            lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
            lambda: torch.ones((*shape, 1)),
            lambda: torch.ones(0),
            lambda: torch.tensor(3.0),
            lambda: hostile_value(rng),
            lambda: np.zeros(3, dtype=object),
            lambda: torch.nn.Parameter(torch.ones(shape)),
        ]
    )()
    wrapped = rng.choice([weights, {"model": weights}, {"state_dict": weights, "meta": hostile_value(rng)}, [weights]])
    if choice < 0.75 and isinstance(wrapped, dict):
        wrapped = {rng.choice([*NAMES, 3, None, (1, 2)]): hostile_value(rng)} | wrapped
    if choice > 0.93:
        config = rng.choice(["model = dict(" * 3000, "x" * 100_000, "a = 9**9**9", "model = dict(bbox_head=3)", "\x00"])
        wrapped = {
            "state_dict": {f"bbox_head.{n}": t for n, t in weights.items()},
            "meta": {"config": config, "cfg": config},
        }
    return torch_saved(wrapped, _use_new_zipfile_serialization=rng.random() < 0.8)


def spoil_checkpoint(rng: random.Random, data: bytes) -> bytes:
    import torch

    if rng.random() < 0.3:
        return mutated_bytes(rng, data)
    state = torch.load(io.BytesIO(data), weights_only=True)
    return torch_saved(mutated_tree(rng, state))


_DIMENSIONS = [0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 30_000]


def spoil_picture(rng: random.Random, data: bytes) -> bytes:
    choice = rng.random()
    if choice < 0.65:
        return mutated_bytes(rng, data)
    if choice < 0.75 and data[:4] == b"\x89PNG":  # another size, with the right checksum
        import zlib

        head = data[12:16] + struct.pack(">II", rng.choice(_DIMENSIONS), rng.choice(_DIMENSIONS)) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    if choice < 0.85:  # what is no picture, or one that says so of another kind
        eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n(canary) (w) file\nshowpage\n"
        svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
        return rng.choice(
            [eps, svg, b"", b"\0" * 100, b"GIF89a", b"\xff\xd8\xff\xd9", b"BM", b"P6\n99999 99999\n255\n", b"II*\0"]
        )
    buffer = io.BytesIO()
    size = rng.choice([(1, 1), (1, 60_000), (60_000, 1), (3_000, 3_000), (20_000, 20_000)])
    Image.new(rng.choice(["1", "L", "P"]), size).save(
        buffer, rng.choice(["PNG", "GIF", "TIFF"] if max(size) < 9_000 else ["PNG"])
    )
    return buffer.getvalue()
