"""Each reader of files on random bytes and on random edits of valid files: a result that makes sense, or BadInput."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests.data.conftest import annotation
from tests.fuzz.hostile import as_json, changed, edited, files, fuzz, json_files
from wsss.checkpoints import read_checkpoint
from wsss.data.coco import InstanceMask
from wsss.data.coco_index import read_instances
from wsss.data.coco_shapes import draw_mask
from wsss.data.files import read_cams, read_mask, read_posteriors, write_cams, write_mask, write_posteriors
from wsss.data.grids import Grids
from wsss.data.lists import read_classes, read_names
from wsss.data.pictures import picture_size_hw, read_picture
from wsss.data.tables import labels_by_name, read_table
from wsss.data.voc import VOC_CLASSES, read_annotation, read_sbd_mask
from wsss.data.words import read_words
from wsss.foreign.mxnet import read_params
from wsss.foreign.npy import read_legacy_cams, read_legacy_labels
from wsss.foreign.torchscript import read_torchscript
from wsss.methods.questions import (
    read_answers,
    read_published_answers,
    read_published_background,
    read_published_features,
)
from wsss.ops.regions import Regions
from wsss.pretrained import load_clip
from wsss.regions.files import read_regions, write_regions
from wsss.weights import trained_weights, write_weights

pytestmark = pytest.mark.fuzz
CLASSES = ("cat", "dog")
Read = Callable[[Path], object]


def run(contents: st.SearchStrategy[bytes], path: Path, read: Read) -> None:
    print(f"{fuzz(contents, path, read)} inputs")


def test_masks(tmp_path):
    write_mask(tmp_path / "a.png", np.arange(63, dtype=np.uint8).reshape(7, 9))
    run(files((tmp_path / "a.png").read_bytes()), tmp_path / "a.png", read_mask)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"])
def test_pictures(tmp_path, kind):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (7, 9, 3)).astype(np.uint8)).save(stream, kind)

    def read(path):
        size = picture_size_hw(path, upright=True)
        image = read_picture(path, upright=True)
        assert image.dtype == np.uint8
        assert image.shape == (*size, 3)

    run(files(stream.getvalue()), tmp_path / "a.img", read)


ARRAYS = hnp.arrays(
    st.sampled_from((np.float16, np.float32, np.float64, np.int16, np.int64, np.uint8, bool, complex, "<U2")),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@st.composite
def archives(draw, *keys):
    """An `.npz` file of random arrays, now and then with a header that lies, or with other entries."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))) as archive:
        for key in keys:
            array = io.BytesIO()
            if draw(st.booleans()):
                np.save(array, draw(ARRAYS), allow_pickle=False)
            else:
                sides = st.sampled_from((0, 1, 2, 4, -1, True, 2**31, 2**62, 10**30, 0.5, "4", None))
                shape = tuple(draw(st.lists(sides, max_size=4)))
                described = draw(st.sampled_from(("<f2", "<f4", "|O", "<i8", "V4", "x", [("a", "<f4")])))
                header = repr({"descr": described, "fortran_order": draw(st.booleans()), "shape": shape}).encode()
                array.write(
                    b"\x93NUMPY\x01\x00"
                    + struct.pack("<H", len(header) + 1)
                    + header
                    + b"\n"
                    + draw(st.binary(max_size=64))
                )
            archive.writestr(draw(st.sampled_from((f"{key}.npy", f"{key}.npy", f"{key}.npy", key))), array.getvalue())
    return stream.getvalue()


def check_scores(scores, classes=None):
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("grids", [None, Grids([np.random.default_rng(1).random((2, 5, 6))], (80, 96))])
def test_maps(tmp_path, grids):
    path = tmp_path / "a.npz"
    maps = np.random.default_rng(0).random((2, 5, 6)) if grids is None else np.full((2, 65, 90), 0.5)
    write_cams(path, np.array([0, 3]), maps, grids=grids)

    def read(path):
        classes, maps = read_cams(path)
        check_scores(maps)
        assert len(classes) == len(maps)
        assert sorted(set(classes.tolist())) == classes.tolist()

    run(
        st.one_of(
            files(path.read_bytes()),
            archives("classes", "maps", "grids", "grids_packed", "maps_factors", "maps_packed", "maps_shape"),
        ),
        path,
        read,
    )


def test_posteriors(tmp_path):
    path = tmp_path / "a.npz"
    write_posteriors(path, np.array([3]), np.full((2, 5, 6), 0.5), np.full((2, 5, 6), 0.5))

    def read(path):
        for scores in read_posteriors(path):
            check_scores(scores)

    run(st.one_of(files(path.read_bytes()), archives("classes", "low", "high")), path, read)


