"""What finished runs say: statistics, comparisons, curves; nothing here imports torch."""
