"""Pictures, tables and records from run directories; nothing here imports torch."""
