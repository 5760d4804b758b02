import copy
import math

import pytest
import torch
from torch import nn

from wsss.errors import BadInput
from wsss.loading import load_backbone, load_into
from wsss.networks import affinitynet
from wsss.networks.affinitynet import VGG16, VGG_BODY, AffinityNet, Classifier, affinity_losses

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NARROW = "resnet38-narrow16"
HEADS = ("f8_3", "f8_4", "f8_5", "f9")


def small(backbone: str = NARROW, seed: int = 0) -> AffinityNet:
    torch.manual_seed(seed)
    return AffinityNet(backbone)


@pytest.mark.parametrize("backbone", [NARROW, "resnet18", "resnet10t", "convnext_atto"])
@pytest.mark.parametrize("size", [(32, 40), (50, 33)])
def test_one_cell_for_eight_pixels(backbone, size):
    network = small(backbone).eval()
    feature = network(torch.randn(2, 3, *size))
    cells = [math.ceil(side / 8) for side in size]
    assert feature.shape == (2, 448, *cells)
    assert feature.min() >= -1


def test_a_definition_of_the_head():
    network, image = small().eval(), torch.randn(1, 3, 40, 48)
    taps = network.body(image)[-3:]
    reduced = []
    for tap, name in zip(taps, HEADS[:3], strict=True):
        weight = network.get_submodule(name).weight[:, :, 0, 0]
        reduced.append(torch.einsum("bchw,dc->bdhw", tap, weight))
    joined = torch.cat([torch.where(r > 0, r, r.exp() - 1) for r in reduced], 1)
    mixed = torch.einsum("bchw,dc->bdhw", joined, network.f9.weight[:, :, 0, 0])
    torch.testing.assert_close(network(image), torch.where(mixed > 0, mixed, mixed.exp() - 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["resnet38-narrow2", VGG_BODY])
def test_heads_start_as_published(backbone):
    network = small(backbone)
    for name, channels in zip(HEADS, network.body.channels[-3:], strict=False):
        # Kaiming's normal distribution, by the number of inputs
        weight = network.get_submodule(name).weight
        assert weight.shape[1] == channels
        assert weight.std().item() == pytest.approx(math.sqrt(2 / channels), rel=0.03)
    bound = 4 * math.sqrt(6 / (448 + 448))
    assert network.f9.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert network.f9.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    groups = {name: layer.num_groups for name, layer in network.named_modules() if isinstance(layer, nn.GroupNorm)}
    assert groups == ({"gn8_3": 8, "gn8_4": 16, "gn8_5": 32} if backbone == VGG_BODY else {})


def test_names_in_the_state_dict():
    assert {name.split(".")[0] for name in small("resnet18").state_dict()} == {"backbone", *HEADS}
    assert {"conv1a.weight", "b7.conv_branch1.weight", "f9.weight"} <= small().state_dict().keys()
    assert {"conv1a.weight", "fc8.weight"} <= Classifier(3, NARROW).state_dict().keys()


@pytest.mark.parametrize("backbone", [NARROW, "resnet18"])
def test_a_copy_is_a_network_of_its_own(backbone):
    network, image = small(backbone).eval(), torch.randn(1, 3, 32, 32)
    before, twin = network(image), copy.deepcopy(network)
    assert torch.equal(twin(image), before)
    with torch.no_grad():
        next(parameter for parameter in twin.parameters() if parameter.ndim > 1).mul_(2)
    assert not torch.equal(twin(image), before)
    assert torch.equal(network(image), before)
    torch.testing.assert_close(network.double()(image.double()).float(), before, rtol=1e-3, atol=1e-4)


def test_published_files_load_whole(tmp_path):
    source, target = small(seed=1), small(seed=2)
    torch.save(source.state_dict(), tmp_path / "aff.pth")
    report = load_into(target, source.state_dict(), "aff.pth")
    assert len(report.loaded) == 232
    # and the trunk alone starts from any file that has it
    fresh = small(seed=3)
    head = fresh.f9.weight.clone()
    assert len(load_backbone(fresh.body, NARROW, str(tmp_path / "aff.pth")).loaded) == 228
    assert torch.equal(fresh.b5.conv_branch1.weight, source.b5.conv_branch1.weight)
    assert torch.equal(fresh.f9.weight, head)


def test_vgg_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    body, path = VGG16(4), tmp_path / "vgg16_20M.pth"
    torch.save({**body.state_dict(), "fc8.weight": torch.zeros(3)}, path)
    fresh = VGG16(1)
    assert len(load_backbone(fresh, VGG_BODY, str(path)).loaded) == 30
    assert torch.equal(fresh.fc6.weight, body.fc6.weight)
    with pytest.raises(BadInput, match="no library offers for psa-vgg16"):
        load_backbone(fresh, VGG_BODY, "imagenet")


def test_features_at_other_strides_are_refused(monkeypatch):
    body = affinitynet.create_backbone("resnet18", 16)
    monkeypatch.setattr(affinitynet, "create_backbone", lambda name, stride: body)
    with pytest.raises(BadInput, match=r"backbone some: found features at the strides 4, 4, 8, 16, 16"):
        AffinityNet("some")


@pytest.mark.parametrize("backbone", [NARROW, "resnet18", VGG_BODY])
def test_what_freezing_fixes(backbone):
    torch.manual_seed(0)
    network = AffinityNet(backbone).freeze()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.param_groups(0.01, 0.5))
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert network.train() is network
    assert network.training
    assert not any(norm.training for norm in norms)
    network(torch.randn(2, 3, 16, 16)).square().mean().backward()
    optimizer.step()
    stem = {
        NARROW: ("conv1a", "b2.", "b2_1.", "b2_2."),
        "resnet18": ("backbone.conv1.",),
        VGG_BODY: ("conv1_", "conv2_"),
    }[backbone]
    fixed = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    in_norms = {name for name in before if any(part.startswith(("bn", "num")) for part in name.split("."))}
    in_norms |= {name for name in before if "downsample.1." in name}
    assert fixed == {name for name in before if name.startswith(stem)} | in_norms
    assert network.eval() is network


