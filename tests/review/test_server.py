"""What the server of a review answers, without a browser: protection, paging, pictures, steps, commands."""

import dataclasses
import gzip
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.review.conftest import CLASSES, NAMES, SIZE_HW
from wsss.commands import command
from wsss.data.files import read_mask, write_cams
from wsss.data.images import Dataset, Images
from wsss.errors import BadInput
from wsss.review.decisions import Decisions
from wsss.review.guard import HEADERS, Guard
from wsss.review.material import Material
from wsss.review.measures import Doubt, Measures, read_doubts
from wsss.review.options import ReviewOptions
from wsss.review.reviewing import MOST_ROWS, Review
from wsss.review.sources import Sources, open_sources
from wsss.run import stage
from wsss.stages.check import open_checked

TOKEN, ORIGIN = "secret-token", "http://127.0.0.1:8000"


def page_of(sources, doubts=None):
    decisions = Decisions(sources.data, sources.split, sources.out, sources.masks)
    material = Material(decisions.images, sources.cams, sources.out)
    measures = Measures(material, decisions.mask_path, doubts or {}, sources.out)
    measures.start(wait=60)
    return Review(sources, decisions, material, measures)


def client_of(page):
    return TestClient(
        Guard(page.app(), TOKEN),
        base_url=f"{ORIGIN}/{TOKEN}/",
        headers={"origin": ORIGIN},
        raise_server_exceptions=True,
    )


@pytest.fixture
def page(made):
    return page_of(open_sources(ReviewOptions(run=made.run, data=made.data)))


@pytest.fixture
def client(page):
    return client_of(page)


def order(client, **query):
    return [NAMES_BY_INDEX[index] for index in client.get("api/order", params=query).json()["order"]]


NAMES_BY_INDEX = NAMES  # the table lists the pictures in this order


def labels(response):
    assert response.headers["content-type"] == "application/octet-stream"
    return np.frombuffer(response.content, np.uint8).reshape(SIZE_HW)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/wrong/api/session", {}),
        (f"/{TOKEN[:-1]}/api/session", {}),
        (f"/{TOKEN}", {}),
        (f"/{TOKEN}/api/session", {"host": "evil.example:8000"}),
        (f"/{TOKEN}/api/session", {"host": "127.0.0.1.evil.example"}),
        (f"/{TOKEN}/api/session", {"origin": "http://evil.example"}),
        (f"/{TOKEN}/api/session", {"origin": "null"}),
        (f"/{TOKEN}/api/session", {"origin": "http://127.0.0.1:9000"}),
        (f"/{TOKEN}/api/session", {"sec-fetch-site": "cross-site"}),
        (f"/{TOKEN}/api/session", {"sec-fetch-site": "same-site"}),
    ],
)
def test_requests_from_elsewhere_are_refused(client, path, headers):
    refused = client.get(f"{ORIGIN}{path}", headers=headers)
    assert refused.status_code == 403
    assert TOKEN not in refused.text
    assert "classes" not in refused.text
    assert HEADERS.items() <= dict(refused.headers).items()


def test_a_step_needs_the_page_s_origin(page, made):
    client = TestClient(Guard(page.app(), TOKEN), base_url=f"{ORIGIN}/{TOKEN}/")
    assert client.get("api/session").status_code == 200
    assert client.post("api/picture/0", json={"tags": [], "state": "accepted"}).status_code == 403
    assert not (made.run / "review" / "tags.csv").exists()


def test_a_forwarded_port_is_answered(page):
    client = TestClient(Guard(page.app(), TOKEN), base_url=f"http://localhost:9000/{TOKEN}/")
    assert client.get("api/session", headers={"origin": "http://localhost:9000"}).status_code == 200


def test_every_answer_forbids_scripts_and_frames_from_elsewhere(client):
    for path in ("", "review.js", "api/session", "picture/0", "nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "../tags.csv",
        "%2e%2e/tags.csv",
        "picture/..%2f..%2ftags.csv",
        "page.css/../../wsss.lock",
        "mask/99",
        "mask/-1",
        "x",
    ],
)
def test_no_other_file_is_served(client, path):
    answer = client.get(f"{ORIGIN}/{TOKEN}/{path}")
    assert answer.status_code in (403, 404)


def test_a_page_has_no_inline_script_or_style(client):
    html = client.get("").text
    assert "<style" not in html
    assert "style=" not in html
    assert " on" not in html.replace(" one", "").replace(" only", "").replace(" on<", "")
    assert html.count("<script") == html.count('<script type="module" src=') == 1


