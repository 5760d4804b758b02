"""IRNet on any backbone: which weights are trained, its losses, and its output for pictures of any size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.errors import BadInput
from wsss.loading import load_into
from wsss.networks import irnet
from wsss.ops import affinity

BACKBONES = ["resnet18", "test_resnet", "mobilenetv3_small_050"]


def random_state(network: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.rand(value.shape).to(value.dtype) for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return irnet.IRNet("test_resnet").eval()


def picture(height, width, seed=0):
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_maps_have_the_stride_of_the_second_feature(backbone, output_stride):
    network = irnet.IRNet(backbone, output_stride=output_stride)
    assert network.stride == 4
    for height, width in ((64, 96), (37, 70), (101, 33)):
        edge, displacement = network(picture(height, width)[None])
        assert edge.shape == (1, 1, -(-height // 4), -(-width // 4))
        assert displacement.shape == (1, 2, *edge.shape[2:])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_branches_learn_and_the_backbone_stays(backbone):
    network = irnet.IRNet(backbone)
    assert network.train() is network
    assert network.training
    assert not network.body.training
    before = {name: value.clone() for name, value in network.body.state_dict().items()}
    edge, displacement = network(torch.randn(2, 3, 64, 64))
    (edge.sum() + displacement.sum()).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == name.startswith(("fc_edge", "fc_dp")), name
    for name, value in network.body.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert network.eval() is network
    assert not network.fc_edge1.training


def test_groups_of_the_optimiser():
    network = irnet.IRNet("test_resnet")
    edge, displacement = network.param_groups(0.1, 1e-4)
    assert (edge["lr"], displacement["lr"]) == (0.1, 1.0)
    assert edge["weight_decay"] == displacement["weight_decay"] == 1e-4
    trained = [id(p) for group in (edge, displacement) for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_the_edge_branch_alone():
    torch.manual_seed(1)
    whole, edge_alone = irnet.IRNet("test_resnet"), irnet.IRNet("test_resnet", displacement=False)
    assert not any("fc_dp" in name or "mean_shift" in name for name in edge_alone.state_dict())
    edge_alone.load_state_dict({k: v for k, v in whole.state_dict().items() if k in edge_alone.state_dict()})
    image = picture(48, 64)[None]
    edge, displacement = edge_alone(image)
    assert displacement is None
    torch.testing.assert_close(edge, whole(image).edge)
    (group,) = edge_alone.param_groups(0.1)
    assert {id(p) for p in group["params"]} == {id(p) for p in edge_alone.parameters() if p.requires_grad}
    labels = torch.randint(0, 2, (1, 12, 16))
    assert set(irnet.irnet_losses(edge_alone(image), labels, 2, 4)) == {
        "background_pairs",
        "foreground_pairs",
        "different_pairs",
    }
    assert irnet.boundaries(edge_alone.eval(), image[0]).displacement is None


def test_a_backbone_without_a_stem_is_refused():
    with pytest.raises(BadInput, match="4 features"):
        irnet.IRNet("convnext_atto")


def test_the_mean_shift_is_for_evaluation(small):
    network = irnet.IRNet("test_resnet")
    network.load_state_dict(small.state_dict())
    network.mean_shift.running_mean.copy_(torch.tensor([1.5, -2.0]))
    batches = [torch.stack([picture(40, 48, i), picture(40, 48, i + 10)]) for i in range(3)]
    mean = network.mean_displacement(iter(batches))
    fields = [network.train()(batch).displacement for batch in batches]
    torch.testing.assert_close(mean, torch.stack([field.mean((0, 2, 3)) for field in fields]).mean(0))
    shifted = network.eval()(batches[0]).displacement
    torch.testing.assert_close(fields[0] - shifted, torch.tensor([1.5, -2.0])[:, None, None].expand_as(shifted))
    network.mean_shift.running_mean.copy_(mean)
    fields = [network(batch).displacement for batch in batches]
    torch.testing.assert_close(torch.stack(fields).mean((0, 1, 3, 4)), torch.zeros(2), rtol=0, atol=1e-6)


def test_the_mean_displacement_of_several_processes(small):
    batches = [picture(40, 48, i)[None] for i in range(3)]
    totals = []

    def note(value):
        totals.append(value)
        return value

    small.mean_displacement(batches[0::2], over_processes=note)
    small.mean_displacement(batches[1::2], over_processes=note)
    together = small.mean_displacement(batches[0::2], over_processes=lambda _: torch.stack(totals).mean(0))
    torch.testing.assert_close(together, small.mean_displacement(batches))
    with pytest.raises(BadInput, match="no batch"):
        small.mean_displacement([])


@st.composite
def examples(draw):
    """Outputs of a network and labels, in float64."""
    radius = draw(st.integers(2, 5))
    b, rows, columns = draw(st.integers(1, 3)), draw(st.integers(radius, 9)), draw(st.integers(2 * radius - 1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    edge = torch.from_numpy(rng.normal(0, 2, (b, 1, rows, columns))).requires_grad_()
    displacement = torch.from_numpy(rng.normal(0, 3, (b, 2, rows, columns))).requires_grad_()
    values = draw(st.sampled_from([[0, 1, 2, 255], [0, 1], [0], [255], [2, 7]]))
    return radius, irnet.Branches(edge, displacement), torch.from_numpy(rng.choice(values, (b, rows, columns)))


@settings(max_examples=60, deadline=None)
@given(examples())
def test_losses_against_their_definition(example):
    radius, branches, labels = example
    edge, displacement = (value.detach().numpy() for value in branches)
    edge, f = 1 / (1 + np.exp(-edge[:, 0])), radius - 1
    lists = {name: [] for name in ("bg", "fg", "neg", "dp_fg", "dp_bg")}
    for (dy, dx), path in zip(affinity.directions(radius), affinity.paths(radius), strict=True):
        for b in range(len(edge)):
            for y in range(edge.shape[1] - f):
                for x in range(f, edge.shape[2] - f):
                    here, there = labels[b, y, x].item(), labels[b, y + dy, x + dx].item()
                    a = 1 - max(edge[b, y + cy, x + cx] for cy, cx in path)
                    moved = displacement[b, :, y, x] - displacement[b, :, y + dy, x + dx]
                    if max(here, there) >= 3:
                        continue
                    if here != there:
                        lists["neg"].append(-np.log(1 + 1e-5 - a))
                        continue
                    lists["fg" if here else "bg"].append(-np.log(a + 1e-5))
                    if here:
                        lists["dp_fg"].append(np.abs(moved - (dy, dx)).sum())
                    else:
                        lists["dp_bg"].append(np.abs(moved).sum())
    mean = {name: sum(found) / (len(found) * (2 if "dp" in name else 1) + 1e-5) for name, found in lists.items()}
    losses = irnet.irnet_losses(branches, labels, 3, radius)
    np.testing.assert_allclose(
        [value.item() for value in losses.values()],
        [mean["bg"] / 4, mean["fg"] / 4, mean["neg"] / 2, mean["dp_fg"] / 2, mean["dp_bg"] / 2],
        rtol=1e-12,
    )
    assert list(losses)[0:2] == ["background_pairs", "foreground_pairs"]


@settings(max_examples=20, deadline=None)
@given(examples(), examples())
def test_two_processes_minimise_what_one_does(one, other):
    # as many rows and columns as both have, of one batch cut in two
    radius = min(one[0], other[0])
    rows, columns = (min(one[2].shape[axis], other[2].shape[axis]) for axis in (1, 2))
    shares = [
        (irnet.Branches(*(v.detach()[..., :rows, :columns] for v in branches)), labels[:, :rows, :columns])
        for _, branches, labels in (one, other)
    ]
    counts = []

    def note(value):
        counts.append(value)
        return value

    for branches, labels in shares:
        irnet.irnet_losses(branches, labels, 3, radius, over_processes=note)
    gradients, sums = [], []
    for branches, labels in shares:
        inputs = irnet.Branches(*(value.clone().requires_grad_() for value in branches))
        losses = irnet.irnet_losses(inputs, labels, 3, radius, over_processes=lambda _: sum(counts) / 2)
        total = sum(losses.values())
        total.backward()
        gradients.append([value.grad / 2 for value in inputs])
        sums.append(total.item())
    whole = irnet.Branches(*(torch.cat(both).requires_grad_() for both in zip(*(b for b, _ in shares), strict=True)))
    total = sum(irnet.irnet_losses(whole, torch.cat([labels for _, labels in shares]), 3, radius).values())
    total.backward()
    # e is added to the mean number of pairs of a process, not to their sum: 1e-5 where there is one pair
    np.testing.assert_allclose(np.mean(sums), total.item(), rtol=3e-5)
    for value, *parts in zip(whole, *gradients, strict=True):
        torch.testing.assert_close(torch.cat(parts), value.grad, rtol=0, atol=1e-4 * value.grad.abs().max().item())


def test_losses_in_half_precision_are_those_in_float32():
    torch.manual_seed(0)
    edge, displacement = torch.randn(2, 1, 12, 20).bfloat16(), torch.randn(2, 2, 12, 20).bfloat16()
    labels = torch.randint(0, 3, (2, 12, 20))
    with torch.autocast("cpu", torch.bfloat16):
        ours = irnet.irnet_losses(irnet.Branches(edge, displacement), labels, 3, 5)
    wanted = irnet.irnet_losses(irnet.Branches(edge.float(), displacement.float()), labels, 3, 5)
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value)


def test_labels_of_another_size_are_refused():
    with pytest.raises(BadInput, match="24 x 24 cells; expected 12 x 12"):
        irnet.irnet_losses(irnet.Branches(torch.zeros(1, 1, 12, 12), None), torch.zeros(1, 24, 24, dtype=int), 2, 3)


@pytest.mark.parametrize(("pad_to", "size"), [(0, (33, 70)), (64, (33, 70)), (64, (30, 20)), (64, (90, 40))])
def test_boundaries_fit_the_picture(small, pad_to, size):
    image = picture(*size)
    edge, displacement = irnet.boundaries(small, image, pad_to)
    rows, columns = -(-size[0] // 4), -(-size[1] // 4)
    assert edge.shape == (rows, columns)
    assert displacement.shape == (2, rows, columns)
    assert 0 <= edge.min() <= edge.max() <= 1
    # by hand
    canvas = torch.zeros(2, 3, max(size[0], pad_to), max(size[1], pad_to))
    canvas[0, :, : size[0], : size[1]] = image
    canvas[1, :, : size[0], : size[1]] = image.flip(2)
    with torch.no_grad():
        logits, field = small(canvas)
    logits = logits[:, 0, :rows, :columns]
    torch.testing.assert_close(edge, ((logits[0] + logits[1].flip(1)) / 2).sigmoid())
    torch.testing.assert_close(displacement, field[0, :, :rows, :columns])


def test_boundaries_of_the_mirror_image_are_mirrored(small):
    image = picture(40, 64)
    here, there = (irnet.boundaries(small, view, 0).edge for view in (image, image.flip(2)))
    torch.testing.assert_close(there.flip(1), here)


def published(network, camera_ready=False):
    """A state dict in which each tensor has all the names that the published files give it."""
    state = {}
    for name, value in random_state(network).items():
        names = [name]
        if name.startswith("resnet50."):
            tail = name.removeprefix("resnet50.")
            names = [f"model.{tail}" if camera_ready else name, f"backbone.0.{tail}", f"stage1.{tail}"]
        elif name.startswith("fc_edge"):
            names.append(f"edge_layers.{name[7]}{name[8:]}")
        elif name.startswith("fc_dp"):
            names.append(f"dp_layers.{name[5]}{name[6:]}")
        elif name == "mean_shift.running_mean":
            names += ["fc_dp7.4.running_mean", "dp_layers.6.4.running_mean"]
        state.update(dict.fromkeys(names, value))
    state.update({f"path_indices{'_' * camera_ready}{i}": torch.zeros(5, dtype=torch.int64) for i in range(20)})
    return state if camera_ready else {**state, "disp_target": torch.zeros(1, 2, 152, 1)}


@pytest.mark.parametrize("camera_ready", [False, True])
def test_published_weights(camera_ready):
    network = irnet.IRNet(displacement=not camera_ready)
    state = published(network, camera_ready)
    report = load_into(network, network.named(state), "res50_irn.pth", ignore=irnet.IRNET_ALIASES)
    assert not report.missing
    for name, value in random_state(network).items():
        assert torch.equal(network.state_dict()[name], value), name
    other = irnet.IRNet(displacement=camera_ready)
    with pytest.raises(BadInput, match="fc_dp"):
        load_into(other, other.named(state), "res50_irn.pth", ignore=irnet.IRNET_ALIASES)
