"""What is trained and what gives maps has a title, by which records, reports and comparisons tell it apart."""

import dataclasses
import importlib
import pkgutil

import pytest

import wsss


def settings_that_have(verb: str) -> set[type]:
    found = set()
    for part in ("methods", "refiners", "segmenters", "stages"):
        for module in pkgutil.walk_packages([f"{wsss.__path__[0]}/{part}"], f"wsss.{part}."):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and dataclasses.is_dataclass(value) and hasattr(value, verb):
                    found.add(value)
    return found


@pytest.mark.parametrize("verb", ["trainable", "localizer"])
def test_no_two_have_the_same_title(verb):
    titles = [kind().title if isinstance(kind.title, property) else kind.title for kind in settings_that_have(verb)]
    assert len(titles) > 5
    assert len(set(titles)) == len(titles)
    assert all(isinstance(title, str) and title for title in titles)
