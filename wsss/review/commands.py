"""Entry points of the commands, which check that the web server is installed before anything imports it."""

from wsss.review.options import ReviewOptions, TryOptions
from wsss.review.serving import check_installed


def review(options: ReviewOptions) -> None:
    """Run `wsss review`."""
    check_installed("wsss review")
    from wsss.review import reviewing

    reviewing.review(options)


def try_out(options: TryOptions) -> None:
    """Run `wsss try`."""
    check_installed("wsss try")
    from wsss.review import trying

    trying.try_out(options)
