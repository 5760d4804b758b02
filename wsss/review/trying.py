"""`wsss try`: a page on which a trained segmenter predicts the pictures that are dropped on it."""

import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from wsss.classifier import KIND
from wsss.data.pictures import PICTURE_SUFFIXES, picture_size_hw
from wsss.errors import BadInput
from wsss.predictor import Prediction, Predictor, load
from wsss.review.answers import ERRORS, answer, as_bytes, as_json, position
from wsss.review.guard import bounded_body
from wsss.review.material import as_jpeg, check_shown
from wsss.review.options import TryOptions
from wsss.review.serving import page_routes, serve_page

PAGE = {
    f"/{name}": name
    for name in ("page.css", "icon.svg", "try.js", "requests.js", "canvas.js", "drawing.js", "classes.js")
}
PAGE["/"] = "try.html"
# Most bytes of a dropped file, and results that are kept for the page
MOST_BYTES = 128 << 20
_KEPT = 4


class Trial:
    """The answers to the page's requests.

    Args:
        predictor: a segmenter.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._results: OrderedDict[int, Prediction] = OrderedDict()
        self._number = 0
        self._lock = threading.Lock()

    def app(self) -> Starlette:
        """The application, to be served behind a `Guard`."""
        routes = [
            *page_routes(PAGE),
            Route("/api/session", answer(self.session)),
            Route("/api/predict", self.predict, methods=["POST"]),
            Route("/picture/{number:int}", self.picture),
            Route("/labels/{number:int}", self.labels),
        ]
        return Starlette(routes=routes, exception_handlers=ERRORS)

    def session(self, request: Request) -> dict[str, object]:
        """The network and its classes."""
        name, kind = str(self.predictor.path), self.predictor.kind
        return {"title": name, "kind": kind, "classes": list(self.predictor.classes), "most_bytes": MOST_BYTES}

    async def predict(self, request: Request) -> Response:
        """The result for the picture in the body, whose file name is only used for its suffix."""
        name = request.query_params.get("name", "")
        content = await bounded_body(request, MOST_BYTES)
        return as_json(await run_in_threadpool(self._predict, name, content))

    def _predict(self, name: str, content: bytes) -> dict[str, object]:
        suffix = next((suffix for suffix in PICTURE_SUFFIXES if name.lower().endswith(suffix)), None)
        if suffix is None:
            found, do = f"a file called {name[-40:]!r}", "Convert it to PNG or JPEG first."
            raise BadInput("picture", found, f"one of {', '.join(PICTURE_SUFFIXES)}", do)
        with self._lock, tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"picture{suffix}"
            path.write_bytes(content)
            check_shown(picture_size_hw(path, upright=True), "picture")
            started = time.perf_counter()
            result = self.predictor.predict(path)
            seconds = time.perf_counter() - started
            self._number += 1
            self._results[self._number] = result
            while len(self._results) > _KEPT:
                self._results.popitem(last=False)
            number = self._number
        height, width = result.labels.shape
        areas = [
            {"label": label, "name": name, "share": share}
            for label, (name, share) in enumerate(result.areas().items())
            if share
        ]
        return {
            "number": number,
            "height": height,
            "width": width,
            "seconds": seconds,
            "areas": sorted(areas, key=lambda area: -float(str(area["share"]))),
            "confidence": float(result.probabilities.max(axis=0).mean()),
        }

    def picture(self, request: Request) -> Response:
        return Response(as_jpeg(Image.fromarray(self._result(request).picture)), media_type="image/jpeg")

    def labels(self, request: Request) -> Response:
        """One byte per pixel, row by row."""
        return as_bytes(self._result(request).labels)

    def _result(self, request: Request) -> Prediction:
        number = position(str(request.path_params["number"]), self._number + 1)
        with self._lock:
            if number not in self._results:
                raise HTTPException(404, "This result is no longer kept: drop the picture again.")
            return self._results[number]


def try_out(options: TryOptions) -> None:
    """Run `wsss try`.

    Raises:
        BadInput: there is no trained segmenter, or the port is taken.
    """
    predictor = load(options.run, device=None if options.device == "auto" else options.device)
    if predictor.kind == KIND:
        do = "Wait until the segmenter is trained, or give its folder."
        raise BadInput(predictor.path, "a classifier", "a trained segmenter", do)
    serve_page(Trial(predictor).app(), f"{predictor.path}", options.port, options.open)
