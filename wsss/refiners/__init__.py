"""The refiners, which make pseudo masks of activation maps: one module each, registered by the line with its settings."""

from wsss.refiners.affinitynet import AffinityNetSettings
from wsss.refiners.crf import CRFSettings
from wsss.refiners.irnet import IRNetSettings

RefinerSettings = (
    CRFSettings
    | IRNetSettings
    | AffinityNetSettings
)  # fmt: skip
