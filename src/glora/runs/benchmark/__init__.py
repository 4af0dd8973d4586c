"""Methods x tasks x seeds, each cell one run and one Result: `glora bench FILE.yaml`.

`settings.py` makes the cells of a file, `protocols.py` is what lies under them, `folder.py` knows what is done.
`bench.py` goes through what is left: first the learning rates (`rates.py`), then the cells; `work.py` is what a worker
does of it, `view.py` what a person sees meanwhile.
"""
