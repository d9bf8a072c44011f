"""The command `rescue`, also as `python -m rescue_cli`."""

import sys


def main() -> None:
    """Runs the command line, and ends quietly where it is interrupted before it is there."""
    try:
        from rescue_cli.cli import main as command
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
