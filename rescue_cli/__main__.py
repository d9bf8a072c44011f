"""The command `rescue`, also as `python -m rescue_cli`."""

import os
import sys


def main() -> None:
    """Runs the command line; Ctrl-C ends it quietly, while it is being imported too."""
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # one of torchrun's, and it may be killed any time
            from rescue_cli.lifetime import end_with_parent

            end_with_parent()
        from rescue_cli.cli import main as command

        command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    if not sys.flags.safe_path:  # -m puts the working directory first, where timeit.py may lie
        sys.path.append(sys.path.pop(0))
    main()
