"""TorchScript archives give the tensors that torch.jit.save wrote, and nothing in them is ever run."""

import contextlib
import functools
import os
import pickle
import resource
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.parity import inputs
from wsss.errors import BadInput
from wsss.foreign.torchscript import is_torchscript, read_torchscript

# torch.jit is deprecated, and what OpenAI's weights were published with
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")

# names and shapes as in OpenAI's archives, at a small size
SHAPES = {
    "visual.class_embedding": (8,),
    "visual.conv1.weight": (8, 3, 2, 2),
    "visual.transformer.resblocks.0.attn.in_proj_weight": (24, 8),
    "visual.transformer.resblocks.0.attn.out_proj.bias": (8,),
    "visual.transformer.resblocks.1.mlp.c_fc.weight": (32, 8),
    "transformer.resblocks.0.ln_1.weight": (8,),
    "logit_scale": (),
}


class Tree(nn.Module):
    """Modules in modules with the parameters of the given names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def tree(tensors: dict[str, torch.Tensor]) -> nn.Module:
    root = Tree()
    for name, value in tensors.items():
        *folders, last = name.split(".")
        module = root
        for folder in folders:
            if not hasattr(module, folder):
                module.add_module(folder, Tree())
            module = getattr(module, folder)
        if value.is_floating_point():
            module.register_parameter(last, nn.Parameter(value))
        else:
            module.register_buffer(last, value)
    return root.eval()


def drawn() -> dict[str, torch.Tensor]:
    tensors = {name: torch.from_numpy(inputs.tensor(name, shape)) for name, shape in SHAPES.items()}
    half = {name: value.half() if value.ndim > 1 else value for name, value in tensors.items()}
    return half | {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")}


def saved(path: Path, module: nn.Module, how: str = "script") -> dict[str, torch.Tensor]:
    compiled = torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.ones(2))
    torch.jit.save(compiled, path)
    return compiled.state_dict()


def same(read: dict[str, torch.Tensor], written: dict[str, torch.Tensor]) -> None:
    assert read.keys() == written.keys()
    for name, value in written.items():
        assert (read[name].dtype, read[name].shape) == (value.dtype, value.shape), name
        assert torch.equal(read[name], value), name


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("torchscript") / "a.pt"


@pytest.mark.parametrize("how", ["script", "trace"])
def test_what_was_written_is_read(scratch, how):
    written = saved(scratch, tree(drawn()), how)
    assert is_torchscript(scratch)
    assert len(written) == len(SHAPES) + 3
    same(read_torchscript(scratch), written)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "int32", "int16", "int8", "uint8", "bool"])
def test_kinds_of_numbers(scratch, dtype):
    written = saved(scratch, tree({"a": torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))}))
    same(read_torchscript(scratch), written)


def test_views_of_storages(scratch):
    base = torch.arange(60.0)
    module = tree(
        {
            "whole": base,
            "transposed": base.reshape(5, 12).T,
            "deep.part": base[7:31].reshape(2, 3, 4).permute(2, 0, 1),
            "steps": base[1::3],
            "empty": torch.zeros(0, 3),
            "none": base[60:],
            "alone": torch.tensor(2.0),
        }
    )
    shared = nn.Linear(2, 3)
    module.first, module.second = shared, shared
    module.attributes, module.sizes, module.rate = {"a": 1}, [1, 2, 300, -70000], 0.5
    written = saved(scratch, module)
    read = read_torchscript(scratch)
    same(read, written)
    assert read["transposed"].stride() == (1, 12)
    assert "second.weight" in read


def test_other_files_are_no_archives(scratch):
    torch.save(drawn(), scratch)
    assert not is_torchscript(scratch)
    with zipfile.ZipFile(scratch, "w"):
        pass
    assert not is_torchscript(scratch)
    with pytest.raises(BadInput, match=r"a\.pt: found "):
        read_torchscript(scratch)
    scratch.write_bytes(b"nothing")
    assert not is_torchscript(scratch)
    assert not is_torchscript(scratch.parent / "none.pt")
    with pytest.raises(BadInput, match=r"none\.pt: found "):
        read_torchscript(scratch.parent / "none.pt")


# Hostile archives are put together by hand: a pickle, and storages by their names


def archive(
    path: Path, program: bytes, storages: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", program)
        file.writestr("a/code/__torch__.py", "")
        for name, content in (storages or {}).items():
            file.writestr(f"a/data/{name}", content)
    return path


class Asks:
    """Pickled, it is a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Asks(os.system, "touch HIT"), r"(posix|nt)\.system"),
        ({"a": Asks(eval, "open('HIT', 'w')")}, r"__builtin__\.eval"),
        ([Asks(exec, "open('HIT', 'w')")], r"__builtin__\.exec"),
        (Asks(getattr, "x", "upper"), r"__builtin__\.getattr"),
        (Asks(torch.load, "HIT"), r"torch\.serialization\.load"),
        (Asks(torch.jit.load, "HIT"), r"torch\.jit\._serialization\.load"),
        (Asks(torch.storage._load_from_bytes, b"x"), r"torch\.storage\._load_from_bytes"),
        (Asks(torch._utils._rebuild_parameter, 1, True, {}), r"torch\._utils\._rebuild_parameter"),
        (Asks(list, range(3)), r"__builtin__\.(list|xrange)"),
        (Asks(Path, "a"), r"pathlib.*Path"),
        (Asks(os.mkdir, "HIT"), r"(posix|nt)\.mkdir"),
    ],
)
def test_nothing_is_run(scratch, tmp_path, monkeypatch, content, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=rf"a\.pt: found an archive that would run code \(it asks for {name}\)"):
        read_torchscript(archive(scratch, pickle.dumps(content, 2)))
    assert list(tmp_path.iterdir()) == []


