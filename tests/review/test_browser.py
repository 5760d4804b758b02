"""The page of a review in Chromium: one server and one browser for all tests, steps as a person makes them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.review.conftest import CLASSES, make
from wsss import lock
from wsss.data.files import read_mask
from wsss.errors import BadInput

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(
        not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM} (apt-get install chromium, or set CHROMIUM)"
    ),
]


expect.set_options(timeout=20_000)


class Server:
    """`wsss review` as a process of its own."""

    def __init__(self, made):
        self.made = made
        words = ["review", str(made.run), "--data", str(made.data)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wsss", *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        line = self.process.stdout.readline()
        self.address = re.search(r"http://127\.0\.0\.1:\d+/\S+/", line)[0]

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait(60), self.process.stdout.read()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        flags = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(make(tmp_path_factory.mktemp("review")))
    yield server
    server.process.kill()


@pytest.fixture
def page(browser, server):
    page = opened(browser, server)
    yield page
    assert page.problems == []
    page.close()


def opened(browser, server):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.set_default_timeout(20_000)
    page.goto(server.address)
    page.wait_for_selector("#name:not(:empty)")
    return page


def choose(page, name):
    """Go to a picture by its name."""
    page.fill("#find", name)
    page.press("#find", "Enter")
    expect(page.locator(".row .name")).to_have_text([name])
    page.click(".row")
    loaded(page, name)


def loaded(page, name):
    """Wait for a picture with its mask."""
    expect(page.locator("#name")).to_contain_text(name)
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")


def saved(page):
    expect(page.locator("#saved")).to_have_text("saved")


def table(server):
    lines = (server.made.run / "review" / "tags.csv").read_text().splitlines()
    return {line.partition(",")[0]: line for line in lines}


def corrected(server, name):
    return server.made.run / "review" / "corrected" / f"{name}.png"


def test_a_tag_is_toggled_by_its_number_undone_and_there_after_a_reload(page, server):
    choose(page, "a/one")
    page.keyboard.press("4")
    saved(page)
    assert table(server)["a/one"] == f'a/one,"{CLASSES[0]};{CLASSES[3]}",train,,changed'
    page.keyboard.press("z")
    expect(page.locator("#tags [aria-pressed=true]")).to_have_count(1)
    saved(page)
    assert table(server)["a/one"] == f"a/one,{CLASSES[0]},train,,"
    page.keyboard.press("y")
    expect(page.locator("#tags [aria-pressed=true]")).to_have_count(2)
    saved(page)
    page.reload()
    page.wait_for_selector("#name:not(:empty)")
    assert page.text_content("#name") == "a/one (changed)"
    assert page.locator("#tags [aria-pressed=true]").count() == 2


def test_hostile_class_names_are_only_text(page):
    choose(page, "a/two words")
    assert page.locator("#tags button span").all_text_contents() == list(CLASSES)
    assert page.locator("#tags img, .row .tags img, #paint img, #reasons img").count() == 0
    assert CLASSES[1] in page.text_content("#reasons")
    assert page.title() != "owned"


def test_painting_with_pointer_and_keys_undo_and_save(page, server):
    choose(page, "b/drei ß")
    before = read_mask(server.made.run / "masks" / "b/drei ß.png")
    page.keyboard.press("Shift+Digit3")
    box = page.locator(".frame").bounding_box()
    page.mouse.move(box["x"] + 0.11 * box["width"], box["y"] + 0.11 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.61 * box["width"], box["y"] + 0.11 * box["height"], steps=3)
    page.mouse.up()
    saved(page)
    painted = read_mask(corrected(server, "b/drei ß"))
    assert (painted == 3).sum() > 100
    assert (painted[20:] == before[20:]).all()
    assert CLASSES[2] in table(server)["b/drei ß"]  # a painted class is tagged
    page.keyboard.press("Control+z")
    expect(page.locator("#undo")).to_be_disabled()
    saved(page)
    assert not corrected(server, "b/drei ß").exists()
    # the keyboard alone: one pixel, with the smallest brush, from where the pointer was
    for _ in range(8):
        page.keyboard.press("[")
    for key in ("g", "ArrowLeft", "Shift+ArrowDown", "Shift+ArrowDown", "e", "Space"):
        page.keyboard.press(key)
    saved(page)
    erased = read_mask(corrected(server, "b/drei ß"))
    assert np.argwhere(erased != before).tolist() == [[20, 30]]
    assert erased[20, 30] == 0


def test_a_region_is_filled_along_edges(page, server):
    choose(page, "a/two words")
    before = read_mask(server.made.run / "masks" / "a/two words.png")
    page.keyboard.press("Shift+Digit4")
    page.keyboard.press("f")
    page.keyboard.press("g")
    page.keyboard.press("Space")
    saved(page)
    changed = read_mask(corrected(server, "a/two words")) != before
    rows, columns = np.nonzero(changed)
    assert 60 < changed.sum() < 500
    assert rows.min() >= 8  # the red rectangle, and a pixel by which smoothing may move its outline
    assert rows.max() <= 31
    assert columns.min() >= 10
    assert columns.max() <= 41


def test_while_a_picture_is_loaded_nothing_is_lost_and_nothing_hits_another_one(page, server):
    page.select_option("#sort", "name")
    expect(page.locator(".row .name").nth(3)).to_have_text("b/four.png")
    page.click(".row >> text=b/four.png")
    loaded(page, "b/four.png")
    held = []
    page.route("**/mask/*", lambda route: held.append(route) if route.request.method == "GET" else route.continue_())
    page.focus("#stage")
    page.keyboard.down("Space")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("n")
    saved(page)  # the stroke that going on has ended
    page.keyboard.up("Space")
    assert (read_mask(corrected(server, "b/four.png")) == 1).sum() > 100
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "true")
    before = table(server)
    for key in ("4", "x", "z"):
        page.keyboard.press(key)
    page.click(".frame")
    while not held:
        page.wait_for_timeout(20)
    held.pop().continue_()
    loaded(page, "five")
    assert table(server) == before
    assert not corrected(server, "five").exists()
    # a picture that is shown already is not loaded again, over a stroke that is not saved yet
    page.click(".row >> text=five")
    with page.expect_response(lambda answer: answer.request.method == "POST" and "/mask/" in answer.url):
        page.click(".frame")
    saved(page)
    assert corrected(server, "five").exists()
    assert held == []
    page.keyboard.press("z")
    saved(page)


def test_accepting_goes_on_and_rejecting_leaves_out(page, server):
    page.select_option("#sort", "name")
    expect(page.locator(".row")).to_have_count(5)
    page.click(".row >> nth=0")
    expect(page.locator("#name")).to_contain_text("a/one")
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_contain_text("a/two words")
    page.keyboard.press("x")
    expect(page.locator("#progress")).to_have_text("2 of 5 done")
    assert table(server)["a/one"].endswith(",accepted")
    assert table(server)["a/two words"].endswith(",rejected")
    assert "a/two words" not in (server.made.run / "review" / "train.txt").read_text()
    page.click("#finish")
    page.wait_for_selector("#commands pre")
    assert "--corrected" in page.text_content("#command-list")
    page.keyboard.press("Escape")


def test_work_survives_a_kill_and_a_second_reviewer_is_refused(browser, server):
    page = opened(browser, server)
    choose(page, "five")
    page.keyboard.press("2")
    saved(page)
    with pytest.raises(BadInput, match="another command running here"), lock.locked(server.made.run / "review"):
        pass
    server.end(signal.SIGKILL)
    page.keyboard.press("4")
    page.wait_for_selector("#error:not([hidden])")
    assert "not saved" in page.text_content("#saved")
    page.close()
    again = Server(server.made)
    server.process = again.process
    assert again.address != server.address
    page = opened(browser, again)
    choose(page, "five")
    assert page.locator("#tags [aria-pressed=true] span").all_text_contents() == [CLASSES[1]]
    assert page.text_content("#progress") == "2 of 5 done"
    page.close()
    status, printed = again.end(signal.SIGINT)
    assert status == 0
    assert "2 of 5 pictures done" in printed
    assert "wsss segment" in printed
    assert not (server.made.run / "review" / "wsss.lock").exists()
