"""Train image classifiers by named recipes."""

import os

__version__ = "0.1.0"

if "RESCUE_PARENT" in os.environ:  # started by this program, whose end may come while torch loads
    from rescue_cli.lifetime import end_with_parent

    end_with_parent()