def test_instructions_that_no_archive_has(scratch):
    for protocol, content, name in ((4, {"a": 1}, "FRAME"), (2, {1, 2}, "__builtin__.set"), (0, [1], "LIST")):
        with pytest.raises(BadInput, match=f"it asks for (the pickle instruction )?{name}"):
            read_torchscript(archive(scratch, pickle.dumps(content, protocol)))
    for program in (
        b"\x80\x02(i__torch__\nA\n.",
        b"\x80\x02c__torch__\nA\n2.",
        b"\x80\x05\x96" + struct.pack("<Q", 1) + b"a.",
    ):
        with pytest.raises(BadInput, match=r"it asks for the pickle instruction (INST|DUP|BYTEARRAY8)"):
            read_torchscript(archive(scratch, program))


# pieces of programs: a module of one tensor "w", as torch.jit.save writes it
OPEN, CLOSE = b"\x80\x02c__torch__\nA\n)\x81}(", b"ub."
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
WORD = b"X\x01\x00\x00\x00w"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    length = (value.bit_length() + 8) // 8
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...], count: int = 4, kind: str = "Float", name: str = "0"
) -> bytes:
    storage = (
        b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(name) + text("cpu") + number(count) + b"tQ"
    )
    return (
        REBUILD
        + b"("
        + storage
        + number(offset)
        + numbers(size)
        + numbers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def module(value: bytes) -> bytes:
    return OPEN + WORD + value + CLOSE


STORAGE = {"0": torch.arange(4.0).numpy().tobytes(), "1": b""}


def refused(path: Path) -> None:
    with pytest.raises(BadInput, match=r"a\.pt: found "):
        read_torchscript(path)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (4, (1,), (1,)),
        (0, (2, 2), (1, 3)),
        (0, (2,), (-1,)),
        (3, (2,), (-1,)),
        (-1, (1,), (1,)),
        (0, (-1,), (1,)),
        (0, (-2, -2), (1, 1)),
        (0, (10**12,), (0,)),
        (0, (2**32, 2**32), (0, 0)),
        (0, (2**63,), (1,)),
        (0, (2,), (2**70,)),
        (0, (2,), (1, 1)),
        (0, (2, 2), (1,)),
        (0, (1,) * 100, (1,) * 100),
    ],
)
def test_tensors_stay_inside_their_numbers(scratch, offset, size, stride):
    whole = read_torchscript(archive(scratch, module(tensor(0, (2, 2), (1, 2))), STORAGE))
    assert whole["w"].tolist() == [[0, 2], [1, 3]]
    refused(archive(scratch, module(tensor(offset, size, stride)), STORAGE))


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 3},
        {"count": 5},
        {"count": 10**15},
        {"count": -4},
        {"kind": "Double"},
        {"kind": "Half"},
        {"name": "2"},
        {"name": "../data.pkl"},
        {"name": "1"},
        {"name": ""},
    ],
)
def test_storages_hold_what_they_say(scratch, changes):
    refused(archive(scratch, module(tensor(0, (1,), (1,), **changes)), STORAGE))


