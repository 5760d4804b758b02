"""The segmenters, which are made from pseudo masks: one module each. A segmenter is registered by adding its settings class here."""

from wsss.segmenters.deeplab import DeepLabSettings
from wsss.segmenters.deeplab_v1 import DeepLabV1Settings
from wsss.segmenters.emanet import EMANetSettings
from wsss.segmenters.frozen import FrozenSettings
from wsss.segmenters.pspnet import PSPNetSettings
from wsss.segmenters.retrieval import RetrievalSettings
from wsss.segmenters.weclip import WeCLIPSegmenterSettings

SegmenterSettings = (
    DeepLabSettings
    | EMANetSettings
    | DeepLabV1Settings
    | PSPNetSettings
    | FrozenSettings
    | RetrievalSettings
    | WeCLIPSegmenterSettings
)  # fmt: skip
