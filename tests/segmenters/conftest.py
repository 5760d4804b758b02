"""What the tests of segmenters without an end-to-end training share."""

import pytest

from tests.segmenters.tiny import write_classifier


@pytest.fixture(scope="module")
def data(masked_squares):
    """Pictures of squares, and their masks."""
    return masked_squares


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier that was not trained."""
    return write_classifier(tmp_path_factory.mktemp("classifier"))