@pytest.mark.parametrize(
    "value",
    [
        text("a") + b"Q",
        b"NQ",
        b")Q",
        numbers((1, 2, 3, 4, 5)) + b"Q",
        b"(" + text("storage") + text("x") + text("0") + text("cpu") + number(4) + b"tQ",
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + text("4") + b"tQ",
        REBUILD + b")R",
        REBUILD + b"]R",
        REBUILD + b"NR",
        REBUILD + b"(NK\x00))tR",
        b"c__torch__\nA\n)R",
        b"ctorch\nFloatStorage\n)R",
        b"ctorch\nFloatStorage\n)\x81",
        REBUILD + b")\x81",
        REBUILD + b"}(" + text("__defaults__") + b")ub",
        REBUILD + b"N}(" + text("__defaults__") + b")u\x86b",
        tensor(0, (2,), (1,)) + b"Nb",
        tensor(0, (2,), (1,)) + b"(" + tensor(0, (2,), (1,)) + number(10**9) + numbers((2,)) + numbers((1,)) + b"tb",
        b"]" + text("a") + text("b") + b"s",
        b"}K\x01a",
        b"}(K\x01u",
        b"}(K\x01N)Nu",
        b"c__torch__\nA\n)\x81Nb",
        b"c__torch__\nA\n)\x81]b",
        b"c__torch__\nA\n)\x81}(K\x01c__torch__\nA\n)\x81ub",
        b"c__torch__\nA\n)\x81",
        b"h\x05",
        b"tttt",
        b"\x85\x87\x87\x87\x87\x87\x87",
        b"RRRR",
        b"bbbb",
        b"c__torch__\nA\n\x81\x81",
        b"ccollections\nOrderedDict\n(]tR",
        b"c\xff\nA\n",
        b"X\xff\xff\xff\x7fa",
        b"\x8b\xff\xff\xff\x7f",
    ],
)
def test_programs_that_make_no_sense(scratch, value):
    refused(archive(scratch, module(value), STORAGE))
    # and none of them leaves a trace for the next archive
    assert read_torchscript(archive(scratch, module(tensor(0, (4,), (1,))), STORAGE))["w"].tolist() == [0, 1, 2, 3]


def test_lists_and_tags_are_no_tensors(scratch):
    lists = (b"build_intlist", b"build_doublelist", b"build_boollist", b"build_tensorlist")
    rows = b"".join(
        text(f"x{i}") + b"ctorch.jit._pickle\n" + name + b"\n(](K\x01K\x02etR" for i, name in enumerate(lists)
    )
    tag = text("y") + b"ctorch.jit._pickle\nrestore_type_tag\n}" + text("Dict[str, int]") + b"\x86R"
    program = OPEN + rows + tag + WORD + tensor(0, (4,), (1,)) + CLOSE
    assert list(read_torchscript(archive(scratch, program, STORAGE))) == ["w"]


