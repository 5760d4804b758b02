"""What a run thinks of itself: notes on each stage, and tags that look wrong. No true mask is used.

`notes(run)` returns the notes of a run; docs/health.md lists them, with the measurements behind their thresholds.
"""

from wsss.health.note import Health, Note, notes

__all__ = ["Health", "Note", "notes"]
