"""Which of timm's families can be backbones, and at which output stride.

    python benchmarks/backbones.py > families.md

Each family's small member is built through `create_backbone`, given pictures of 96 x 128, 144 x 96 and 97 x 131 pixels, and compared
with timm's names for its weights. Nothing is computed or fetched: all of it happens on the meta device. Prints the table of
docs/backbones.md.
"""

import re

import timm
import torch

from wsss.errors import BadInput
from wsss.loading import load_into
from wsss.networks.backbone import create_backbone
from wsss.networks.timm_backbone import TimmBackbone

FAMILIES = {
    "ResNet (timm's)": "resnet10t",
    "ResNeXt": "resnext50_32x4d",
    "ResNeSt": "resnest14d",
    "RegNet": "regnety_002",
    "EfficientNet": "efficientnet_b0",
    "MobileNet v3": "mobilenetv3_small_050",
    "MobileNet v4": "mobilenetv4_conv_small",
    "ConvNeXt": "convnext_atto",
    "NFNet": "test_nfnet",
    "DenseNet": "densenet121",
    "VGG": "vgg11",
    "DLA": "dla34",
    "HRNet": "hrnet_w18_small",
    "Inception v3": "inception_v3",
    "MambaOut": "mambaout_femto",
    "PoolFormer": "poolformer_s12",
    "ViT": "vit_tiny_patch16_224",
    "DeiT": "deit_tiny_distilled_patch16_224",
    "DeiT III": "deit3_small_patch16_224",
    "DINOv2": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_small_patch16_dinov3",
    "CLIP's ViT": "vit_base_patch32_clip_224",
    "SigLIP's ViT": "vit_base_patch16_siglip_224",
    "EVA-02": "eva02_tiny_patch14_224",
    "FlexiViT": "flexivit_small",
    "SAM's ViT": "samvit_base_patch16",
    "Swin": "swin_tiny_patch4_window7_224",
    "Swin v2": "swinv2_tiny_window8_256",
    "PVT v2": "pvt_v2_b0",
    "Twins": "twins_svt_small",
    "XCiT": "xcit_nano_12_p16_224",
    "MViT v2": "mvitv2_tiny",
    "FocalNet": "focalnet_tiny_srf",
    "BEiT": "beit_base_patch16_224",
    "CaiT": "cait_xxs24_224",
    "ConViT": "convit_tiny",
    "CrossViT": "crossvit_tiny_240",
    "CoaT": "coat_lite_tiny",
    "CoAtNet": "coatnet_nano_rw_224",
    "MaxViT": "maxvit_nano_rw_256",
    "GC ViT": "gcvit_xxtiny",
    "Hiera": "hiera_tiny_224",
    "LeViT": "levit_128s",
    "PiT": "pit_ti_224",
    "VOLO": "volo_d1_224",
    "MLP-Mixer": "mixer_s32_224",
    "ResMLP": "resmlp_12_224",
}
STRIDES = (16, 8, 32)
SIZES_HW = ((96, 128), (144, 96), (97, 131))


def main() -> None:
    print(f"<!-- timm {timm.__version__}, torch {torch.__version__} -->")
    print("| family | tried | output stride | features | what else |\n|---|---|---|---|---|")
    with torch.device("meta"):
        for family, name in FAMILIES.items():
            print(f"| {family} | `{name}` | {' | '.join(row(name))} |", flush=True)


def row(name: str) -> tuple[str, str, str]:
    """Output strides, number of features and remarks; the reason where it is refused."""
    offered, backbone = [], None
    own = None
    for stride in STRIDES:
        # a stride that cannot become 16 becomes no other
        if own in (None, stride):
            try:
                backbone = create_backbone(name, stride)
                offered.append(stride)
            except BadInput as error:
                found = re.search(r"stride (\d+), which cannot", error.found)
                if not found:
                    return "refused", "", error.found.removeprefix("a timm model that ")
                own = int(found[1])
    if backbone is None and own is not None:
        backbone = create_backbone(name, own)
        offered.append(own)
    assert isinstance(backbone, TimmBackbone)
    load_into(backbone, backbone.named(timm.create_model(name).state_dict()), "timm's weights")
    backbone.eval()
    for height, width in SIZES_HW:
        for feature, stride in zip(backbone(torch.empty(1, 3, height, width)), backbone.strides, strict=True):
            assert feature.shape[-2:] == (-(-height // stride), -(-width // stride)), (name, feature.shape)
    cells = backbone.plan.multiple // max(backbone.strides)
    remark = ("", "padded to whole cells", "padded to an even number of cells")[cells]
    return ", ".join(map(str, sorted(offered))), str(len(backbone.channels)), remark


if __name__ == "__main__":
    main()
