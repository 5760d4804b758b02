#!/usr/bin/env bash
# Expected: SigLIP of transformers refuses a picture of another size than it was trained on, as CLIP does, unless positions are to be resized. Seen: it takes any picture with as many patches. Those of a wide picture get the positions of a square, row by row, and pixels beyond the last whole patch are not seen.
# For a user: features of a 112 x 448 picture from a SigLIP for 224 x 224 pixels are wrong without a word, and maps of a 239 x 239 picture, stretched back to its size, are shifted; give interpolate_pos_encoding=True, and pictures whose sides are multiples of the patch.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'transformers==5.23.0' 'torch==2.15.0' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" -W ignore - <<'PY'
import torch
import transformers
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

print("transformers", transformers.__version__, "torch", torch.__version__)
transformers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
siglip = SiglipVisionModel(SiglipVisionConfig(**small, image_size=224, patch_size=16)).eval()
clip = CLIPVisionModel(CLIPVisionConfig(**small, image_size=224, patch_size=16)).eval()


@torch.no_grad()
def tokens(model, picture, resized=False):
    return model(pixel_values=picture, interpolate_pos_encoding=resized).last_hidden_state


for height, width in ((224, 224), (112, 448), (448, 112), (239, 239)):
    picture = torch.randn(1, 3, height, width)
    try:
        tokens(clip, picture)
        said = "nothing"
    except ValueError as error:
        said = str(error)
    assert (said == "nothing") == (height == width == 224)
    plain, right = tokens(siglip, picture), tokens(siglip, picture, resized=True)
    # the same picture with other pixels beyond the last whole patch
    beyond = picture.clone()
    beyond[:, :, height // 16 * 16 :] = 9
    beyond[:, :, :, width // 16 * 16 :] = 9
    unseen = int((beyond != picture)[0, 0].sum())
    print(f"{height} x {width}: SigLIP differs by {(plain - right).abs().max():.2f} from itself with resized positions; "
          f"{unseen} pixels are not seen; CLIP says: {said}")
    assert torch.equal(tokens(siglip, beyond), plain)
    assert ((plain - right).abs().max() > 0.1) == (height != width)
    assert (unseen > 0) == (height == 239)
print("as described")
PY
