"""What came out, from results alone: records, tables, pictures (no torch)."""
