"""What is learned, from which examples, and how it is measured.

`objective.py` is the protocol that training, scoring and tables ask; `objectives/` has one file each. `task.py` makes a
`Task` of a data source, `data/` has one file a source. `splits.py` cuts train, val and test; `visible.py` is a task
without its test examples; `evaluation.py` is what a model does on examples, and `calibration.py` what follows from it
for a supernet.
"""
