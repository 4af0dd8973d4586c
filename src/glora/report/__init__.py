"""What came out, from records alone (no torch): `Result` of a run, `Outcome` of a search, tables, pictures."""
