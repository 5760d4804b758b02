#!/usr/bin/env bash
# Expected: -(-height // 8), Python's usual way to round a division up, is the same number in an exported model. Seen: torch's ONNX exporter turns floor division of sizes into Div, which rounds towards zero, so -(-31 // 8) becomes 3, not 4.
# For a user: a network that pads, crops or resizes to such a size exports without an error and runs, but its cells are shifted or cut for most picture sizes; compare sizes that are no multiples of the stride, or write (height + 7) // 8.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'torch==2.15.0' 'onnx==1.23.2' 'onnxscript==0.7.2' 'onnxruntime==1.32.0' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" -W ignore - <<'PY'
import numpy as np
import onnxruntime
import torch

print("torch", torch.__version__, "onnxruntime", onnxruntime.__version__)


class Cells(torch.nn.Module):
    def forward(self, picture):
        height = picture.shape[2]
        return picture[:, :, : -(-height // 8)], picture[:, :, : (height + 7) // 8]


model = Cells().eval()
any_height = {"picture": {2: torch.export.Dim("height", min=2)}}
program = torch.onnx.export(model, (torch.zeros(1, 1, 31, 4),), dynamo=True, dynamic_shapes=any_height, verbose=False)
program.save("cells.onnx")
session = onnxruntime.InferenceSession("cells.onnx")
print("division nodes:", [node.op_type for node in program.model.graph if node.op_type in ("Div", "Floor")])
for height in (24, 31, 32, 33):
    picture = np.zeros((1, 1, height, 4), np.float32)
    eager = [part.shape[2] for part in model(torch.from_numpy(picture))]
    exported = [part.shape[2] for part in session.run(None, {"picture": picture})]
    print(f"height {height}: torch {eager}, onnxruntime {exported}")
    assert eager == [-(-height // 8)] * 2
    # only heights that are multiples of 8 agree; the other way to write it always does
    assert exported == [height // 8, -(-height // 8)]
print("as described")
PY
