"""What a network that starts from a classifier will find is known before the classifier is trained."""

import pytest
import torch

from wsss.classifier import CAMNetwork
from wsss.errors import BadInput
from wsss.loading import WrongNetwork, check_initial, load_backbone, started_from, to_be_trained
from wsss.methods.clims import CameraReadyNetwork
from wsss.methods.vwl import VWLNetwork
from wsss.networks.backbone import create_backbone
from wsss.networks.emanet import EMANet, EMANetLayers
from wsss.networks.seam import SEAMNetwork
from wsss.segmenters.emanet import EMANetSettings
from wsss.weights import WEIGHTS, write_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CLASSIFIERS = {
    "cam on resnet18": (lambda: CAMNetwork("resnet18", 2), "resnet18", 16),
    "cam on timm": (lambda: CAMNetwork("test_resnet", 2), "test_resnet", 16),
    "cam on a transformer": (lambda: CAMNetwork("test_vit", 2), "test_vit", 16),
    "vwl": (lambda: VWLNetwork("resnet18", 2, 8, True), "resnet18", 16),
    "icam on resnet38": (lambda: SEAMNetwork(2, "resnet38-narrow32"), "resnet38-narrow32", 8),
    "icam on timm": (lambda: SEAMNetwork(2, "test_resnet"), "test_resnet", 8),
    "clims as camera-ready": (lambda: CameraReadyNetwork("resnet18", 2), "resnet18", 16),
}
TARGETS = {
    "resnet18": 8,
    "resnet34": 8,
    "test_resnet": 8,
    "test_vit": 16,
    "resnet38-narrow32": 8,
    "resnet38-narrow16": 8,
}


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_what_was_promised_is_what_the_file_holds(tmp_path, classifier):
    make, name, stride = CLASSIFIERS[classifier]
    torch.manual_seed(0)
    write_weights(tmp_path / WEIGHTS, make().state_dict(), {"kind": "cam"})
    promised = to_be_trained(name, stride)
    for target, target_stride in TARGETS.items():
        body = to_be_trained(target, target_stride)
        words = ("segmenter.init", body, target, "classifier")
        if target == name:
            check_initial(*words, promised)
            check_initial(*words, tmp_path)
            fresh = create_backbone(target, target_stride)
            assert not load_backbone(fresh, target, str(tmp_path)).missing
        else:
            for given in (promised, tmp_path, tmp_path / WEIGHTS):
                with pytest.raises(BadInput, match=rf"segmenter.init: found `classifier` for {target}, but"):
                    check_initial(*words, given)
            with pytest.raises(WrongNetwork):
                load_backbone(create_backbone(target, target_stride), target, str(tmp_path))


def test_a_body_of_a_segmenter_alone():
    # timm's resnet50s in a classifier; EMANet's own body of that name has other names for the same layers
    with torch.device("meta"):
        trunk = EMANet(2, EMANetLayers("resnet50s")).extractor
    check_initial("segmenter.init", trunk, "resnet50s", "classifier", to_be_trained("resnet50s", 16))
    with pytest.raises(BadInput, match="but the classifier has another backbone"):
        check_initial("segmenter.init", trunk, "resnet50s", "classifier", to_be_trained("resnet50", 16))


def test_without_a_classifier():
    body = to_be_trained("resnet18", 16)
    for call in (
        lambda: check_initial("segmenter.init", body, "resnet18", "classifier"),
        lambda: started_from(EMANetSettings(init="classifier"), "segmenter.init", None),
    ):
        with pytest.raises(
            BadInput, match=r"segmenter\.init: found `classifier`, but no classifier that was trained here"
        ):
            call()


def test_a_file_of_another_network_is_refused_before_anything_is_built(tmp_path):
    write_weights(tmp_path / WEIGHTS, create_backbone("resnet34").state_dict(), {})
    for init in (tmp_path, tmp_path / WEIGHTS):
        with pytest.raises(BadInput, match="weights of another network"):
            check_initial("classifier.init", to_be_trained("resnet18", 16), "resnet18", str(init))


def test_a_folder_stands_for_the_weights_in_it(tmp_path):
    source = CAMNetwork("resnet18", 2)
    write_weights(tmp_path / "stage" / WEIGHTS, source.state_dict(), {"kind": "cam"})
    for init in (tmp_path / "stage", tmp_path / "stage" / WEIGHTS):
        body = create_backbone("resnet18")
        load_backbone(body, "resnet18", str(init))
        assert torch.equal(body.layer4[1].conv2.weight, source.body.layer4[1].conv2.weight)
        started = started_from(EMANetSettings(init="classifier"), "segmenter.init", init)
        assert started.init == str(tmp_path / "stage" / WEIGHTS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty: found a folder without weights\.safetensors"):
        load_backbone(create_backbone("resnet18"), "resnet18", str(tmp_path / "empty"))
