from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data():
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real images at ../shared/data are not here")
    return folder
