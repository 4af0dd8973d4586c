"""A model and its support tensors: inject, play, hold, merge, save.

`adapted.py` has `inject` and `Adapted`, the model with its sites; `supernet.py` draws genotypes for a training;
`adapter_file.py` saves and loads. Below them: `support.py` is the formula (Eq. 13 and 14), `layers/` has a class for
every layer type and a table of them, `attach.py` makes one layer show its effective weight, `sites.py` and `head.py`
find what is adapted and what is trained whole, `samples.py` whether a layer keeps the samples of a batch apart,
`statistics.py` keeps BatchNorm's. `state.py` is an adapter as plain tensors, `adapter_format.py` the file's layout,
`summary.py` what `adapted.summary()` prints.
"""