@pytest.fixture
def little_memory():
    """Whatever asks for more than half a gigabyte beyond what there is fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_memory_bombs(scratch, little_memory):
    # a place in the memo far away: a memo that is an array would need more than there is
    far = module(tensor(0, (4,), (1,)) + b"r" + struct.pack("<I", 2**26))
    assert read_torchscript(archive(scratch, far, STORAGE))["w"].tolist() == [0, 1, 2, 3]
    # lists of a long text, over and over
    long = text("a" * 10**5) + b"q\x00"
    again = b"ctorch.jit._pickle\nbuild_intlist\nq\x01" + b"h\x01h\x00\x85R" * 20000
    program = b"\x80\x02](" + long + again + b"e."
    refused(archive(scratch, program))
    # one big storage, over and over
    big = {"0": bytes(2**24)}
    first = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(2**22) + b"tq\x00Q"
    refused(archive(scratch, b"\x80\x02](" + first + b"h\x00Q" * 1000 + b"e.", big))


def test_time_bombs(scratch):
    # a tuple of twice a tuple of twice a tuple ... as a key, whose hash takes twice as many steps for each of them
    nested = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(12))
    refused(archive(scratch, b"\x80\x02}" + nested + b"Ns."))
    # modules of twice a module of twice a module ...
    inner = b"c__torch__\nA\n)\x81}b"
    for i in range(20):
        put, get = b"q" + bytes([i]), b"h" + bytes([i])
        inner = inner + put + b"c__torch__\nA\n)\x81}(" + text("a") + get + text("b") + get + b"ub"
    refused(archive(scratch, b"\x80\x02" + inner + b"."))
    # one that contains itself, and many in each other
    refused(archive(scratch, b"\x80\x02c__torch__\nA\n)\x81q\x00}(" + text("a") + b"h\x00ub."))
    refused(archive(scratch, b"\x80\x02" + (b"c__torch__\nA\n)\x81}" + text("a")) * 3000 + b"N" + b"sb" * 3000 + b"."))


def test_compressed_and_overlapping_entries(scratch):
    content = module(tensor(0, (4,), (1,), count=2**20))
    zeros = {"0": bytes(2**22)}
    assert read_torchscript(archive(scratch, content, zeros))["w"].tolist() == [0, 0, 0, 0]
    refused(archive(scratch, content, zeros, zipfile.ZIP_DEFLATED))
    refused(archive(scratch, b"\x80\x02" + b"N" * 10**6 + b".", None, zipfile.ZIP_DEFLATED))
    # many names for the same bytes: the directory has the storage's record again and again
    archive(scratch, content, zeros)
    with zipfile.ZipFile(scratch) as file:
        start = file.start_dir
    blob = scratch.read_bytes()
    directory, end = blob[start:].split(b"PK\x05\x06")
    record = directory[directory.index(b"a/data/0") - 46 :]
    directory += b"".join(record[:-1] + b"%d" % i for i in range(1, 10))
    end = struct.pack("<4xHHI", 12, 12, len(directory)) + end[12:]
    scratch.write_bytes(blob[:start] + directory + b"PK\x05\x06" + end)
    with zipfile.ZipFile(scratch) as file:
        assert sum(entry.file_size for entry in file.infolist()) > 10 * 2**22
    refused(scratch)


def check_read_or_refused(path: Path, written: dict[str, torch.Tensor] | None = None) -> None:
    is_torchscript(path)
    with contextlib.suppress(BadInput):
        read = read_torchscript(path)
        if written is not None:
            same(read, written)


@functools.cache
def whole() -> tuple[bytes, dict[str, torch.Tensor]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        written = saved(path, tree(drawn()))
        return path.read_bytes(), written


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_right(scratch, data):
    blob, written = whole()
    changed = bytearray(blob)
    for _ in range(data.draw(st.integers(0, 5))):
        changed[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.just(len(blob)) | st.integers(0, len(blob)))
    scratch.write_bytes(bytes(changed[:cut]))
    check_read_or_refused(scratch, written)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_programs_are_read_or_refused(scratch, data):
    # behind zip's checksums
    program = bytearray(module(tensor(0, (2, 2), (1, 2)) + WORD + tensor(1, (3,), (1,))))
    for _ in range(data.draw(st.integers(1, 5))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    check_read_or_refused(archive(scratch, bytes(program), STORAGE))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([bytes([code]) for code in b"(.NK}])tuaesbRQqhrjJMGX\x81\x85\x86\x87\x88\x8a\x00\x01"])
        | st.sampled_from([REBUILD, WORD, b"c__torch__\nA\n", tensor(0, (2, 2), (1, 2))])
        | st.binary(max_size=4)
    )
)
def test_any_program_is_read_or_refused(scratch, program):
    check_read_or_refused(archive(scratch, b"\x80\x02" + b"".join(program) + b".", STORAGE))
