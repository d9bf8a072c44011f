"""Pages, tables and pictures of finished runs; nothing here imports torch."""
