"""Commands: python -m launch lists them."""

import sys

if sys.argv[:1] == ["-m"]:  # one is being started, whose imports take seconds
  from train import signals

  signals.watch()
