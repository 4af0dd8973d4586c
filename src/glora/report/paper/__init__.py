"""The paper's tables with our rows beside the printed ones, from Results alone (no torch).

One more table is a file with a function of Results that gives its sheets, and a line here.
"""

TABLES = {  # name -> function of Results
    "vtab": "glora.report.paper.vtab:vtab",
    "fewshot": "glora.report.paper.fewshot:fewshot",
    "generalization": "glora.report.paper.generalization:generalization",
    "inference": "glora.report.paper.inference:inference",
}
