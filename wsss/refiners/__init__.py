"""The refiners, which turn activation maps into pseudo masks: one module each. A refiner is registered by adding its settings class here."""

from wsss.refiners.affinitynet import AffinityNetSettings
from wsss.refiners.crf import CRFSettings
from wsss.refiners.irnet import IRNetSettings
from wsss.refiners.regions import RegionsSettings

RefinerSettings = (
    CRFSettings
    | IRNetSettings
    | AffinityNetSettings
    | RegionsSettings
)  # fmt: skip