def test_the_first_answer_has_classes_as_they_are(client):
    session = client.get("api/session").json()
    assert session["classes"] == list(CLASSES)
    assert (session["total"], session["done"], session["can_paint"], session["has_maps"]) == (5, 0, True, True)


def test_orders_and_filters(client):
    assert order(client, sort="name") == sorted(NAMES)
    # two tags, but one class in the mask; no tag at all
    assert set(order(client, sort="suspicion")[:3]) == {"a/two words", "b/drei ß", "five"}
    assert order(client, sort="class")[-1] == "five"
    assert order(client, sort="uncertainty")[-1] == "five"
    assert order(client, sort="name", cls=1) == ["a/two words", "b/drei ß"]
    assert order(client, sort="name", find="WORD") == ["a/two words"]
    client.post("api/picture/0", json={"tags": [0], "state": "accepted"})
    client.post("api/picture/4", json={"tags": [], "state": "rejected"})
    assert order(client, sort="name", show="done") == ["a/one", "five"]
    assert order(client, sort="name", show="rejected") == ["five"]
    assert len(order(client, sort="name", show="open")) == 3
    assert client.get("api/order", params={"sort": "size"}).status_code == 400


def test_rows_say_what_looks_wrong(client):
    rows = client.get("api/rows", params={"ids": "1,4"}).json()["rows"]
    assert [row["name"] for row in rows] == ["a/two words", "five"]
    assert rows[0]["reasons"] == [f"{CLASSES[1]}: tagged, but not in the mask"]
    assert rows[1]["reasons"] == ["no tag"]
    too_many = ",".join(["1"] * (MOST_ROWS + 1))
    assert client.get("api/rows", params={"ids": too_many}).status_code == 400


def test_suspicious_tags_of_a_health_check_come_first(made, tmp_path):
    table = tmp_path / "tags-review.csv"
    table.write_text(
        "image,tags,split,suspicious,why,score,suggested\n"
        '"b/four.png.png",\'=1+1,train,\'=1+1;cat,"tagged, but not believed;not tagged, but believed",0.91;0.6,cat\n'
        "a/one,cat,train,,,,\n"
    )
    sources = open_sources(ReviewOptions(run=made.run, data=made.data))
    doubts = read_doubts(table, sources.data.split("train"))
    assert doubts == {
        "b/four.png": Doubt(0.91, "=1+1: tagged, but not believed (0.91); cat: not tagged, but believed (0.60)")
    }
    client = client_of(page_of(sources, doubts))
    assert order(client, sort="suspicion")[0] == "b/four.png"
    assert "not believed" in client.get("api/rows", params={"ids": "3"}).json()["rows"][0]["reasons"][0]
    table.write_text("image,suspicious,why,score\na/one,cat,wrong,2\n")
    with pytest.raises(BadInput, match=r"line 2.*scores 2"):
        read_doubts(table, sources.data.split("train"))


def test_pictures_masks_maps_and_regions(client, made):
    about = client.get("api/picture/1").json()
    assert (about["height"], about["width"], about["maps"], about["has_mask"]) == (*SIZE_HW, [0, 1], True)
    np.testing.assert_array_equal(labels(client.get("mask/1")), read_mask(made.run / "masks" / "a/two words.png"))
    for path, kind in (("picture/1", "image/jpeg"), ("map/1/0", "image/png"), ("thumbnail/1", "image/jpeg")):
        answer = client.get(path)
        assert answer.headers["content-type"] == kind
        assert answer.content
    regions = np.frombuffer(client.get("regions/1/8").content, "<i4").reshape(SIZE_HW)
    assert regions.min() == 0
    assert len(np.unique(regions)) > 10
    assert client.get("map/1/3").status_code == 422
    assert "side" in client.get("regions/1/1").json()["error"]


def test_thumbnails_are_made_when_they_are_asked_for(client, made):
    stored = made.run / "review" / "thumbnails"
    assert not stored.exists()
    first = client.get("thumbnail/1").content
    assert len(list(stored.rglob("*.jpg"))) == 1
    assert client.get("thumbnail/1").content == first
    Image.new("RGB", (30, 30)).save(made.data / "images" / "a" / "two words.png")
    assert client.get("thumbnail/1").content != first


