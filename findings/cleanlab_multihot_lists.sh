#!/usr/bin/env bash
# Expected: multi-label tags are read alike as a matrix and as its lists. Seen: cleanlab reads a list of 0/1 rows as lists of class numbers, so [0, 0, 1] is 'classes 0 and 1'; the array is refused.
# For a user: label quality of a tag matrix passed through tolist(), JSON or a pandas column is scored against other tags without a word, and right tags look wrong; pass class numbers ([2]) instead.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'cleanlab==2.9.0' 'scikit-learn==1.9.1' 'pandas==3.1.1' 'numpy==2.4.6' 'scipy==1.17.1'
cd "$venv"
"$venv/bin/python" - <<'PY'
import cleanlab
import numpy as np
from cleanlab.multilabel_classification import get_label_quality_scores

print("cleanlab", cleanlab.__version__, "numpy", np.__version__)
matrix = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 1]])  # three pictures, three classes
numbers = [np.flatnonzero(row).tolist() for row in matrix]
probabilities = np.where(matrix == 1, 0.9, 0.1)  # a classifier that agrees with every tag
right = get_label_quality_scores(numbers, probabilities)
lists = get_label_quality_scores(matrix.tolist(), probabilities)
taken = get_label_quality_scores([sorted(set(row)) for row in matrix.tolist()], probabilities)
print("class numbers", numbers, "->", right.round(3))
print("0/1 lists    ", matrix.tolist(), "->", lists.round(3))
try:
    get_label_quality_scores(matrix, probabilities)
except AssertionError:
    refused = True
    print("0/1 array: refused")
else:
    refused = False
assert refused
assert right.min() > 0.85
assert np.allclose(lists, taken) and lists[1] < 0.3 and lists[2] < 0.7, lists
print("as described")
PY
