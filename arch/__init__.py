"""Models, and nothing that trains: no optimiser, no data, no files."""

from arch.count import count
from arch.lm import LM, abstract, build

__all__ = ["LM", "abstract", "build", "count"]
