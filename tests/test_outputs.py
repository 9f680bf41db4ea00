import os
from pathlib import Path

import pytest

from retinaconf.errors import InputError
from retinaconf.outputs import check_outputs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set, a run, and two files; the working folder."""
    for name in (
        *("data/train.json", "data/extra.json", "data/images/A.JPG", "data/annots/instances_val.json"),
        *("data/valid/_annotations.coco.json", "data/Annotations/a.xml", "data/labels/a.txt", "data/data.yaml"),
        *("data/check.json", "data/page.html", "run/config.json", "run/metrics.jsonl", "run/model.safetensors"),
        *("run/last.ckpt", "run/log.txt", "run/numbers.json", "run/pictures/a.jpg", "dt.json", "gt.json"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.json").symlink_to("gt.json")
    (tmp_path / "linked").symlink_to("data")
    os.link(tmp_path / "gt.json", tmp_path / "hard.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "output",
    [
        *("data/train.json", "data/images/A.JPG", "data/annots/instances_val.json", "data/labels/a.txt"),
        *("data/valid/_annotations.coco.json", "data/Annotations/a.xml", "data/data.yaml", "linked/train.json"),
        *("run/config.json", "run/metrics.jsonl", "run/model.safetensors", "run/last.ckpt", "run/log.txt"),
        *("run/../gt.json", "link.json", "hard.json", "dt.json"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_nothing_that_is_read_is_written(output: str):
    inputs = [Path(name) for name in ("data", "run", "dt.json", "gt.json", "nowhere")]
    with pytest.raises(InputError, match=rf"^{output}: is an input( \(of (data|run|gt\.json)\))? and would be overwr"):
        check_outputs([None, Path("new.json"), Path(output)], [None, *inputs])
    if output.startswith("run/"):
        with pytest.raises(InputError, match="is an input"):
            check_outputs([Path(output)], [Path("run/model.safetensors"), Path("gt.json")])


def test_all_else_may_be_written(folder: Path):
    inputs = [Path(name) for name in ("data", "run", "dt.json", "gt.json")]
    outputs = ["data/check.json", "data/page.html", "run/numbers.json", "run/pictures/a.jpg", "new.json"]
    check_outputs(map(Path, outputs), inputs)
    os.mkfifo(folder / "pipe")
    check_outputs([Path("pipe"), Path("pipe")], [Path("pipe")])


def test_no_two_outputs_in_one_file(folder: Path):
    with pytest.raises(InputError, match=r"^run/\.\./new\.json: two outputs would be written to it"):
        check_outputs([Path("new.json"), Path("run/../new.json")], [])


def test_a_link_in_a_circle_is_no_place(tmp_path: Path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    check_outputs([tmp_path / "circle"], [tmp_path])  # whoever writes it says so
