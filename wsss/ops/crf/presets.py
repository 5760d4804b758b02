"""Settings of the dense CRF, and published presets."""

import dataclasses
from typing import Literal, get_args

import numpy as np

from wsss.errors import BadInput

Picture = Literal["rgb", "bgr", "wrapped_bgr"]


@dataclasses.dataclass(frozen=True)
class DenseCRF:
    """Two Potts kernels and the number of iterations (Krähenbühl and Koltun, NeurIPS 2011, equation 3)."""

    gaussian_sxy: float | tuple[float, float] = 3.0
    """standard deviation of the smoothness kernel in pixels, one value for both axes or (x, y)"""
    gaussian_weight: float = 3.0
    """weight of the smoothness kernel"""
    bilateral_sxy: float | tuple[float, float] = 50.0
    """standard deviation of the appearance kernel in pixels, one value for both axes or (x, y)"""
    bilateral_srgb: float | tuple[float, float, float] = 5.0
    """standard deviation of the appearance kernel in grey levels (0..255), one value for all channels of `picture` or one for each"""
    bilateral_weight: float = 10.0
    """weight of the appearance kernel"""
    iterations: int = 10
    """mean-field iterations; 0 returns the softmax of the unary"""
    picture: Picture = "rgb"
    """channels used by the appearance kernel; wrapped_bgr is BGR minus its mean, wrapped around in 8 bits"""

    def __post_init__(self) -> None:
        for name, axes in (("gaussian_sxy", 2), ("bilateral_sxy", 2), ("bilateral_srgb", 3)):
            given = getattr(self, name)
            values = np.atleast_1d(np.asarray(given, np.float64))
            if values.shape not in ((1,), (axes,)) or not ((values > 0) & (values < np.inf)).all():
                expected = f"a positive number, or {axes} of them"
                raise BadInput(
                    f"dense CRF setting {name}",
                    f"{given}",
                    expected,
                    "Give standard deviations in pixels or grey levels.",
                )
        for name in ("gaussian_weight", "bilateral_weight"):
            if not np.isfinite(getattr(self, name)):
                raise BadInput(
                    f"dense CRF setting {name}",
                    f"{getattr(self, name)}",
                    "a finite number",
                    "Give 0 to leave the kernel out.",
                )
        if self.iterations < 0:
            raise BadInput(
                "dense CRF setting iterations", f"{self.iterations}", "0 or more", "The published values are 1 and 10."
            )
        if self.picture not in get_args(Picture):
            raise BadInput(
                "dense CRF setting picture", repr(self.picture), f"one of {get_args(Picture)}", "Choose one of them."
            )


Preset = Literal["irn", "psa", "deeplab", "vwl", "icam-final", "weclip"]
PRESETS: dict[Preset, DenseCRF] = {
    # misc/imutils.py: crf_inference_label of IRNet; also used by CLIMS, QA-CLIMS and VWL
    "irn": DenseCRF(3.0, 3.0, 50.0, 5.0, 10.0, 10),
    # tool/imutils.py: crf_inference of PSA; also used by SEAM and ICAM
    "psa": DenseCRF(3.0, 3.0, 80.0, 13.0, 10.0, 10),
    # libs/utils/crf.py of deeplab-pytorch; also used by CLIMS, QA-CLIMS and CLIP-ES, on the picture that main.py wraps
    "deeplab": DenseCRF(1.0, 3.0, 67.0, 3.0, 4.0, 10, "wrapped_bgr"),
    # VWL v2, post-processing of the CAMs
    "vwl": DenseCRF(1.0, 3.0, 64.0, 3.0, 4.0, 10),
    # ICAM, evaluation of the final model
    "icam-final": DenseCRF(3.0, 3.0, 32.0, 13.0, 10.0, 1),
    # WeCLIP and WeCLIP+, predictions of the decoder
    "weclip": DenseCRF(3.0, 3.0, 64.0, 5.0, 4.0, 10),
}
"""Published settings. `dataclasses.replace(PRESETS["deeplab"], picture="rgb")` is "deeplab" on the unmodified picture."""
