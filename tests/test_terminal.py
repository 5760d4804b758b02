"""What reaches a terminal."""

import io
import logging

from wsss.terminal import Formatter, show


def test_names_do_not_steer_the_terminal():
    stream = io.StringIO()
    show("a\x1b]0;title\x07\u202eb\udcff\tc\nd", stream=stream)
    assert stream.getvalue() == "a\\x1b]0;title\\x07\\u202eb\\udcff\tc\nd\n"
    stream.getvalue().encode()


def test_nor_do_messages_of_a_log():
    record = logging.LogRecord("wsss", logging.INFO, "a.py", 1, "note: %s", ("x\x1b[2J\rgone",), None)
    assert Formatter("%(message)s").format(record) == "note: x\\x1b[2J\\rgone"
