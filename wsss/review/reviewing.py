"""`wsss review`: the page on which people check tags and correct masks."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from wsss import lock
from wsss.arrays import Float
from wsss.review.answers import ERRORS, answer, as_bytes, as_json, position
from wsss.review.decisions import ACCEPTED, REJECTED, Decisions
from wsss.review.guard import bounded_body
from wsss.review.material import Material, check_shown
from wsss.review.measures import SUSPICIOUS_TAGS, Measures, read_doubts
from wsss.review.options import ReviewOptions
from wsss.review.serving import page_routes, serve_page
from wsss.review.sources import Sources, open_sources
from wsss.terminal import show

PAGE = {
    "/": "review.html",
    "/page.css": "page.css",
    "/icon.svg": "icon.svg",
    "/review.js": "review.js",
    "/requests.js": "requests.js",
    "/list.js": "list.js",
    "/canvas.js": "canvas.js",
    "/drawing.js": "drawing.js",
    "/classes.js": "classes.js",
}
SORTS = ("suspicion", "uncertainty", "class", "name")
SHOWN = ("all", "open", "done", "accepted", "rejected", "changed")
# Most rows of the list in one answer, and most bytes of a JSON request
MOST_ROWS, MOST_JSON = 200, 100_000
# Seconds before the page opens in which the first pictures are measured
_WAIT_FOR_MEASURES = 2.0


class Review:
    """The answers to the page's requests.

    Args:
        sources: what is reviewed.
        decisions: the state.
        material: pictures and maps.
        measures: what looks wrong.
    """

    def __init__(self, sources: Sources, decisions: Decisions, material: Material, measures: Measures) -> None:
        self.sources, self.decisions, self.material, self.measures = sources, decisions, material, measures
        self.images = decisions.images

    def app(self) -> Starlette:
        """The application, to be served behind a `Guard`."""
        routes = [
            *page_routes(PAGE),
            Route("/api/session", answer(self.session)),
            Route("/api/order", answer(self.order)),
            Route("/api/rows", answer(self.rows)),
            Route("/api/picture/{index:int}", answer(self.picture)),
            Route("/api/picture/{index:int}", self.decide, methods=["POST"]),
            Route("/api/commands", answer(self.commands)),
            Route("/api/finish", self.finish, methods=["POST"]),
            Route("/picture/{index:int}", self.jpeg),
            Route("/thumbnail/{index:int}", self.thumbnail),
            Route("/map/{index:int}/{cls:int}", self.heatmap),
            Route("/regions/{index:int}/{side:int}", self.regions),
            Route("/mask/{index:int}", self.mask),
            Route("/mask/{index:int}", self.correct, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers=ERRORS)

    def session(self, request: Request) -> dict[str, object]:
        """What does not depend on a picture."""
        return {
            "title": self.images.title,
            "classes": list(self.images.class_names),
            "can_paint": self.decisions.masks is not None,
            "has_maps": self.material.cams is not None,
            "has_doubts": bool(self.measures.doubts),
            "sorts": SORTS,
            "out": str(self.decisions.out),
            **self._progress(),
        }

    def order(self, request: Request) -> dict[str, object]:
        """The positions of the chosen pictures, in the chosen order."""
        query = request.query_params
        sort, shown = _one_of(query.get("sort", SORTS[0]), SORTS), _one_of(query.get("show", "all"), SHOWN)
        tags, states = self.decisions.tags, self.decisions.states
        names = np.array(self.images.names)
        if sort == "suspicion":
            keys = [-_last(self.measures.suspicion(tags))]
        elif sort == "uncertainty":
            keys = [-_last(self.measures.uncertainty)]
        elif sort == "class":
            keys = [np.where(tags.any(1), tags.argmax(1), tags.shape[1])]
        else:
            keys = []
        order = np.lexsort((names, *keys))
        keep = np.array([_is_shown(state, shown) for state in states], bool)
        if "cls" in query:
            keep &= tags[:, position(query["cls"], tags.shape[1])]
        if text := query.get("find", ""):
            keep &= np.array([text.casefold() in name.casefold() for name in self.images.names], bool)
        return {"order": order[keep[order]].tolist(), **self._progress()}

    def rows(self, request: Request) -> dict[str, object]:
        """The lines of some pictures in the list."""
        words = [word for word in request.query_params.get("ids", "").split(",") if word]
        if len(words) > MOST_ROWS:
            raise HTTPException(400, f"At most {MOST_ROWS} rows at a time.")
        return {"rows": [self._row(position(word, len(self.images))) for word in words]}

    def picture(self, request: Request) -> dict[str, object]:
        """Everything about a picture but its pixels."""
        index = self._index(request)
        height, width = self.images.size_hw(index)
        check_shown((height, width), self.images.where(index))
        return {
            **self._row(index),
            "height": height,
            "width": width,
            "has_mask": self.decisions.pseudo_mask(index) is not None,
            "maps": self.material.mapped_classes(index),
        }

    async def decide(self, request: Request) -> Response:
        """Set tags and state of a picture."""
        index, content = self._index(request), await _json(request)
        tags, state = content.get("tags"), content.get("state")
        if not isinstance(tags, list) or not all(type(tag) is int for tag in tags) or not isinstance(state, str):
            raise HTTPException(400, "`tags` are class numbers, `state` is a text.")
        await run_in_threadpool(self.decisions.decide, index, tags, state)
        return as_json({**self._row(index), **self._progress()})

    async def correct(self, request: Request) -> Response:
        """Set the mask of a picture: one byte per pixel, row by row."""
        index = self._index(request)
        height, width = await run_in_threadpool(self.images.size_hw, index)
        body = await bounded_body(request, height * width)
        if len(body) != height * width:
            raise HTTPException(400, f"{len(body)} bytes for {height * width} pixels.")
        mask = np.frombuffer(body, np.uint8).reshape(height, width)
        await run_in_threadpool(self.decisions.correct, index, mask)
        await run_in_threadpool(self.measures.update, index)
        return as_json({**self._row(index), **self._progress()})

    def mask(self, request: Request) -> Response:
        """The current mask, or with `?original` the pseudo mask: one byte per pixel, row by row."""
        return as_bytes(self.decisions.mask(self._index(request), original="original" in request.query_params))

    def jpeg(self, request: Request) -> Response:
        return Response(self.material.jpeg(self._index(request)), media_type="image/jpeg")

    def thumbnail(self, request: Request) -> Response:
        return Response(self.material.thumbnail(self._index(request)), media_type="image/jpeg")

    def heatmap(self, request: Request) -> Response:
        """The activation map of a class, at the size of the picture."""
        cls = int(request.path_params["cls"])
        return Response(self.material.heatmap(self._index(request), cls), media_type="image/png")

    def regions(self, request: Request) -> Response:
        """The superpixels of about `side` squared pixels: four bytes per pixel, row by row."""
        return as_bytes(self.material.regions(self._index(request), int(request.path_params["side"])))

    def commands(self, request: Request) -> dict[str, object]:
        """What to run with the result."""
        found = self.sources.commands(self.decisions.counts())
        return {"commands": [{"title": title, "command": command} for title, command in found], **self._progress()}

    async def finish(self, request: Request) -> Response:
        """As `commands`, and print them on the terminal."""
        answer = await run_in_threadpool(self.commands, request)
        await run_in_threadpool(self.print_end)
        return as_json(answer)

    def print_end(self) -> None:
        """Print how far the review is, and the commands that use it."""
        counts = self.decisions.counts()
        show(
            f"{counts.done} of {counts.total} pictures done; {counts.retagged} with other tags, {counts.corrected} with a corrected mask"
        )
        for title, command in self.sources.commands(counts):
            show(f"{title}:\n  {command}")

    def _row(self, index: int) -> dict[str, object]:
        tags = self.decisions.tags[index]
        return {
            "index": index,
            "name": self.images.names[index],
            "tags": np.flatnonzero(tags).tolist(),
            "state": self.decisions.states[index],
            "corrected": index in self.decisions.corrected,
            "reasons": self.measures.reasons(index, tags),
        }

    def _progress(self) -> dict[str, object]:
        counts = self.decisions.counts()
        return {
            "total": counts.total,
            "done": counts.done,
            "accepted": counts.accepted,
            "rejected": counts.rejected,
            "measured": self.measures.measured,
        }

    def _index(self, request: Request) -> int:
        return position(str(request.path_params["index"]), len(self.images))


async def _json(request: Request) -> dict[str, Any]:
    """The JSON object in the body of a request."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(415, "JSON is expected.")
    try:
        content = json.loads(await bounded_body(request, MOST_JSON))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "Broken JSON.") from error
    if not isinstance(content, dict):
        raise HTTPException(400, "A JSON object is expected.")
    return content


