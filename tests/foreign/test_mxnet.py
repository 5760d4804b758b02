"""MXNet's .params files are read to the last byte as they were written, or refused with one error."""

import contextlib
import itertools
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.checkpoints import read_checkpoint
from wsss.errors import BadInput
from wsss.foreign.mxnet import read_params, resnet38_params
from wsss.loading import load_backbone
from wsss.networks.resnet import ResNet
from wsss.networks.resnet38 import ResNet38

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
LAYOUTS = ("v0", "v1", "v2")
SMALL = {
    "arg:a_weight": np.arange(6, dtype="<f4").reshape(2, 3),
    "aux:b": np.array([0.1, -0.7], "<f8"),
    "ü": np.full((1, 2, 1), -0x1122334455667788, "<i8"),
}


def packed(array: np.ndarray, layout: str, device: tuple[int, int] = (1, 0)) -> bytes:
    """One array in one of MXNet's layouts."""
    shape = array.shape
    head = {
        "v0": struct.pack(f"<I{len(shape)}I", len(shape), *shape),
        "v1": struct.pack(f"<II{len(shape)}q", 0xF993FAC8, len(shape), *shape),
        "v2": struct.pack(f"<IiI{len(shape)}q", 0xF993FAC9, 0, len(shape), *shape),
    }[layout]
    if not shape:  # MXNet writes no more of an array that is none
        return head
    kind = [np.dtype(name) for name in TYPES].index(array.dtype)
    return head + struct.pack("<3i", *device, kind) + array.tobytes()


def listed(arrays: list[bytes], names: list[bytes], count: int | None = None, n_names: int | None = None) -> bytes:
    """A whole file of packed arrays; the counts may be other than true."""
    count, n_names = len(arrays) if count is None else count, len(names) if n_names is None else n_names
    parts = [struct.pack("<3Q", 0x112, 0, count), *arrays, struct.pack("<Q", n_names)]
    return b"".join(parts + [struct.pack("<Q", len(name)) + name for name in names])


def whole(arrays: dict[str, np.ndarray], layout: str) -> bytes:
    return listed([packed(array, layout) for array in arrays.values()], [name.encode() for name in arrays])


def same(read: dict[str, torch.Tensor], written: dict[str, np.ndarray]) -> None:
    assert list(read) == list(written)
    for name, array in written.items():
        assert read[name].numpy().dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].numpy().tobytes() == array.tobytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("mxnet") / "a.params"


