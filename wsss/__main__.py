"""`python -m wsss`, which `torchrun -m wsss` starts on every process."""

import sys

from wsss.cli import main

sys.exit(main())