def test_regions(tmp_path):
    path = tmp_path / "a.npz"
    masks = np.random.default_rng(0).random((3, 5, 6)) < 0.5
    write_regions(path, Regions.of_masks(masks))

    def read(path):
        regions = read_regions(path, (5, 6))
        assert regions.masks().shape == (len(regions), 5, 6)
        check_scores(regions.scores)

    names = ("size", "lengths", "atoms", "counts", "members", "areas", "scores", "levels")
    run(st.one_of(files(path.read_bytes()), archives(*names)), path, read)


def test_tables(tmp_path):
    text = b'image,tags,split\r\n"a, b.jpg",cat;dog,train\nc.jpg,,val\n'
    wide = b"image,cat,dog\na.jpg,1,0\n"

    def read(path):
        for row in read_table(path):
            assert row.image.strip()
            json.dumps(row.tags).encode()
        labels_by_name(path, CLASSES)

    run(files(text, wide, text.replace(b",", b"\t")), tmp_path / "a.csv", read)


def test_lines_of_json(tmp_path):
    row = {"image": "a.jpg", "tags": ["cat", "dog"], "split": "train", "mask": "a.png"}
    lines = st.lists(json_files(row), min_size=1, max_size=3).map(b"\n".join)
    run(st.one_of(files(as_json(row)), lines), tmp_path / "a.jsonl", read_table)


def test_lists(tmp_path):
    known = {"a": Path("a"), "2007_000032": Path("b"), "d/c": Path("c")}

    def read(path):
        read_names(path, known)
        read_classes(path)
        labels_by_name(path, CLASSES)

    run(
        files(b"a 0 1\n2007000032\n/JPEGImages/d/c.jpg /x/c.png\n", "\ufeffcat\r\nhot dog\n".encode()),
        tmp_path / "a.txt",
        read,
    )


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 9}, {"id": 2, "file_name": "b/c.jpg", "height": 8, "width": 9}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [[1, 1, 5, 1, 5, 5]], "bbox": [1, 1, 4, 4], "area": 8},
        {"id": 2, "image_id": 2, "category_id": 3, "iscrowd": 1, "segmentation": {"counts": [10, 20, 42], "size": [8, 9]}},
        {"id": 3, "image_id": 2, "category_id": 3, "iscrowd": 1, "segmentation": {"counts": "01`0P1O", "size": [8, 9]}},
    ],
    "categories": [{"id": 1, "name": "cat", "supercategory": "x"}, {"id": 3, "name": "dog"}],
}  # fmt: skip


def test_coco(tmp_path):
    def read(path):
        instances = read_instances(path)
        for position in range(len(instances.ids)):
            assert instances.labels(position).shape == (len(instances.categories),)
            for rule in ("clims", "icam"):
                try:
                    mask = InstanceMask(instances, position, rule, crowds=True).read()
                except ValueError:  # BadInput, of this picture alone
                    continue
                assert mask.shape == tuple(instances.sizes_hw[position])

    run(json_files(COCO), tmp_path / "a.json", read)


def test_coco_shapes(tmp_path):
    """Outlines and run lengths of a small picture."""
    shapes = [entry["segmentation"] for entry in COCO["annotations"]]

    def read(path):
        entry = json.loads(path.read_bytes())
        for rule in ("clims", "icam"):
            assert draw_mask([(0, {"segmentation": entry})], (8, 9), rule, "a").max(initial=0) <= 1

    letters = st.text(st.characters(min_codepoint=33, max_codepoint=120), max_size=30)
    codes = letters.map(lambda text: {"counts": text, "size": [8, 9]})
    numbers = st.one_of(st.integers(-10, 20), st.floats(width=32), st.sampled_from((99999.0, -99999, 1e5, 10**400)))
    polygons = st.lists(st.lists(numbers, max_size=12), max_size=3)
    run(st.one_of(*[changed(shape) for shape in shapes], codes, polygons).map(as_json), tmp_path / "a.json", read)


def pickled(content):
    stream = io.BytesIO()
    np.save(stream, content, allow_pickle=True)
    return stream.getvalue()


def test_legacy_labels(tmp_path):
    labels = pickled({"a": np.array([0.0, 1.0], np.float32), "b.jpg": np.array([1.0, 0.0], np.float32)})
    run(files(labels, pickled(np.eye(3))), tmp_path / "a.npy", read_legacy_labels)


def test_legacy_maps(tmp_path):
    maps = {"keys": np.array([3]), "high_res": np.zeros((1, 3, 4), np.float32), "cam": torch.zeros(1, 2, 2)}
    run(files(pickled(maps), pickled({3: np.zeros((3, 4), np.float32)})), tmp_path / "a.npy", read_legacy_cams)


