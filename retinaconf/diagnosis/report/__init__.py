"""The numbers of `diagnosis.measures` as words, JSON, figures and a page."""

from importlib.resources import files


def asset(name: str) -> str:
    """The text of a file in `assets/`, which the page and its figures are made of."""
    return (files(__name__) / "assets" / name).read_text(encoding="utf-8")
