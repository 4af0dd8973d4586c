"""A model and its support tensors: inject, play, hold, merge, save.

`adapted.py` has `inject` and `Adapted`, the model with its sites; `supernet.py` draws genotypes for a training;
`adapter_file.py` saves and loads. Below them: `support.py` is the formula (Eq. 13 and 14), `layers/` has a class for
every layer type and a table of them, `attach.py` makes one layer show its effective weight, `sites.py` and `head.py`
find what is adapted and what is trained whole.
"""