@pytest.mark.parametrize("backbone", [NARROW, "resnet18", "convnext_atto", VGG_BODY])
def test_the_four_groups(backbone):
    torch.manual_seed(0)
    network = AffinityNet(backbone)
    groups = network.param_groups(0.1, 0.5)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    grouped = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    rates = [(round(group["lr"], 9), group["weight_decay"]) for group in groups]
    assert rates == [(0.1, 0.5), (0.2, 0.0), (1.0, 0.5), (2.0, 0.0), (0.1, 0.0)][: len(groups)]
    new = [names[id(parameter)] for parameter in groups[2]["params"]]
    assert new == [f"{head}.weight" for head in HEADS]
    assert groups[3]["params"] == []
    if backbone == VGG_BODY:
        assert len(groups) == 4
        assert [len(group["params"]) for group in groups] == [15 + 3, 15 + 3, 4, 0]
        assert all(names[id(parameter)].endswith("bias") for parameter in groups[1]["params"])
    else:
        # live batch norms, and norms of layers, learn at the backbone's rate
        assert all(parameter.ndim <= 1 for parameter in groups[4]["params"])
    frozen = network.freeze().param_groups(0.1, 0.5)
    assert [len(group["params"]) for group in frozen[:4]] == [len(group["params"]) for group in groups[:4]]
    assert backbone == "convnext_atto" or len(frozen) == 4


def test_training_pulls_labels_apart():
    network = small().freeze().train()
    optimizer = torch.optim.SGD(network.param_groups(0.01))
    image = torch.randn(1, 3, 48, 48)
    image[..., 24:] += 2
    values = []
    for _ in range(15):
        feature = network(image).flatten(2)
        a = torch.exp(-(feature[:, :, :, None] - feature[:, :, None, :]).abs().mean(1))
        right = torch.arange(36) % 6 >= 3
        same, background = right[:, None] == right, ~right[:, None] & ~right
        losses = affinity_losses(a, background[None], (same & ~background)[None], ~same[None])
        total = torch.stack(list(losses.values())).sum()
        values.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert sum(values[-3:]) < 0.9 * sum(values[:3])


