"""The segmenters that learn from pseudo masks: one module each, registered by the line with its settings."""

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