def test_a_painted_mask_is_written_at_once(client, made):
    mask = read_mask(made.run / "masks" / "a/one.png").copy()
    mask[:4] = 3
    answer = client.post("mask/0", content=mask.tobytes())
    assert answer.json()["corrected"]
    assert answer.json()["state"] == "changed"
    assert answer.json()["reasons"] == ["=1+1: 10% of the picture, but not tagged"]
    np.testing.assert_array_equal(read_mask(made.run / "review" / "corrected" / "a" / "one.png"), mask)
    np.testing.assert_array_equal(labels(client.get("mask/0")), mask)
    assert labels(client.get("mask/0?original"))[0, 0] == 0


@pytest.mark.parametrize(
    ("content", "status"), [(b"", 400), (b"\0" * 10, 400), (b"\0" * (40 * 52 + 1), 413), (b"\x09" * (40 * 52), 422)]
)
def test_masks_of_another_size_or_with_other_labels_are_refused(client, made, content, status):
    assert client.post("mask/0", content=content).status_code == status
    assert not (made.run / "review" / "corrected").exists()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"tags": [0]}', 400),
        (b'{"tags": [true], "state": ""}', 400),
        (b'{"tags": [9], "state": ""}', 422),
        (b'{"tags": [0], "state": "done"}', 422),
        (b"[" * 99_000, 400),
        (b" " * 100_001, 413),
    ],
)
def test_wrong_decisions_are_refused(client, made, content, status):
    answer = client.post("api/picture/0", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert not (made.run / "review" / "tags.csv").exists()


def test_a_decision_needs_the_type_of_json(client):
    assert client.post("api/picture/0", content=b'{"tags": [0], "state": ""}').status_code == 415


def test_the_commands_at_the_end_are_accepted_by_the_command_line(client, made, capsys):
    assert client.get("api/commands").json()["commands"] == []
    (made.run / "settings.yaml").write_text("preset: quick\n")
    client.post("api/picture/0", json={"tags": [0, 1], "state": "accepted"})
    client.post("api/picture/4", json={"tags": [], "state": "rejected"})
    found = client.post("api/finish", json={}).json()
    out = made.run / "review"
    words = [shlex.split(one["command"])[1:] for one in found["commands"]]
    assert [line[0] for line in words] == ["run", "segment"]
    flags = {flag: words[0][words[0].index(flag) + 1] for flag in ("--data", "--tags", "--classes", "--train")}
    assert flags == {
        "--data": str(made.data),
        "--tags": str(out / "tags.csv"),
        "--classes": str(out / "classes.txt"),
        "--train": str(out / "train.txt"),
    }
    assert words[1][words[1].index("--corrected") + 1] == str(out / "corrected")
    assert words[1][words[1].index("--masks") + 1] == str(made.run / "masks")
    printed = capsys.readouterr().out
    assert "2 of 5 pictures done; 1 with other tags, 1 with a corrected mask" in printed
    assert found["commands"][0]["command"] in printed
    segment, _ = command(["segment"])[1].parser("segment").parse(words[1][1:])
    assert segment.corrected == out / "corrected"
    line = ["run", "cam", *words[0][2:]]
    assert line[line.index("--config") + 1] == str(made.run / "settings.yaml")
    name, chosen = command(line)
    options, _ = chosen.parser(name).parse(line[2:])
    assert options.corrected == out / "corrected"
    data = options.open_path(options.data)
    images = data.split(data.train)
    assert len(images) == 4
    assert images.classes(images.names.index("a/one")) == [0, 1]


@dataclasses.dataclass(frozen=True)
class FromWords:
    title = "CorrCLIP"

    words_only: bool = True


@stage(kind="localize", makes="maps", title=None)
def maps_from_words(settings: FromWords, *, out: Path) -> dict[str, int]:
    """Maps of the second class for the first picture, and of none for the other."""
    for name, classes in (("one", [1]), ("two", [])):
        write_cams(out / f"{name}.npz", np.array(classes, np.int16), np.full((len(classes), *SIZE_HW), 0.5, np.float32))
    return {}


def test_a_run_without_tags_begins_with_the_classes_of_its_maps(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("one", "two"):
        Image.new("RGB", SIZE_HW[::-1]).save(tmp_path / "pictures" / f"{name}.png")
    run = tmp_path / "run"
    open_checked(tmp_path / "pictures", skip_bad=False, remember=run, classes=["cat", "dog"], untagged=True)
    with pytest.raises(BadInput, match="the tags that the run has predicted"):
        open_sources(ReviewOptions(run=run))
    maps_from_words(FromWords(), out=run / "cams")
    client = client_of(page_of(open_sources(ReviewOptions(run=run))))
    assert [row["tags"] for row in client.get("api/rows", params={"ids": "0,1"}).json()["rows"]] == [[1], []]
    assert client.get("api/commands").json()["commands"] == []
    # reviewed tags count in the next run
    client.post("api/picture/1", json={"tags": [0], "state": "accepted"})
    (one,) = client.get("api/commands").json()["commands"]
    assert one["command"].startswith("wsss run corrclip --inference.words_only false --data")


def test_tags_alone(made, tmp_path):
    """A table of predicted tags, before any training."""
    predicted = tmp_path / "predicted.csv"
    predicted.write_text("image,tags\na/one,cat\na/two words,cat\n")
    options = ReviewOptions(data=made.data, tags=predicted, classes="cat,dog", out=tmp_path / "out")
    sources = open_sources(options)
    assert (sources.masks, sources.cams, sources.run) == (None, None, None)
    client = client_of(page_of(sources))
    session = client.get("api/session").json()
    assert (session["total"], session["can_paint"], session["classes"]) == (2, False, ["cat", "dog"])
    client.post("api/picture/0", json={"tags": [1], "state": "accepted"})
    table = (tmp_path / "out" / "tags.csv").read_text()
    assert "a/one,dog,train,,accepted\n" in table
    assert client.post("mask/0", content=b"\0" * (40 * 52)).status_code == 422
    (one,) = client.get("api/commands").json()["commands"]
    assert f"--tags {tmp_path / 'out' / 'tags.csv'}" in one["command"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "neither"),
        ({"run": "missing"}, "no such folder"),
        ({"run": "."}, "does not name its dataset"),
        ({"run": ".", "classes": "cat"}, "--classes"),
        ({"run": ".", "tags": "tagclip"}, "tagclip"),
        ({"run": ".", "data": "data", "masks": "nowhere"}, "nowhere"),
        ({"run": ".", "data": "data", "split": "spare"}, "spare"),
    ],
)
def test_what_cannot_be_reviewed_is_named(made, options, found, monkeypatch):
    monkeypatch.chdir(made.data.parent)
    paths = {
        name: made.data.parent / value if name in ("run", "data", "masks") else value for name, value in options.items()
    }
    with pytest.raises(BadInput, match=found):
        open_sources(ReviewOptions(**paths))


