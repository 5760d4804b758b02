"""Take over the network that a method has trained as the segmenter of its run."""

from pathlib import Path
from typing import Any

from wsss import launch
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.run import stage
from wsss.segmenters.weclip import NETWORKS, WeCLIPSegmenterSettings, copy_files
from wsss.weights import read_metadata, weights_in


@stage(kind="adopt", makes="weights", title=None)
def adopt(settings: WeCLIPSegmenterSettings, images: Images, *, weights: Path, out: Path) -> dict[str, Any]:
    """Copy the weights of a network that segments without any further training, with the frozen networks beside them.

    Args:
        settings: of the segmenter.
        images: the training pictures.
        weights: folder or file of the trained network.
        out: the stage's folder.

    Raises:
        BadInput: the weights are those of another network.
    """
    path = weights_in(weights)
    kind = read_metadata(path).get("kind")
    if kind != settings.trained_by:
        expected = f"those of a `{settings.trained_by}` network"
        raise BadInput(path, f"weights of a `{kind}` network", expected, "Choose another segmenter.kind.")
    if launch.is_first():
        copy_files([path], out)
        for name in NETWORKS:
            if (path.parent / name).is_dir():
                copy_files((path.parent / name).iterdir(), out / name)
    launch.wait()
    return {"images": len(images)}
