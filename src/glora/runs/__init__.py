"""One experiment in one folder, stage by stage."""
