"""Proposers of class-agnostic regions, one module each; a proposer is registered by adding its settings class here."""

from wsss.regions.panoptic import EoMTSettings
from wsss.regions.sam import SAMSettings
from wsss.regions.tree import TreeSettings

ProposerSettings = (
    TreeSettings
    | SAMSettings
    | EoMTSettings
)  # fmt: skip
# what proposes regions where nothing is chosen
DEFAULT = TreeSettings()
