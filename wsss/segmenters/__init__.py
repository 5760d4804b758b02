"""The segmenters, which are trained on pseudo masks: one module each. A segmenter is registered by adding its settings class here."""

from wsss.segmenters.deeplab import DeepLabSettings
from wsss.segmenters.deeplab_v1 import DeepLabV1Settings
from wsss.segmenters.emanet import EMANetSettings
from wsss.segmenters.pspnet import PSPNetSettings

SegmenterSettings = (
    DeepLabSettings
    | EMANetSettings
    | DeepLabV1Settings
    | PSPNetSettings
)  # fmt: skip
