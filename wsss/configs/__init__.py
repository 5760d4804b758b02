"""Settings, words and networks that come with the package."""

from pathlib import Path

CONFIGS = Path(__file__).parent
