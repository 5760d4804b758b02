"""Readers of files that other programs wrote; nothing that such a file says is imported or run."""
