import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import retinaconf
from retinaconf.errors import InputError
from retinaconf.inference.detector import BATCH
from retinaconf.inference.predict import predict_files


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def records(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "detections.json").read_text())


def test_a_folder_gives_a_picture_for_each_image_and_one_file_of_detections(trained: Any, tmp_path: Path):
    images = trained.data / "images"
    files = sorted(images.iterdir())
    assert len(files) > 2 * BATCH
    out = tmp_path / "new" / "out"
    assert predict_files(trained.run, [images], out, device="cpu") == (len(files), (), "score above 0.3")
    assert names(out) == sorted(["detections.json", *(f"{file.stem}.jpg" for file in files)])
    for file in files:
        picture, image = Image.open(out / f"{file.stem}.jpg"), Image.open(file)
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", image.size)

    detector = retinaconf.load(trained.run, device="cpu")
    found = records(out)
    assert [record["image_id"] for record in found] == sorted(record["image_id"] for record in found)
    for image_id, (file, expected) in enumerate(zip(files, detector.predict(files)), start=1):
        mine = [record for record in found if record["image_id"] == image_id]
        assert {record["file_name"] for record in mine} <= {str(file)}
        assert mine == [record | {"file_name": str(file)} for record in expected.to_coco(image_id)]
    assert {record["category_id"] for record in found} <= {3, 8, 90}
    assert len(found) > len(files)


def test_files_and_folders_at_any_depth_in_order(trained: Any, tmp_path: Path):
    image = Image.open(trained.data / "images/val-1.png")
    for name in ("b/deep/er/z.png", "b/a.JPG", "x.png", "a/x.png", "a/x-2.png", "a/notes.txt", "a/.hidden.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert("RGB").save(path, format="PNG") if path.suffix != ".txt" else path.write_text("hello")
    sources = [tmp_path / "in/x.png", tmp_path / "in/a", tmp_path / "in/b"]
    assert predict_files(trained.run, sources, tmp_path / "out", device="cpu").images == 5
    # Of equal names the later ones are numbered, past a name that is numbered already.
    assert names(tmp_path / "out") == ["a.jpg", "detections.json", "x-2.jpg", "x-3.jpg", "x.jpg", "z.jpg"]
    by_image = {record["image_id"]: record["file_name"] for record in records(tmp_path / "out")}
    expected = ["in/x.png", "in/a/x-2.png", "in/a/x.png", "in/b/a.JPG", "in/b/deep/er/z.png"]
    assert by_image == {n: str(tmp_path / name) for n, name in enumerate(expected, start=1)}


def test_the_threshold_is_of_the_pictures_only(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []
    rectangle = ImageDraw.ImageDraw.rectangle

    def count(self: ImageDraw.ImageDraw, *args: Any, **kwargs: Any) -> None:
        drawn.append("fill" not in kwargs)  # a box; labels are filled
        rectangle(self, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", count)
    image = trained.data / "images/val-3.png"
    (every,) = retinaconf.load(trained.run, device="cpu").predict(image)
    middle = float(every.scores[len(every) // 2])
    for threshold, expected in ((0.0, len(every)), (middle, len(every.above(middle))), (0.999, 0)):
        drawn.clear()
        out = tmp_path / str(threshold)
        predict_files(trained.run, [image], out, score_threshold=threshold, device="cpu")
        assert sum(drawn) == expected
        assert len(records(out)) == len(every)


def test_alpha_decides_the_scores(trained: Any, tmp_path: Path):
    image = trained.data / "images/val-3.png"
    predict_files(trained.run, [image], tmp_path / "own", device="cpu")
    predict_files(trained.run, [image], tmp_path / "same", alpha=0.4, device="cpu")
    predict_files(trained.run, [image], tmp_path / "class", alpha=0.0, device="cpu")
    assert records(tmp_path / "own") == records(tmp_path / "same")
    assert all(record["score"] == record["class_score"] for record in records(tmp_path / "class"))
    assert all(record["score"] != record["class_score"] for record in records(tmp_path / "own"))


def test_the_runs_own_joint_score_is_kept(write_run: Any, trained: Any, tmp_path: Path):
    changes = {"inference.joint": "cls*obj", "inference.score_threshold": 0.0, "inference.alpha": 0.0}
    run = write_run(tmp_path / "run", **changes)
    predict_files(run, [trained.data / "images/val-3.png"], tmp_path / "out", device="cpu")
    found = records(tmp_path / "out")
    expected = [record["class_score"] * record["quality"] for record in found]
    np.testing.assert_allclose([record["score"] for record in found], expected, rtol=1e-6)


def test_a_second_prediction_replaces_the_first(trained: Any, tmp_path: Path):
    images = [trained.data / f"images/val-{n}.png" for n in range(3)]
    predict_files(trained.run, images, tmp_path / "out", device="cpu")
    predict_files(trained.run, images[2:], tmp_path / "out", device="cpu")
    assert {record["file_name"] for record in records(tmp_path / "out")} == {str(images[2])}
    assert names(tmp_path / "out") == ["detections.json", "val-0.jpg", "val-1.jpg", "val-2.jpg"]


def test_a_failing_write_leaves_no_half_file(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Image.Image, path: Path, **kwargs: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"val-0\.jpg: cannot be written \(No space left on device\)"):
        predict_files(trained.run, [trained.data / "images/val-0.png"], out, device="cpu")
    assert names(out) == []


@pytest.mark.ci
def test_a_bad_file_is_skipped_and_listed_at_the_end(trained: Any, run_cli: Callable[..., Any], tmp_path: Path):
    photos = tmp_path / "photos"
    shutil.copytree(trained.data / "images", photos)
    files = sorted(photos.iterdir())
    bad = [files[1], files[BATCH + 2], files[-1]]
    bad[0].write_bytes(bad[0].read_bytes()[:3000])
    bad[1].write_text("hello")
    damaged = bytearray(bad[2].read_bytes())
    damaged[len(damaged) // 2] ^= 1  # header and end are whole
    bad[2].write_bytes(damaged)
    words = ["predict", trained.run, photos, "--out", tmp_path / "out", "--device", "cpu"]
    result = run_cli(*words)
    assert result.code == 1
    lines = result.out.splitlines()
    assert lines[0].startswith(f"{len(files) - 3} images: ")
    assert [line.split(": ")[:2] for line in lines[1:]] == [["skipped", str(file)] for file in bad]
    assert result.err == (
        f"retinaconf: files skipped because they cannot be read: 3; the first: {lines[1].removeprefix('skipped: ')}\n"
    )
    good = [file for file in files if file not in bad]
    assert names(tmp_path / "out") == sorted(["detections.json", *(f"{file.stem}.jpg" for file in good)])
    # An image's number is its place among all, so that mending the others does not change it.
    predict_files(trained.run, good, tmp_path / "good", device="cpu")
    found, expected = records(tmp_path / "out"), records(tmp_path / "good")
    assert [record["file_name"] for record in found] == [record["file_name"] for record in expected]
    np.testing.assert_allclose([r["score"] for r in found], [r["score"] for r in expected], atol=1e-5)
    assert {record["image_id"]: record["file_name"] for record in found} == {
        n: str(file) for n, file in enumerate(files, 1) if str(file) in {record["file_name"] for record in found}
    }


def test_where_no_file_can_be_read_nothing_is_written(trained: Any, tmp_path: Path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("hello")
    with pytest.raises(InputError, match=r"a\.jpg: not an image .* \(1 more files cannot be read\)$"):
        predict_files(trained.run, [tmp_path / "a.jpg", tmp_path / "b.jpg"], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
