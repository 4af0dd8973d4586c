"""One experiment in one folder: trained, searched, polished, tested, loaded again.

`run.py` goes through the stages of `stages/`, which share a `Session` (`session.py`) and leave what they did in a
`RunFolder` (`folder.py`). `fit.py` is `glora.fit` and `glora.load`, `loaded.py` a finished run. `scoring.py`,
`comparison.py` and `calibration.py` serve the search; `console.py` is what a person sees meanwhile.
"""