def _one_of(word: str, among: Sequence[str]) -> str:
    if word not in among:
        raise HTTPException(400, f"One of {', '.join(among)} is expected.")
    return word


def _is_shown(state: str, shown: str) -> bool:
    if shown in ("open", "done"):
        return (state in (ACCEPTED, REJECTED)) == (shown == "done")
    return shown in ("all", state)


def _last(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The values, with those that are not measured yet at the end of a descending order."""
    return np.nan_to_num(values, nan=-1.0)


def review(options: ReviewOptions) -> None:
    """Run `wsss review`.

    Raises:
        BadInput: the extra is not installed, there is nothing to review, or another command uses the output folder.
    """
    sources = open_sources(options)
    with lock.locked(sources.out):
        decisions = Decisions(sources.data, sources.split, sources.out, sources.masks)
        material = Material(decisions.images, sources.cams, sources.out)
        table = sources.run / SUSPICIOUS_TAGS if sources.run else None
        doubts = read_doubts(table, decisions.images) if table and table.exists() else {}
        measures = Measures(material, decisions.mask_path, doubts, sources.out)
        page = Review(sources, decisions, material, measures)
        measures.start(_WAIT_FOR_MEASURES)
        try:
            serve_page(page.app(), f"Review of {decisions.images.title}", options.port, options.open)
        finally:
            measures.stop()
        page.print_end()