def test_published_answers(tmp_path):
    answers = pickled({"a": {"cat": {"vqa": [("what?", "a cat")], "answers": ["a cat"]}}})
    features = pickled({"a": {"cat": {"a cat": np.zeros((1, 2), np.float32)}}})

    def read(path):
        for reader in (
            lambda: read_published_answers(path, ["what?"]),
            lambda: read_published_background(path, ["what?"]),
            lambda: read_published_features(path),
        ):
            try:
                reader()
            except ValueError:  # BadInput of one kind of these
                continue

    run(files(answers, features), tmp_path / "a.npy", read)


def test_answers(tmp_path):
    line = {"image": "a", "class": "cat", "foreground": {"q": "a"}, "background": {"q": "b"}}
    run(json_files(line), tmp_path / "answers.jsonl", lambda path: read_answers(path, CLASSES, CLASSES))


def test_annotations(tmp_path):
    def read(path):
        for rule in ("irn", "clip-es", "clims-camera-ready"):
            assert read_annotation(path, VOC_CLASSES, rule).shape == (20,)

    run(files(annotation("a", ["cat", "dog"]).encode()), tmp_path / "a.xml", read)


def test_sbd(tmp_path):
    from scipy.io import savemat

    savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": np.eye(5, dtype=np.uint8)}}, do_compression=True)
    compressed = (tmp_path / "a.mat").read_bytes()
    savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": np.eye(5, dtype=np.uint8)}})
    run(files(compressed, (tmp_path / "a.mat").read_bytes()), tmp_path / "a.mat", read_sbd_mask)


def test_words(tmp_path):
    text = b"prompts: {cat: 'a cat', dog: hound}\nbackground: [sky, sea]\nsynonyms:\n  cat: [kitten]\n"
    run(files(text), tmp_path / "a.yaml", lambda path: read_words(str(path), CLASSES))


def test_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    write_weights(
        path, {"a": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.int64)}, {"kind": "cam", "classes": ["cat"]}
    )
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header, rest = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def put_together(header):
        text = as_json(header)
        return struct.pack("<Q", len(text)) + text + rest

    metadata = st.one_of(
        changed({"kind": "cam", "classes": ["cat"]}).map(json.dumps),
        st.sampled_from(("{", "[" * 5000, "9" * 5000, '"\\ud800"', "NaN")),
    )
    headers = st.one_of(changed(header), metadata.map(lambda text: {**header, "__metadata__": {"wsss": text}}))

    def read(path):
        state, metadata, _ = trained_weights(path, "cam")
        assert metadata is None or isinstance(metadata, dict)
        assert all(tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point())

    run(st.one_of(files(whole), headers.map(put_together)), path, read)


def saved(content):
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def test_checkpoints(tmp_path):
    state = {"module.a": torch.ones(2, 3), "module.b": torch.zeros(1)}
    numbers = st.floats(width=32)
    tensors = hnp.arrays(np.float32, (3,), elements=numbers).map(
        lambda array: saved({"a": torch.from_numpy(array.copy())})
    )
    odd = st.sampled_from(
        ({}, [], 3, {"a": 1}, {1: torch.ones(1)}, {"state_dict": {}}, {"model": {"a": [torch.ones(1)]}})
    ).map(saved)

    def read(path):
        state = read_checkpoint(path)
        assert all(tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point())

    run(st.one_of(files(saved({"state_dict": state})), tensors, odd), tmp_path / "a.pth", read)


def test_torchscript(tmp_path):
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), stream)
    entries = {}
    with zipfile.ZipFile(stream) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    program = next(name for name in entries if name.endswith("/data.pkl"))

    def with_program(content):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for name, kept in entries.items():
                archive.writestr(name, content if name == program else kept)
        return made.getvalue()

    run(
        st.one_of(files(stream.getvalue()), edited(entries[program]).map(with_program)),
        tmp_path / "a.pt",
        read_torchscript,
    )


def test_params(tmp_path):
    def array(values):
        shape = struct.pack(f"<I{values.ndim}q", values.ndim, *values.shape)
        return struct.pack("<Ii", 0xF993FAC9, 0) + shape + struct.pack("<iii", 1, 0, 0) + values.tobytes()

    name = b"arg:conv1a_weight"
    whole = (
        struct.pack("<QQQ", 0x112, 0, 1) + array(np.ones((2, 3), np.float32)) + struct.pack("<QQ", 1, len(name)) + name
    )
    assert read_params_of(tmp_path, whole) == [name.decode()]
    run(files(whole), tmp_path / "a.params", read_params)


def read_params_of(folder, whole):
    (folder / "b.params").write_bytes(whole)
    return list(read_params(folder / "b.params"))


def test_clip_folders(tmp_path):
    """`config.json` of a CLIP with changes, beside whole weights."""
    import wsss.configs

    demo = Path(wsss.configs.__file__).parent / "demo_clip"
    folder = tmp_path / "clip"
    folder.mkdir()
    for path in demo.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((demo / "config.json").read_bytes())
    run(json_files(config), folder / "config.json", lambda path: load_clip(str(path.parent)))
