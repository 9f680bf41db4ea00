from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from retinaconf.data.similarity import same_content, same_scene, thumbnails

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def scene(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)


def test_same_content_reads_files_of_equal_size_only(tmp_path: Path):
    for name, content in (("a", b"xxx"), ("b", b"yyy"), ("c", b"xxx"), ("d", b"xxxx"), ("e", b"xxx")):
        (tmp_path / name).write_bytes(content)
    assert same_content([tmp_path / name for name in "abcde"]) == [(2, 0), (4, 0)]
    assert same_content([]) == []


def test_changed_copies_are_the_same_scene_and_others_are_not(tmp_path: Path):
    originals, copies = [], []
    for seed in range(20):
        image = scene(seed)
        originals.append(tmp_path / f"{seed}.jpg")
        image.save(originals[-1], quality=95)
        changed = (
            image.resize((160, 120)),
            image.crop((2, 2, 318, 238)),
            ImageEnhance.Brightness(image).enhance(0.8),
            image.convert("L"),
        )[seed % 4]
        copies.append(tmp_path / f"copy-{seed}.{('jpg', 'png')[seed % 2]}")
        changed.save(copies[-1], quality=40)
    descriptors, faults = thumbnails(originals)
    others, more_faults = thumbnails(copies)
    assert not faults
    assert not more_faults
    assert same_scene(others, descriptors) == [(i, i) for i in range(20)]
    assert same_scene(descriptors[:10], descriptors[10:]) == []
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, rtol=1e-5)


def test_plain_pictures_and_gradients_are_not_compared(tmp_path: Path):
    y, x = np.mgrid[:100, :120]
    paths = []
    for name, grey in (("black", x * 0), ("white", x * 0 + 255), ("sky", x + y), ("dusk", 255 - x - y)):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(paths[-1])
    descriptors, _ = thumbnails(paths)
    assert same_scene(descriptors, descriptors) == []


def test_a_picture_that_cannot_be_decoded_is_a_fault(tmp_path: Path):
    scene(0).save(tmp_path / "a.jpg")
    scene(0).save(tmp_path / "b.png")
    data = bytearray((tmp_path / "b.png").read_bytes())
    data[2000:2400] = bytes(400)  # within the pixels: header and end are whole
    (tmp_path / "b.png").write_bytes(data)
    (tmp_path / "c.jpg").write_text("text")
    descriptors, faults = thumbnails([tmp_path / name for name in ("a.jpg", "b.png", "c.jpg")])
    assert sorted(faults) == [1, 2]
    assert "b.png: truncated or damaged image" in str(faults[1])
    assert not descriptors[1:].any()


def test_nothing_to_compare():
    descriptors, faults = thumbnails([])
    assert (descriptors.shape, faults) == ((0, 1024), {})
    assert same_scene(descriptors, descriptors) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data is absent")
def test_real_photographs_are_not_taken_for_each_other():
    paths = sorted((SHARED / "coco-mini/train2017").iterdir())[:200]
    descriptors, _ = thumbnails(paths)
    assert same_scene(descriptors[:100], descriptors[100:]) == []
