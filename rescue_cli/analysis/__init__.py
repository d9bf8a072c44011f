"""Statistics, comparisons and curves of finished runs; nothing here imports torch."""
