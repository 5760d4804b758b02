"""Work in threads: order, progress, errors."""

import pytest

from wsss.stream import in_threads


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 7, 50])
def test_results_come_in_order_with_progress(batch, count):
    seen = []
    found = in_threads(
        lambda item: item * 2, iter(range(count)), count, lambda *done: seen.append(done), threads=3, batch=batch
    )
    assert list(found) == [2 * item for item in range(count)]
    assert seen == [(done, count) for done in range(1, count + 1)]


@pytest.mark.parametrize("batch", [1, 4])
def test_the_first_error_ends_it(batch):
    def invert(item):
        return 1 / (item - 20)

    found = in_threads(invert, range(1000), threads=2, batch=batch)
    with pytest.raises(ZeroDivisionError):
        list(found)
