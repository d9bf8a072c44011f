"""The command `rescue`, also as `python -m rescue_cli`."""

import os
import sys


def main() -> None:
    """Runs the command line; Ctrl-C ends it without a traceback, even during imports."""
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun may be killed at any time
            from rescue_cli.lifetime import end_with_parent

            end_with_parent()
        from rescue_cli.cli import main as command

        command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    if (
        not sys.flags.safe_path
    ):  # python -m puts the working directory first, whose files could shadow modules
        sys.path.append(sys.path.pop(0))
    main()