@pytest.mark.whole
def test_twenty_thousand_pictures_are_listed_in_pages(tmp_path):
    n = 20_000
    names = tuple(f"{index % 100:02}/{index:05}" for index in range(n))
    paths = tuple(tmp_path / f"{name}.jpg" for name in names)  # no file is there: nothing may be decoded
    tags = np.arange(n)[:, None] % 3 == np.arange(3)
    images = Images("many", names, paths, ("a", "b", "c"), tags, (None,) * n)
    data = Dataset("memory", tmp_path, {"train": images}, "train")
    sources = Sources(data, "train", None, None, tmp_path / "out", None, {"path": "many"}, False)
    client = client_of(page_of(sources))
    everything = client.get("api/order", params={"sort": "name"}).json()["order"]
    assert len(everything) == n
    assert len(client.get("api/order", params={"sort": "suspicion", "cls": 2}).json()["order"]) == n // 3
    rows = client.get("api/rows", params={"ids": ",".join(map(str, everything[-40:]))}).json()["rows"]
    assert [row["name"] for row in rows] == sorted(names)[-40:]
    client.post(f"api/picture/{everything[0]}", json={"tags": [], "state": "rejected"})
    assert (tmp_path / "out" / "tags.csv").read_text().count("\n") == n + 1
    assert (tmp_path / "out" / "train.txt").read_text().count("\n") == n - 1
    assert not (tmp_path / "out" / "thumbnails").exists()


def test_measures_are_stored_and_made_again_for_changed_masks(made):
    sources = open_sources(ReviewOptions(run=made.run, data=made.data))
    first = page_of(sources).measures
    stored = made.run / "review" / "measures.json.gz"
    content = json.loads(gzip.decompress(stored.read_bytes()))
    content["a/one"][1] = 0.123
    stored.write_bytes(gzip.compress(json.dumps(content).encode()))
    again = page_of(sources).measures
    assert again.uncertainty[0] == np.float32(0.123)
    np.testing.assert_array_equal(again.shares, first.shares)
    Image.fromarray(np.full(SIZE_HW, 1, np.uint8)).save(made.run / "masks" / "a" / "one.png")
    changed = page_of(sources).measures
    assert changed.shares[0, 1] == 1
    assert changed.uncertainty[0] == first.uncertainty[0]
    stored.write_bytes(b"damaged")
    np.testing.assert_array_equal(page_of(sources).measures.shares, changed.shares)
