"""The training loop and its parts; nothing here reads a recipe."""
