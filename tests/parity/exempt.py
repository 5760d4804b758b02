"""The arrays of the fixtures that no test looks at, each with its reason; `tests/parity/looked_at.py` refuses any other.

Keys are files under tests/parity/data; patterns are those of `fnmatch`. An entry that hides nothing is refused too.
"""

NEVER: dict[str, dict[str, str]] = {
    "vwl/preprocess.npz": {
        "python_draws": "what Python's `random` yields from a seed; ours are NumPy's, and tests are given the draws of aug*"
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