def kinds_of_pairs(*shape: int) -> list[torch.Tensor]:
    kinds = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(0))
    return [kinds == kind for kind in range(3)]


def test_losses_by_their_definition():
    kinds = kinds_of_pairs(2, 5, 7)
    a = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = [0.0, 0.0, 0.0]
    for kind, (pairs, weight) in enumerate(zip(kinds, (0.25, 0.25, 0.5), strict=True)):
        for value in a[pairs].tolist():
            expected[kind] -= math.log(1 + 1e-5 - value if kind == 2 else value + 1e-5)
        expected[kind] *= weight / (int(pairs.sum()) + 1e-5)
    losses = affinity_losses(a.float(), *kinds)
    assert list(losses) == ["background_pairs", "foreground_pairs", "different_pairs"]
    assert [value.item() for value in losses.values()] == pytest.approx(expected, rel=1e-5)
    of_numbers = affinity_losses(a.float(), *(kind.float() for kind in kinds))
    assert [v.item() for v in of_numbers.values()] == [v.item() for v in losses.values()]


def test_losses_without_pairs_and_at_the_ends():
    nothing = torch.zeros(1, 3, 4, dtype=torch.bool)
    a = torch.rand(1, 3, 4, requires_grad=True)
    losses = affinity_losses(a, nothing, nothing, nothing)
    assert [value.item() for value in losses.values()] == [0, 0, 0]
    sum(losses.values()).backward()
    assert not a.grad.any()
    for value in (0.0, 1.0):
        a = torch.full((1, 3, 4), value, requires_grad=True)
        total = sum(affinity_losses(a, ~nothing, ~nothing, ~nothing).values())
        total.backward()
        assert total.isfinite()
        assert a.grad.isfinite().all()


def test_two_processes_together_have_the_loss_of_one():
    kinds = kinds_of_pairs(4, 5, 7)
    kinds = [kind & (torch.rand(4, 1, 1, generator=torch.Generator().manual_seed(2)) < 0.7) for kind in kinds]
    a = torch.rand(4, 5, 7, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    whole = affinity_losses(a, *kinds)
    (gradient,) = torch.autograd.grad(torch.stack(list(whole.values())).sum(), a)
    shares, totals, pieces = (slice(0, None, 2), slice(1, None, 2)), [], []
    for share in shares:
        counts = [[float(kind[part].sum()) for part in shares] for kind in kinds]

        def over_processes(count, share=share, counts=counts):
            both = counts.pop(0)
            assert count == both[shares.index(share)]
            return torch.tensor(sum(both) / 2)

        part = a[share].detach().requires_grad_()
        losses = affinity_losses(part, *(kind[share] for kind in kinds), over_processes=over_processes)
        totals.append(torch.stack(list(losses.values())))
        totals[-1].sum().backward()
        pieces.append(part.grad)
    torch.testing.assert_close(torch.stack(totals).mean(0), torch.stack(list(whole.values())), rtol=1e-6, atol=0)
    joined = torch.stack(pieces, 1).flatten(0, 1) / 2
    torch.testing.assert_close(joined, gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("feature", range(5))
def test_what_a_feature_of_vgg_is_made_with(feature):
    torch.manual_seed(0)
    network = VGG16(1)
    network(torch.randn(1, 3, 16, 16))[feature].sum().backward()
    made_with = {id(parameter) for parameter in network.parameters() if parameter.grad is not None}
    assert made_with == {id(parameter) for parameter in network.parameters_until(feature)}


@pytest.mark.parametrize("backbone", [NARROW, VGG_BODY])
def test_maps_average_to_the_logits(backbone):
    torch.manual_seed(0)
    network, image = Classifier(3, backbone).eval(), torch.randn(2, 3, 40, 48)
    raw = network.fc8(network.body(image)[-1])
    torch.testing.assert_close(network(image), raw.mean((2, 3)), rtol=1e-4, atol=1e-5)
    maps = network.maps(image)
    assert maps.shape == (2, 3, 5, 6)
    torch.testing.assert_close(maps**2 if backbone == VGG_BODY else maps, raw.clamp(min=0), rtol=1e-4, atol=1e-5)
    assert not torch.equal(network.train()(image), network(image))
