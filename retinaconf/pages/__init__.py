"""What pages that open offline are made of: style, scripts, SVG figures and small pictures."""

from importlib.resources import files


def asset(name: str) -> str:
    """The text of a file in `assets/`."""
    return (files(__name__) / "assets" / name).read_text(encoding="utf-8")
