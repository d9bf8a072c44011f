"""What is measured: the names of metrics, and average precision."""
