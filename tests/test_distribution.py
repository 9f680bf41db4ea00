"""What is released: the files in a source distribution and in a wheel, and the versions that are allowed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from retinaconf import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def build(kind: str, source: Path, out: Path) -> Path:
    """The wheel or sdist of a folder, made as an installer makes it, without a network."""
    program = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, out], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


@pytest.mark.ci
def test_the_distributions_have_every_file_of_the_package_and_no_other(tmp_path: Path):
    """The wheel is made from the source distribution, so that both are seen."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    kept = [name for name in listed if (ROOT / name).is_file()]
    for name in kept:
        copy = tmp_path / "checkout" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    expected = sorted(name for name in kept if name.startswith("retinaconf/"))
    assert {name.rpartition(".")[2] for name in expected} >= {"py", "html", "css", "js", "typed"}

    with tarfile.open(build("sdist", tmp_path / "checkout", tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"retinaconf-{__version__}"
    files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    assert sorted(name for name in files if name.startswith("retinaconf/")) == expected
    assert {name for name in files if "/" not in name} == {
        *("LICENSE", "README.md", "pyproject.toml", "MANIFEST.in"),
        *("PKG-INFO", "setup.cfg"),  # which setuptools writes
    }
    assert {name.partition("/")[0] for name in files if "/" in name} == {"retinaconf", "retinaconf.egg-info"}

    with zipfile.ZipFile(build("wheel", source, tmp_path)) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(archive.read(f"retinaconf-{__version__}.dist-info/METADATA").decode())
    assert sorted(name for name in names if ".dist-info/" not in name) == expected
    assert f"retinaconf-{__version__}.dist-info/licenses/LICENSE" in names
    assert metadata["Version"] == __version__
    assert (ROOT / "CHANGELOG.md").read_text().count(f"\n## [{__version__}]") == 1


def test_the_oldest_versions_are_the_lower_bounds():
    extras = PROJECT["optional-dependencies"]
    bounds = {}
    for text in chain(PROJECT["dependencies"], *(extras[name] for name in extras.keys() - {"release"})):
        requirement = Requirement(text)
        if requirement.name != "retinaconf":
            (bound,) = requirement.specifier
            assert bound.operator in (">=", "==")
            bounds[canonicalize_name(requirement.name)] = Version(bound.version)
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = (Requirement(line) for line in lines if not line.startswith("#"))
    assert {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins} == bounds


def test_the_page_about_dependencies_has_their_versions():
    page = (ROOT / "docs/dependencies.md").read_text()
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    tested = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    extras = PROJECT["optional-dependencies"]
    for text in chain(PROJECT["dependencies"], *(extras[name] for name in extras.keys() - {"release"})):
        requirement = Requirement(text)
        if requirement.name != "retinaconf":
            (bound,) = requirement.specifier
            row = f"| {requirement.name} | {bound.version} | {tested[canonicalize_name(requirement.name)]} |"
            assert row in page, row
