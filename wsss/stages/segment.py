"""Make a segmenter from pseudo masks: train it, on pictures or on cached tokens, fill the bank that it looks regions up in, or take over what the
method has trained."""

from pathlib import Path

from wsss.data.images import Images
from wsss.loading import started_from
from wsss.segmenters import SegmenterSettings
from wsss.segmenters.frozen import FrozenSettings
from wsss.segmenters.retrieval import RetrievalSettings
from wsss.segmenters.weclip import WeCLIPSegmenterSettings
from wsss.stages.adopt import adopt
from wsss.stages.bank import make_bank
from wsss.stages.tokens import cache_tokens
from wsss.stages.train import train


def segment(
    settings: SegmenterSettings,
    images: Images,
    *,
    masks: Path,
    out: Path,
    classifier: Path | None,
    tokens: Path | None = None,
    **inputs: Path,
) -> Path:
    """Make a segmenter; the stage's folder.

    Args:
        settings: of the segmenter.
        images: the pictures.
        masks: folder of their pseudo masks.
        out: the stage's folder.
        classifier: the trained classifier, for settings that name it; None if there is none.
        tokens: folder for the tokens of a frozen network, for a segmenter that is trained on them; None: `tokens` in the stage's folder.
        inputs: `corrected`, a folder of corrected masks of some of the pictures.
    """
    if isinstance(settings, RetrievalSettings):
        return make_bank(settings.after(classifier), images, masks=masks, out=out, **inputs)
    if isinstance(settings, FrozenSettings):
        frozen = settings.after(classifier)
        place = frozen.tokens or cache_tokens(frozen.of_tokens, images, out=tokens or out / "tokens")
        return train(frozen, images, masks=masks, tokens=place, out=out, **inputs)
    if isinstance(settings, WeCLIPSegmenterSettings):
        return adopt(settings, images, weights=settings.given(classifier, **inputs), out=out)
    return train(started_from(settings, "segmenter.init", classifier), images, masks=masks, out=out, **inputs)
