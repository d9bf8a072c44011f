"""Writes docs/verbs.md, a page of each verb's `--help`: `python -m tests.cli.verbs_page`."""

from pathlib import Path

from typer.testing import CliRunner

from rescue_cli.cli import VERBS, app

PAGE = Path(__file__).parents[2] / "docs" / "verbs.md"
SUBCOMMANDS = {
    "recipes": ("show", "diff", "copy", "check", "record"),
    "bench": ("step", "optimizer", "input", "shards", "train", "inference"),
}
HEAD = """# The verbs

What `rescue VERB --help` prints. [The guide](guide.md) says when to use which.
"""


def help_of(words: str) -> str:
    """What the verb prints for `--help`."""
    return CliRunner().invoke(app, [*words.split(), "--help"], prog_name="rescue").output


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for verb in VERBS:
        parts.append(f"\n## {verb}\n")
        for words in (verb, *(f"{verb} {name}" for name in SUBCOMMANDS.get(verb, ()))):
            parts.append(f"\n```text\n{help_of(words).strip()}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
