"""What the tests of segmenters without an end-to-end training share."""

import pytest

from tests.conftest import finished, write_squares
from tests.segmenters.tiny import write_classifier, write_truths


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures of squares, and their masks."""
    folder = tmp_path_factory.mktemp("data")
    images = write_squares(folder / "pictures", 12)
    return images, finished(write_truths(images, folder / "masks"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier that was not trained."""
    return write_classifier(tmp_path_factory.mktemp("classifier"))
