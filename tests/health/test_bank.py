"""Suspicious tags that a bank finds: all regions of a class in a picture are voted down by other pictures."""

import numpy as np

from wsss.health.bank import _seldom, contradicted


def test_a_tag_is_suspicious_if_none_of_its_regions_is_recognised():
    labels = np.array([1, 1, 2, 2, 0, 1])
    pictures = np.array([0, 0, 0, 1, 1, 2])
    own = np.array([0.1, 0.8, 0.2, 0.4, 0.0, 0.3])
    judged = np.array([True, True, True])
    found = contradicted(labels, pictures, own, judged)
    # picture 0 has a region of class 1 that is recognised; the background is no tag
    assert [(picture, label) for picture, label, _ in found] == [(0, 2), (2, 1), (1, 2)]
    np.testing.assert_allclose([score for *_, score in found], [0.8, 0.7, 0.6])


def test_classes_with_few_pictures_are_not_judged():
    labels, pictures = np.array([1, 2]), np.array([0, 0])
    found = contradicted(labels, pictures, np.zeros(2), np.array([True, False, True]))
    assert [(picture, label) for picture, label, _ in found] == [(0, 2)]


def test_votes_by_class_are_advised_only_where_they_are_not_used():
    for voting, advised in (("plain", True), ("balanced", True), ("by-class", False)):
        note = _seldom([1], ["cat"], {"cat": 0.2}, voting)
        assert ("--segmenter.voting by-class" in note.do) == advised
        assert "Add pictures, " in note.do
        assert "use features of a foundation network" in note.do
