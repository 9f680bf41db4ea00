import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps, PngImagePlugin

from retinaconf.data.ground_truth import ground_truth_from_coco
from retinaconf.data.images import check_image, check_images, read_image
from retinaconf.errors import InputError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    """(H, W, 3) uint8, no symmetry."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 60)], axis=2).astype(np.uint8)


def noise(height: int = 120, width: int = 160) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


# --- what a source can be ------------------------------------------------------------------------------------------


def test_a_file_a_pil_image_an_array_and_a_tensor_give_the_same_picture(tmp_path: Path):
    expected = gradient()
    Image.fromarray(expected).save(tmp_path / "a.png")
    for source in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.open(tmp_path / "a.png"),
        expected,
        expected.astype(np.float32) / 255,
        expected.astype(np.float64) / 255,
        expected.astype(np.uint16) * 257,
        torch.from_numpy(expected).permute(2, 0, 1),
        torch.from_numpy(expected).permute(2, 0, 1).to(torch.uint16) * 257,
        (torch.from_numpy(expected).permute(2, 0, 1) / 255).requires_grad_(),
    ):
        np.testing.assert_array_equal(pixels(read_image(source)), expected)
    half = (torch.from_numpy(expected).permute(2, 0, 1) / 255).bfloat16()
    assert np.abs(pixels(read_image(half)).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_grey_arrays_become_three_equal_channels(shape: tuple[int, ...]):
    grey = np.arange(35, dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(pixels(read_image(grey)), np.repeat(grey.reshape(5, 7, 1), 3, axis=2))


def test_boolean_arrays_are_black_and_white():
    mask = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(pixels(read_image(mask))[:, :, 0], np.eye(4) * 255)
    np.testing.assert_array_equal(pixels(read_image(torch.eye(4).bool()[None]))[:, :, 2], np.eye(4) * 255)


def test_reading_leaves_a_given_array_as_it_is():
    array = gradient()
    read_image(array).paste(RED, (0, 0, 9, 9))
    np.testing.assert_array_equal(array, gradient())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((4, 4), np.nan, np.float32), "values from nan"),
        (np.full((4, 4), np.inf), "to inf"),
        (np.full((4, 4, 3), 200.0), "from 200 to 200; floats must lie in [0, 1]"),
        (np.full((4, 4), -0.5), "from -0.5"),
        (np.zeros((4, 4), np.int64), "type int64"),
        (np.zeros((4, 4), complex), "type complex128"),
        (np.zeros((4, 4, 2), np.uint8), "shape (4, 4, 2)"),
        (np.zeros((3, 4, 4, 3), np.uint8), "shape (3, 4, 4, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3)"),
        (np.zeros(4, np.uint8), "shape (4,)"),
        (torch.zeros(5, 4, 3), "shape (5, 4, 3)"),
        (torch.zeros(2, 3, 4, 4), "shape (2, 3, 4, 4)"),
        (torch.full((3, 4, 4), torch.nan), "values from nan"),
        (torch.full((3, 4, 4), 255.0), "from 255"),
        (None, "NoneType"),
        (b"\xff\xd8", "bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_an_image_is_refused_in_one_line(source: object, message: str):
    with pytest.raises(InputError) as caught:
        read_image(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_float_rounding_beyond_one_is_forgiven():
    assert (pixels(read_image(np.full((2, 2), np.float32(1) + np.float32(1e-6)))) == 255).all()


# --- pixel formats -------------------------------------------------------------------------------------------------


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "b.tif")
    for name, mode in (("a.png", "I;16"), ("a.tif", "I;16"), ("b.tif", "I")):
        assert Image.open(tmp_path / name).mode == mode
        np.testing.assert_array_equal(pixels(read_image(tmp_path / name))[:, :, 1], expected)
    np.testing.assert_array_equal(pixels(read_image(values.astype(">u2")))[:, :, 0], expected)


def test_wider_integers_and_floats_out_of_range_are_refused(tmp_path: Path):
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "wide.tif")
    Image.fromarray(np.full((4, 4), 300, np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "unit.tif")
    with pytest.raises(InputError, match=r"wide\.tif: pixel values from 70000"):
        read_image(tmp_path / "wide.tif")
    with pytest.raises(InputError, match=r"float\.tif has values from 300"):
        read_image(tmp_path / "float.tif")
    assert (pixels(read_image(tmp_path / "unit.tif")) == 128).all()


def test_transparent_parts_become_white(tmp_path: Path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    rgba[0, 1] = (255, 0, 0, 0)
    rgba[1, 0] = (0, 0, 0, 51)  # a fifth black over white
    expected = np.array([[RED, WHITE], [(204,) * 3, WHITE]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(read_image(tmp_path / "a.png")), expected)
    np.testing.assert_array_equal(pixels(read_image(rgba)), expected)
    np.testing.assert_array_equal(pixels(read_image(torch.from_numpy(rgba).permute(2, 0, 1))), expected)

    Image.fromarray(rgba[:, :, 2:]).save(tmp_path / "la.png")
    assert Image.open(tmp_path / "la.png").mode == "LA"
    assert pixels(read_image(tmp_path / "la.png"))[0, 1].tolist() == list(WHITE)

    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert pixels(read_image(tmp_path / "p.png"))[0].tolist() == [list(RED), list(WHITE)]
    palette.save(tmp_path / "opaque.png")
    assert pixels(read_image(tmp_path / "opaque.png"))[0].tolist() == [list(RED), list(BLUE)]

    Image.new("RGB", (2, 1), GREEN).save(tmp_path / "key.png", transparency=GREEN)
    assert pixels(read_image(tmp_path / "key.png"))[0, 0].tolist() == list(WHITE)


def test_one_bit_cmyk_and_animation(tmp_path: Path):
    bits = Image.new("1", (4, 4))
    bits.putpixel((1, 2), 1)
    bits.save(tmp_path / "bits.png")
    assert pixels(read_image(tmp_path / "bits.png"))[2, 1].tolist() == list(WHITE)
    assert pixels(read_image(tmp_path / "bits.png")).sum() == 3 * 255

    Image.new("RGB", (16, 16), RED).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(pixels(read_image(tmp_path / "cmyk.jpg"))[8, 8].astype(int) - RED).max() < 12

    Image.new("RGB", (8, 8), RED).save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)]
    )
    assert pixels(read_image(tmp_path / "a.gif"))[0, 0].tolist() == list(RED)


# --- orientation and size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation_as_pil_applies_it(tmp_path: Path, orientation: int, suffix: str):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(gradient()).save(path, exif=with_orientation(orientation), quality=95)
    expected = ImageOps.exif_transpose(Image.open(path))
    got = read_image(path)
    np.testing.assert_array_equal(pixels(got), np.asarray(expected))
    assert check_image(path) == (got.height, got.width)
    np.testing.assert_array_equal(pixels(read_image(Image.open(path))), np.asarray(expected))
    np.testing.assert_array_equal(pixels(read_image(got)), np.asarray(expected))  # not turned twice


def test_the_declared_size_decides_whether_a_sideways_picture_is_turned(tmp_path: Path):
    path = tmp_path / "phone.jpg"
    Image.fromarray(gradient(24, 40)).save(path, exif=with_orientation(6))
    raw = np.asarray(Image.open(path))
    for size, expected in (((24, 40), (24, 40)), ((40, 24), (40, 24)), (None, (40, 24)), ((0, 0), (40, 24))):
        assert check_image(path, size) == expected
        got = read_image(path, size)
        assert (got.height, got.width) == expected
    np.testing.assert_array_equal(pixels(read_image(path, (24, 40))), raw)
    np.testing.assert_array_equal(pixels(read_image(path, (40, 24))), np.rot90(raw, -1))
    np.testing.assert_array_equal(pixels(read_image(read_image(path, (24, 40)))), raw)


def test_a_half_turn_is_applied_although_the_size_does_not_tell(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.fromarray(gradient(24, 40)).save(path, exif=with_orientation(3))
    np.testing.assert_array_equal(pixels(read_image(path, (24, 40))), gradient(24, 40)[::-1, ::-1])


def test_a_size_that_disagrees_names_the_file_and_both_sizes(tmp_path: Path):
    path = tmp_path / "a.jpg"
    Image.fromarray(gradient(24, 40)).save(path)
    for function in (read_image, check_image):
        with pytest.raises(InputError, match=r"a\.jpg: the image is 40 x 24 pixels, its annotation says 41 x 24; corr"):
            function(path, (24, 41))
        with pytest.raises(InputError, match=r"its annotation says 24 x 40"):
            function(path, (40, 24))  # swapped, but no EXIF tag allows that
    Image.fromarray(gradient(24, 40)).save(path, exif=with_orientation(8))
    with pytest.raises(InputError, match=r"40 x 24 pixels \(24 x 40 when turned"):
        check_image(path, (9, 9))
    with pytest.raises(InputError, match="array: the image is 40 x 24"):
        read_image(gradient(24, 40), (24, 39))


def test_png_metadata_after_the_pixels_is_seen(tmp_path: Path):
    path = tmp_path / "late.png"
    Image.fromarray(gradient(24, 40)).save(tmp_path / "early.png")
    data = (tmp_path / "early.png").read_bytes()
    exif = with_orientation(6).tobytes().removeprefix(b"Exif\0\0")
    stream = (tmp_path / "chunk").open("wb+")
    PngImagePlugin.putchunk(stream, b"eXIf", exif)
    stream.seek(0)
    path.write_bytes(data[:-12] + stream.read() + data[-12:])  # before IEND
    assert check_image(path) == (40, 24)
    assert read_image(path).size == (24, 40)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"x"])
def test_damaged_metadata_does_not_spoil_good_pixels(tmp_path: Path, exif: bytes):
    path = tmp_path / "a.jpg"
    Image.fromarray(gradient(24, 40)).save(path, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert check_image(path) == (24, 40)
        assert read_image(path).size == (40, 24)


# --- files that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tif", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.9])
def test_truncated_files_are_refused_by_both(tmp_path: Path, suffix: str, share: float):
    noise().save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    assert check_image(tmp_path / f"whole.{suffix}") == (120, 160)
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    for function in (read_image, check_image):
        with pytest.raises(InputError, match=rf"cut\.{suffix}: .*; restore or remove"):
            function(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_thumbnail_does_not_hide_the_cut(tmp_path: Path, progressive: bool):
    noise(16, 16).save(tmp_path / "thumb.jpg")
    header = b"Exif\0\0II*\0\x08\0\0\0\0\0" + (tmp_path / "thumb.jpg").read_bytes()
    noise().save(tmp_path / "whole.jpg", exif=header, progressive=progressive)
    whole = (tmp_path / "whole.jpg").read_bytes()
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert b"\xff\xd9" in path.read_bytes()
    with pytest.raises(InputError, match="truncated"):
        check_image(path)


@pytest.mark.parametrize("extra", [b"\0" * 10, b"\0" * 200_000, b"\xff\xd9" * 5, b"motion photo" * 20_000])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_data_after_the_end_is_allowed(tmp_path: Path, suffix: str, extra: bytes):
    path = tmp_path / f"a.{suffix}"
    noise().save(path)
    path.write_bytes(path.read_bytes() + extra)
    assert check_image(path) == (120, 160)
    assert read_image(path).size == (160, 120)


def test_a_jpeg_filled_up_with_zeros_is_refused(tmp_path: Path):
    path = tmp_path / "a.jpg"
    noise().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes(100_000))  # what a broken download that reserved space leaves
    with pytest.raises(InputError, match="truncated"):
        check_image(path)


def test_files_that_are_no_images(tmp_path: Path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    for name, message in (
        ("text.jpg", "not an image"),
        ("empty.jpg", "is empty"),
        ("folder.jpg", "is a folder, not an image"),
        ("none.jpg", "no such image file"),
    ):
        for function in (read_image, check_image):
            with pytest.raises(InputError, match=rf"{name}: {message}.*; \w+"):
                function(tmp_path / name)


def test_a_picture_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for function in (read_image, check_image):
        with pytest.raises(InputError, match=r"a\.png: has more than 2,000 pixels"):
            function(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif"])
def test_the_check_and_the_reader_agree_on_damaged_files(tmp_path: Path, suffix: str):
    random = np.random.default_rng(1)
    noise(32, 48).save(tmp_path / f"whole.{suffix}")
    whole = np.frombuffer((tmp_path / f"whole.{suffix}").read_bytes(), np.uint8)
    path = tmp_path / f"damaged.{suffix}"

    def fault(function) -> str | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                function(path)
            except InputError as error:
                return str(error)
        return None

    bad = 0
    for n in range(60):
        data = whole.copy()
        if n % 3 == 0:  # the headers
            data[random.integers(0, min(len(data), 400), 3)] = random.integers(0, 256, 3)
        elif n % 3 == 1:  # one bit anywhere
            data[random.integers(len(data))] ^= 1 << random.integers(8)
        else:
            data = data[: random.integers(len(data))]
        path.write_bytes(data.tobytes())
        assert fault(check_image) == fault(read_image), n
        bad += fault(read_image) is not None
    assert bad > 0


def test_pixels_that_have_no_rgb_form_are_found_by_the_check(tmp_path: Path):
    Image.fromarray(np.full((24, 40), 100_000, np.int32)).save(tmp_path / "a.tif")
    for function in (read_image, check_image):
        with pytest.raises(InputError, match=r"a\.tif: pixel values from 100000 to 100000; save it with 8 or 16 bits"):
            function(tmp_path / "a.tif")


# --- a whole split -------------------------------------------------------------------------------------------------


def split_of(folder: Path, names: list[str], sizes: list[tuple[int, int]] | None = None):
    document = {
        "images": [
            {"id": 10 + i, "file_name": n, "height": h, "width": w}
            for i, (n, (h, w)) in enumerate(zip(names, sizes or [(0, 0)] * len(names)))
        ],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": i, "image_id": 10 + i, "category_id": 1, "bbox": [i, 1, 5, 6]} for i in range(len(names))
        ],
    }
    return ground_truth_from_coco(document, folder, "train.json")


def test_check_images_fills_in_missing_sizes(tmp_path: Path):
    noise(30, 40).save(tmp_path / "a.jpg")
    noise(50, 60).save(tmp_path / "b.png", exif=with_orientation(6))
    checked = check_images(split_of(tmp_path, ["a.jpg", "b.png"]))
    assert checked.image_sizes.tolist() == [[30, 40], [60, 50]]
    assert checked.dropped == ()
    assert len(check_images(split_of(tmp_path, []))) == 0


def test_check_images_names_the_first_bad_file_or_leaves_all_out(tmp_path: Path):
    noise(30, 40).save(tmp_path / "a.jpg")
    noise(30, 40).save(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1000])
    noise(30, 40).save(tmp_path / "d.jpg")
    truth = split_of(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], [(30, 40), (30, 41), (30, 40), (30, 40)])
    with pytest.raises(InputError, match=r"b\.jpg: the image is 40 x 30.*\(1 more images are bad\).*--data\.skip-bad"):
        check_images(truth)
    kept = check_images(truth, skip_bad=True)
    assert kept.file_names.tolist() == ["a.jpg", "d.jpg"]
    assert kept.boxes[:, 0].tolist() == [0, 3]
    assert [(fault.kind, fault.message.partition(": ")[0][-5:]) for fault in kept.dropped] == [
        ("size-mismatch", "b.jpg"),
        ("truncated-image", "c.jpg"),
    ]
    with pytest.raises(InputError, match="none of its 1 images can be used"):
        check_images(truth.subset([2]), skip_bad=True)
    with pytest.raises(InputError, match=r"missing: no such folder; train\.json expects"):
        check_images(split_of(tmp_path / "missing", ["a.jpg"]))


@pytest.mark.parametrize(
    ("bad", "total", "share", "allowed"),
    [
        (1, 4, 0.01, True),
        (2, 4, 0.01, False),
        (2, 4, 0.5, True),
        (3, 4, 0.5, False),
        (1, 4, 0.0, False),
        (7, 10, 0.7, True),
    ],
)
def test_more_than_a_share_of_the_images_is_not_left_out(
    tmp_path: Path, bad: int, total: int, share: float, allowed: bool
):
    for n in range(bad, total):
        noise(30, 40).save(tmp_path / f"{n}.jpg")
    truth = split_of(tmp_path, [f"{n}.jpg" for n in range(total)])
    if allowed:
        checked = check_images(truth, skip_bad=True, max_skipped=share)
        assert (len(checked), checked.left_out.images) == (total - bad, bad)
        return
    with pytest.raises(InputError) as caught:
        check_images(truth, skip_bad=True, max_skipped=share)
    assert f"{bad} of {total} images cannot be used, more than data.max-skipped {share:g} allows" in str(caught.value)
    assert f"the first: {tmp_path / '0.jpg'}: no such image file" in str(caught.value)


def test_more_than_a_share_of_the_annotations_is_not_left_out(tmp_path: Path):
    noise(30, 40).save(tmp_path / "a.jpg")
    boxes = [[1, 2, 3, 4], [1, 2, 3, 0], [1, 2, 3], [1, 2, 3, float("nan")]]
    truth = ground_truth_from_coco(
        {
            "images": [{"id": 1, "file_name": "a.jpg"}],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
            "annotations": [{"image_id": 1, "category_id": 1 + (n > 2), "bbox": box} for n, box in enumerate(boxes)],
        },
        tmp_path,
        "train.json",
        skip_bad=True,
    )
    assert str(truth.left_out) == "2 annotations left out, with every box of b"  # one without height is none of them
    assert len(truth.left_out.records) == 3
    assert len(check_images(truth, skip_bad=True, max_skipped=0.6).boxes) == 1
    with pytest.raises(InputError, match=r"2 of 3 annotations cannot be used, .* the first: .* has bbox \[1, 2, 3\]"):
        check_images(truth, skip_bad=True, max_skipped=0.3)


def test_a_class_that_is_gone_with_its_only_image_is_named(tmp_path: Path):
    noise(30, 40).save(tmp_path / "0.jpg")
    document = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "emu"}, {"id": 3, "name": "owl"}],
        "annotations": [
            {"image_id": image, "category_id": category, "bbox": [1, 1, 5, 6]}
            for image, category in ((0, 1), (1, 1), (2, 1), (2, 2))
        ],
    }
    checked = check_images(ground_truth_from_coco(document, tmp_path, "train.json"), skip_bad=True)
    assert str(checked.left_out) == "2 images left out, with every box of emu"  # there was no owl before


def test_a_file_that_would_need_an_interpreter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: pytest.fail("it was run"))
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n")
    for read in (read_image, check_image):
        with pytest.raises(InputError, match=r"a\.jpg: not an image that Pillow can read"):
            read(tmp_path / "a.jpg")
