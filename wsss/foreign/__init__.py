"""Readers for file formats of other programs; nothing named in such a file is imported or run."""
