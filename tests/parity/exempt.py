"""The arrays of the fixtures that no test looks at, each with its reason; `tests/parity/looked_at.py` refuses any other.

Keys are files under tests/parity/data; patterns are those of `fnmatch`. An entry that hides nothing is refused too.
"""

NEVER: dict[str, dict[str, str]] = {
    "vwl/preprocess.npz": {
        "python_draws": "what Python's `random` yields from a seed; ours are NumPy's, and tests are given the draws of aug*"
    },
    "clims/eval_cam.npz": {
        "camera_ready/[pt]_tp": "means over the labels of P / TP and T / TP, which labels never met make as large as 1e10; not reported here",
    },
    "clims/forward_clims.npz": {
        "grad*": "float32 gradients through batch statistics, off by up to 3e-2: the README asks to compare those of float64, f64/grad*",
    },
    "clims/prompts.npz": {
        "all_zero_label_text": "the text that stands for a picture without classes; here such a picture takes part in no pair",
        "camera_ready_multi_*": "one text of several classes, which no loss of the camera-ready code is given",
    },
    "clip-es/preprocess.npz": {
        "scaled_shapes": "of a helper for several scales, which CLIP-ES calls with scale 1 only, and which has no counterpart here"
    },
    "irnet/network.npz": {
        "crop96_edge_shape": "IRNet crops a picture larger than the padded size without a word; here it stays whole",
    },
}

# looked at by tests that are marked slow, which `make test` leaves out
SLOW: dict[str, tuple[str, ...]] = {
    "icam/deeplabv1_r38.npz": ("train_*",),
    "icam/infer_aff.npz": ("2007_000001_*",),
    "icam/infer_cam.npz": ("2007_000001_*",),
    "icam/infer_final.npz": ("*default_*", "*nocrf_*"),
    "icam/infer_seam.npz": ("2007_000001_*",),
    "icam/psp_nets.npz": ("res38_*",),
    "qa-clims/clip_vitl14.npz": ("*",),
    "qa-clims/manifest-clip-vitl14-visual.json": ("*",),
}
