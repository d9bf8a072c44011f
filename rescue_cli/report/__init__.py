"""Pictures and tables from run directories; nothing here imports torch."""

from rescue_cli.report.pictures import draw

__all__ = ["draw"]
