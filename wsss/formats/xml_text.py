"""Texts in XML."""

import re

from wsss.errors import BadInput


def check_xml(text: str, where: str) -> None:
    """Raise BadInput if a name has characters that XML cannot hold or that its readers change."""
    if odd := re.search("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]", text):
        do = "Rename it."
        raise BadInput(where, f"the character {odd[0]!r} in the name {text!r}", "a name that XML can hold", do)
