"""The order of IRNet's directions."""

from wsss.ops import affinity


def by_path_length(radius: int) -> tuple[tuple[int, int], ...]:
    """Short paths first, those of equal length as in `affinity.directions`."""
    lengths = map(len, affinity.paths(radius))
    return tuple(
        direction for direction, _ in sorted(zip(affinity.directions(radius), lengths), key=lambda pair: pair[1])
    )
