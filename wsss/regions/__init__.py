"""Proposers of class-agnostic regions, one module each; a proposer is registered by adding its settings class here."""

from wsss.regions.tree import TreeSettings

ProposerSettings = TreeSettings
DEFAULT = TreeSettings()
