"""Singulars of nouns by WordNet 3.0 (Miller, 1995), as NLTK's lemmatiser finds them, without NLTK.

`wordnet/nouns.xz` holds WordNet's licence (lines that begin with a blank), its nouns, one per line, and irregular forms
with their lemmas (lines with a blank inside).
"""

import functools
import lzma
from pathlib import Path

_FILE = Path(__file__).parent / "wordnet" / "nouns.xz"
# endings of regular plurals, and their replacements (WordNet's morphy, in its order)
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
)  # fmt: skip


@functools.cache
def _nouns() -> tuple[frozenset[str], dict[str, list[str]]]:
    lines = [line for line in lzma.decompress(_FILE.read_bytes()).decode().splitlines() if not line.startswith(" ")]
    irregular = (line.split() for line in lines if " " in line)
    return frozenset(line for line in lines if " " not in line), {form: lemmas for form, *lemmas in irregular}


def lemma(text: str) -> str:
    """The shortest noun of WordNet among the text and its singulars; the text itself if there is none.

    Only complete lower-case texts are looked up: `trees` becomes `tree`, `hot dogs` stays (WordNet writes blanks as `_`), and
    short words lose letters (`boss` becomes `bos`).
    """
    nouns, irregular = _nouns()
    singulars = irregular.get(text)
    if singulars is None:
        singulars = [text.removesuffix(end) + replacement for end, replacement in _ENDINGS if text.endswith(end)]
    return min((word for word in (text, *singulars) if word in nouns), key=len, default=text)
