"""Train image classifiers by named recipes."""

__version__ = "0.1.0"
