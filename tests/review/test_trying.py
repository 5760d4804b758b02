"""`wsss try`: pictures are predicted, and nothing else that is sent is kept or served."""

import io

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from wsss.errors import BadInput
from wsss.predictor import Prediction
from wsss.review import trying
from wsss.review.guard import Guard

ORIGIN = "http://127.0.0.1:8000"


class RedIsLeft:
    """A segmenter that finds what is red."""

    path, kind, classes = "runs/mine", "deeplab", ("red", "blue")

    def predict(self, path):
        with Image.open(path) as picture:
            rgb = np.asarray(picture.convert("RGB"))
        red = rgb[..., 0] > 128
        probabilities = np.stack([np.where(red, 0.25, 1), np.where(red, 0.75, 0), np.zeros(red.shape)])
        return Prediction(red.astype(np.uint8), probabilities.astype(np.float32), self.classes, rgb)


@pytest.fixture
def client():
    app = Guard(trying.Trial(RedIsLeft()).app(), "token")
    return TestClient(app, base_url=f"{ORIGIN}/token/", headers={"origin": ORIGIN})


def png(width=10, red=4):
    picture = np.zeros((6, width, 3), np.uint8)
    picture[:, :red, 0] = 255
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def test_areas_labels_and_time(client):
    session = client.get("api/session").json()
    assert (session["title"], session["kind"], session["classes"]) == ("runs/mine", "deeplab", ["red", "blue"])
    found = client.post("api/predict", params={"name": "a.png"}, content=png()).json()
    assert found["areas"] == [
        {"label": 0, "name": "background", "share": 0.6},
        {"label": 1, "name": "red", "share": 0.4},
    ]
    assert found["confidence"] == pytest.approx(0.6 + 0.4 * 0.75)
    assert found["seconds"] > 0
    labels = np.frombuffer(client.get(f"labels/{found['number']}").content, np.uint8).reshape(6, 10)
    assert labels[:, :4].all()
    assert not labels[:, 4:].any()
    with Image.open(io.BytesIO(client.get(f"picture/{found['number']}").content)) as shown:
        assert shown.size == (10, 6)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.svg", png(), "a.svg"),
        ("", png(), "called ''"),
        ("a.png", b"no picture", "no picture"),
        ("a.png", b"", "empty"),
    ],
)
def test_what_is_no_picture_is_refused(client, name, content, found):
    answer = client.post("api/predict", params={"name": name}, content=content)
    assert answer.status_code == 422
    assert found in answer.json()["error"]


def test_sizes_are_bounded(client, monkeypatch):
    monkeypatch.setattr(trying, "MOST_BYTES", 100)
    assert client.post("api/predict", params={"name": "a.png"}, content=b"\0" * 101).status_code == 413
    monkeypatch.setattr("wsss.review.material.MOST_PIXELS", 50)
    monkeypatch.setattr(trying, "MOST_BYTES", 1000)
    answer = client.post("api/predict", params={"name": "a.png"}, content=png())
    assert "6x10 pixels" in answer.json()["error"]


def test_only_the_last_results_are_kept(client):
    numbers = [client.post("api/predict", params={"name": "a.png"}, content=png()).json()["number"] for _ in range(6)]
    assert [client.get(f"labels/{number}").status_code for number in numbers] == [404, 404, 200, 200, 200, 200]
    assert client.get("labels/99").status_code == 404


def test_a_prediction_needs_the_page_s_origin():
    app = Guard(trying.Trial(RedIsLeft()).app(), "token")
    client = TestClient(app, base_url=f"{ORIGIN}/token/")
    assert client.post("api/predict", params={"name": "a.png"}, content=png()).status_code == 403


def test_a_folder_without_a_network_is_refused(tmp_path):
    from wsss.review.options import TryOptions

    with pytest.raises(BadInput, match="no weights"):
        trying.try_out(TryOptions(run=tmp_path))
