"""Settings that come with the program: of the demo, of published runs, of all methods on small pictures."""

from pathlib import Path

CONFIGS = Path(__file__).parent
