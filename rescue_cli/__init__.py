"""Train image classifiers by named recipes: `import rescue_cli as rescue`.

run = rescue.train(rescue.load("quickstart", ["train.epochs=3"]), out="runs/mine")
run.result["top1"]
"""

import os
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if "RESCUE_PARENT" in os.environ:  # started by this program, whose end may come while torch loads
    from rescue_cli.lifetime import end_with_parent

    end_with_parent()

if TYPE_CHECKING:
    from rescue_cli.api import (
        Recipe,
        RescueError,
        Run,
        compare,
        evaluate,
        export,
        load,
        open_run,
        predict,
        train,
    )

__all__ = [
    "Recipe",
    "RescueError",
    "Run",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "load",
    "open_run",
    "predict",
    "train",
]

if not TYPE_CHECKING:  # for a type checker every name but these would exist

    def __getattr__(name: str) -> object:
        """Loads the interface when a name of it is used: the command line starts without it."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from rescue_cli import api

        return getattr(api, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