@pytest.fixture
def little_memory():
    """Whatever asks for more than half a gigabyte beyond what there is fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(path: Path, content: bytes, found: str = "") -> None:
    path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"a\.params: found {found}") as caught:
        read_params(path)
    assert len(str(caught.value)) < 500


@st.composite
def drawn_arrays(draw):
    """Arrays of all types and shapes, any bytes in them, by any name."""
    arrays = {}
    for name in draw(st.lists(st.text(max_size=20).filter(encodable), min_size=1, max_size=5, unique=True)):
        dtype = np.dtype(draw(st.sampled_from(TYPES)))
        shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
        size = int(np.prod(shape)) * dtype.itemsize
        arrays[name] = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)
    return arrays


def encodable(text: str) -> bool:
    with contextlib.suppress(UnicodeEncodeError):
        return bool(text.encode()) or not text
    return False


@settings(max_examples=200, deadline=None)
@given(drawn_arrays(), st.data())
def test_what_was_written_is_read(scratch, arrays, data):
    parts = []
    for array in arrays.values():
        device = data.draw(st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 2))
        parts.append(packed(array, data.draw(st.sampled_from(LAYOUTS)), device))
    scratch.write_bytes(listed(parts, [name.encode() for name in arrays]))
    same(read_params(scratch), arrays)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_array_that_is_none(scratch, layout):
    scratch.write_bytes(whole({"none": np.array(0.0), **SMALL}, layout))
    read = read_params(scratch)
    assert read.pop("none").shape == (0,)
    same(read, SMALL)


def test_arrays_do_not_share_memory(scratch):
    scratch.write_bytes(whole(SMALL, "v2"))
    read = read_params(scratch)
    for value in read.values():
        assert value.data_ptr() % value.itemsize == 0
        value.zero_()
    assert all(not value.any() for value in read.values())
    same(read_params(scratch), SMALL)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cut_off_anywhere(scratch, layout):
    content = whole(SMALL, layout)
    for length in range(len(content)):
        refused(scratch, content[:length])
    refused(scratch, content + b"\0", "1 bytes after the last name")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_flipped_bit(scratch, layout):
    content = whole(SMALL, layout)
    accepted = 0
    for position, bit in itertools.product(range(len(content)), (0, 3, 7)):
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        scratch.write_bytes(changed)
        with contextlib.suppress(BadInput):
            read = read_params(scratch)
            accepted += 1
            again = whole({name: value.numpy() for name, value in read.items()}, layout)
            # all of it, but for the flip itself where a number says nothing: the reserved one, and the devices
            differing = [i for i, (ours, theirs) in enumerate(zip(again, changed, strict=True)) if ours != theirs]
            assert not differing or (differing == [position] and again[position] == content[position])
    # numbers, letters of names, types of the same size, devices; not lengths
    assert 0.4 < accepted / (3 * len(content)) < 0.9


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused(scratch, data):
    changed = bytearray(whole(SMALL, data.draw(st.sampled_from(LAYOUTS))))
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    scratch.write_bytes(changed)
    with contextlib.suppress(BadInput):
        assert len(read_params(scratch)) == 3


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 4))
def test_any_bytes_are_read_or_refused(scratch, content, count):
    for head in (b"", struct.pack("<3Q", 0x112, 0, count)):
        scratch.write_bytes(head + content)
        with contextlib.suppress(BadInput):
            assert len(read_params(scratch)) == count


def header(layout: str, shape: tuple[int, ...], kind: int = 0, dimensions: int | None = None) -> bytes:
    """The head of an array whose numbers follow."""
    n = len(shape) if dimensions is None else dimensions
    if layout == "v0":
        return struct.pack(f"<I{len(shape)}I3i", n, *shape, 1, 0, kind)
    mark = struct.pack("<I", 0xF993FAC8) if layout == "v1" else struct.pack("<Ii", 0xF993FAC9, 0)
    return mark + struct.pack(f"<I{len(shape)}q3i", n, *shape, 1, 0, kind)


@pytest.mark.parametrize("layout", ["v1", "v2"])
@pytest.mark.parametrize(
    "shape", [(2**62,), (2**63 - 1,) * 32, (2**32, 2**32), (2**31,), (10**10, 10**10, 10**10), (29,), (5, 6)]
)
def test_sizes_beyond_the_file(scratch, little_memory, layout, shape):
    refused(
        scratch, listed([header(layout, shape) + bytes(96)], [b"a"]), "array 0 of the shape .* with more bytes than"
    )


@pytest.mark.parametrize("shape", [(2**32 - 1,), (2**32 - 1,) * 32, (2**16, 2**16), (2**31,), (40,)])
def test_sizes_beyond_the_file_in_the_oldest_layout(scratch, little_memory, shape):
    refused(scratch, listed([header("v0", shape) + bytes(96)], [b"a"]), "array 0 of the shape .* with more bytes than")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dimensions", [33, 1000, 2**31, 2**32 - 1])
def test_too_many_dimensions(scratch, little_memory, layout, dimensions):
    found = f"array 0 of {dimensions} dimensions"
    refused(scratch, listed([header(layout, (1,), dimensions=dimensions) + bytes(4)], [b"a"]), found)


@pytest.mark.parametrize("layout", ["v1", "v2"])
@pytest.mark.parametrize("size", [0, -1, -(2**63)])
def test_sizes_below_one(scratch, layout, size):
    refused(scratch, listed([header(layout, (2, size))], [b"a"]), f"array 0 of the shape 2x{size};")


@pytest.mark.parametrize("count", [2**64 - 1, 2**40, 10**6])
def test_huge_counts(scratch, little_memory, count):
    one = packed(np.ones(2, "<f4"), "v2")
    refused(scratch, listed([one], [b"a"], count=count), f"{count} arrays")
    refused(scratch, listed([one], [b"a"], n_names=count), f"{count} names for 1 arrays")
    head, name = listed([one], []), struct.pack("<Q", count) + b"a"
    refused(scratch, head[:-8] + struct.pack("<Q", 1) + name, f"name 0 of {count} bytes")
    # and where the file is as long as it says
    refused(scratch, listed([b""], [], count=count) + bytes(12 * 10**6), f"{count} arrays")


def test_names_that_are_too_few_or_alike_or_no_text(scratch):
    one = packed(np.ones(2, "<f4"), "v2")
    refused(scratch, listed([one], []), "0 names for 1 arrays")
    refused(scratch, listed([one, one], [b"a"]), "1 names for 2 arrays")
    refused(scratch, listed([one], [b"a", b"b"]), "2 names for 1 arrays")
    refused(scratch, listed([one, one], [b"arg:a", b"arg:a"]), "two arrays named 'arg:a'")
    refused(scratch, listed([one], [b"\xff\xfe"]), "bytes that are not UTF-8")
    refused(scratch, listed([], []), "no arrays")


@pytest.mark.parametrize("storage", [1, 2, -1])
def test_sparse_arrays(scratch, storage):
    array = struct.pack("<IiIq3i", 0xF993FAC9, storage, 1, 1, 1, 0, 0) + bytes(4)
    refused(scratch, listed([array], [b"a"]), f"array 0 with storage type {storage}, which is not dense")


@pytest.mark.parametrize("kind", [-1, 7, 12, 2**31 - 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_element_types(scratch, layout, kind):
    refused(scratch, listed([header(layout, (1,), kind) + bytes(8)], [b"a"]), f"array 0 of element type {kind}")


def test_arrays_of_mxnets_numpy(scratch):
    array = struct.pack("<IiIq3i", 0xF993FACA, 0, 1, 1, 1, 0, 0) + bytes(4)
    refused(scratch, listed([array], [b"a"]), r"array 0 in the layout of MXNet's NumPy arrays \(V3\)")


def test_other_kinds_of_files(tmp_path):
    folder, absent, empty, page = (tmp_path / f"{name}.params" for name in ("folder", "absent", "empty", "page"))
    folder.mkdir()
    empty.touch()
    page.write_text("<!DOCTYPE html>" * 40)
    for read in (read_params, resnet38_params, read_checkpoint):
        for path in (folder, absent):
            with pytest.raises(
                BadInput, match=rf"{path.name}: found (a folder|no such file|a file that cannot be read)"
            ):
                read(path)
        for path in (empty, page):
            with pytest.raises(BadInput, match=rf"{path.name}: found "):
                read(path)
    with pytest.raises(BadInput, match=r"begins with b'<!DOCTYP'"):
        read_params(page)


def as_published(network: ResNet38) -> dict[str, np.ndarray]:
    """A trunk's weights under ademxapp's names, with a classifier."""
    kinds = {"running_mean": "moving_mean", "running_var": "moving_var", "bias": "beta"}
    arrays = {"arg:linear1000_weight": np.zeros((2, 2), "<f4"), "arg:linear1000_bias": np.zeros(2, "<f4")}
    for key, value in network.state_dict().items():
        *place, kind = key.split(".")
        if kind == "num_batches_tracked":
            continue
        prefix = "aux" if kind.startswith("running") else "arg"
        if len(place) == 1:
            name = place[0]
        else:
            stage, _, block = place[0][1:].partition("_")
            layer, branch = place[1].split("_")
            name = f"{'res' if layer == 'conv' else 'bn'}{stage}{f'b{block}' if block else 'a'}_{branch}"
        kind = "gamma" if kind == "weight" and value.ndim == 1 else kinds.get(kind, kind)
        arrays[f"{prefix}:{name}_{kind}"] = value.numpy()
    return arrays


def trunk(seed: int) -> ResNet38:
    torch.manual_seed(seed)
    network = ResNet38(32)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize("layout", LAYOUTS)
def test_imagenet_weights_of_resnet38(tmp_path, layout):
    source, target, path = trunk(1), trunk(2), tmp_path / "rna.params"
    path.write_bytes(whole(as_published(source), layout))
    report = load_backbone(target, "resnet38-narrow32", str(path))
    assert len(report.loaded) == 191
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_files_that_do_not_hold_resnet38(tmp_path):
    path, arrays = tmp_path / "rna.params", as_published(trunk(1))

    def error(content: dict[str, np.ndarray], body: torch.nn.Module | None = None) -> str:
        path.write_bytes(whole(content, "v2"))
        with pytest.raises(BadInput) as caught:
            load_backbone(body or trunk(2), "resnet38-narrow32", str(path))
        return str(caught.value)

    lacking = {name: value for name, value in arrays.items() if name != "aux:bn4b3_branch2b1_moving_var"}
    assert "1 missing (b4_3.bn_branch2b1.running_var)" in error(lacking)
    assert "1 of another shape (bn7.weight: (3,) for (128,))" in error(arrays | {"arg:bn7_gamma": np.ones(3, "<f4")})
    assert "1 unknown to the network (b9.conv_branch1.weight)" in error(
        arrays | {"arg:res9a_branch1_weight": np.ones(3, "<f4")}
    )
    assert "found an array 'arg:stage1_unit1_bn1_gamma' of torch.float32; expected the float arrays of ResNet-38" in (
        error(arrays | {"arg:stage1_unit1_bn1_gamma": np.ones(3, "<f4")})
    )
    assert "found an array 'arg:bn7_gamma' of torch.int32" in error(arrays | {"arg:bn7_gamma": np.ones(128, "<i4")})
    again = arrays | {"aux:bn7_gamma": arrays["arg:bn7_gamma"]}
    assert "'aux:bn7_gamma' of torch.float32 again, under another name" in error(again)
    assert "weights of another network" in error(arrays, ResNet(18))
