"""The loop over pictures: what is made, by whom, in which order, and what is left after an error or a signal."""

import os
import signal
import threading
import time

import pytest

from wsss import launch, stopping
from wsss.errors import BadInput
from wsss.stages.each import as_loaded, for_each_picture, sum_over_pictures


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def made(folder):
    return sorted(path.relative_to(folder).as_posix().removesuffix(".txt") for path in folder.rglob("*.txt"))


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    monkeypatch.setattr(launch, "threads", lambda: 2)


def test_a_file_of_each_picture_that_has_none(tmp_path, squares):
    write(tmp_path / f"{squares.names[3]}.txt", "here before")
    computed = []

    def compute(index, loaded):
        assert threading.current_thread() is threading.main_thread()
        computed.append(index)
        return f"{loaded} of {squares.names[index]}"

    def load(index):
        assert threading.current_thread() is not threading.main_thread()
        return f"picture {index}"

    for_each_picture(squares, tmp_path, ".txt", load, compute, write, title="test")
    assert computed == [index for index in range(12) if index != 3]
    texts = {name: (tmp_path / f"{name}.txt").read_text() for name in made(tmp_path)}
    assert texts.pop(squares.names[3]) == "here before"
    assert texts == {squares.names[index]: f"picture {index} of {squares.names[index]}" for index in computed}


def test_the_chosen_pictures_alone(tmp_path, squares):
    for_each_picture(squares, tmp_path, ".txt", str, as_loaded, write, title="test", chosen=[5, 2])
    assert made(tmp_path) == sorted([squares.names[2], squares.names[5]])


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_share_the_pictures(tmp_path, squares, monkeypatch, rank):
    monkeypatch.setattr(launch, "rank", lambda: rank)
    monkeypatch.setattr(launch, "processes", lambda: 2)
    for_each_picture(squares, tmp_path, ".txt", str, as_loaded, write, title="test")
    assert made(tmp_path) == sorted(squares.names[rank::2])
    seen = []
    sum_over_pictures(squares, str, lambda index, text: seen.append((index, text)), title="test")
    assert seen == [(index, str(index)) for index in range(rank, 12, 2)]


def test_few_pictures_are_under_way_at_a_time(tmp_path, squares):
    lock, under_way, most = threading.Lock(), set(), [0]

    def load(index):
        with lock:
            under_way.add(index)
            most[0] = max(most[0], len(under_way))
        return str(index)

    def slowly(path, text):
        time.sleep(0.01)
        write(path, text)
        with lock:
            under_way.remove(int(text))

    for_each_picture(squares, tmp_path, ".txt", load, as_loaded, slowly, title="test")
    assert len(made(tmp_path)) == 12
    assert most[0] <= 2 * 4 + 1, "four a thread, and the one that is computed"


@pytest.mark.parametrize("where", ["load", "compute", "write"])
def test_an_error_ends_it_and_leaves_no_threads(tmp_path, squares, where):
    def failing(at, index, text):
        if at == where and index == 4:
            raise BadInput("a picture", "red", "blue", "Paint it.")
        return text

    def failing_write(path, text):
        failing("write", int(text), text)
        write(path, text)

    before = threading.active_count()
    with pytest.raises(BadInput, match=r"Paint it\."):
        for_each_picture(
            squares,
            tmp_path,
            ".txt",
            lambda index: failing("load", index, str(index)),
            lambda index, text: failing("compute", index, text),
            failing_write,
            title="test",
        )
    assert threading.active_count() == before
    assert squares.names[4] not in made(tmp_path)
    for_each_picture(squares, tmp_path, ".txt", str, as_loaded, write, title="test")
    assert made(tmp_path) == sorted(squares.names)


def test_after_a_signal_what_was_computed_is_written(tmp_path, squares):
    computed = []

    def compute(index, text):
        computed.append(squares.names[index])
        if index == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return text

    def slowly(path, text):
        time.sleep(0.02)
        write(path, text)

    with stopping.handling_signals(), pytest.raises(stopping.Stopped, match="test: at least 7 of 12 are done"):
        for_each_picture(squares, tmp_path, ".txt", str, compute, slowly, title="test")
    assert made(tmp_path) == sorted(computed) == sorted(squares.names[:7])


def test_a_sum_that_is_stopped_begins_anew(squares):
    seen = []

    def add(index, text):
        seen.append(index)
        if index == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with stopping.handling_signals(), pytest.raises(stopping.Stopped, match="test starts over"):
        sum_over_pictures(squares, str, add, title="test")
    assert seen == [0, 1, 2]
