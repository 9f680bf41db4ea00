import pytest
from PIL import Image


@pytest.fixture(scope="module")
def images(shared_data):
    """Three photographs at the size at which they enter the network."""
    paths = sorted((shared_data / "coco-mini" / "val2017").iterdir())[:3]
    return [Image.open(path).convert("RGB").resize((300, 200)) for path in paths]
