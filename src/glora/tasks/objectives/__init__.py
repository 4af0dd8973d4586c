"""The objectives, one file each; one more is a file here and a line in `OBJECTIVES` (no torch)."""

__all__ = ["OBJECTIVES"]

OBJECTIVES = {
    "classify": "glora.tasks.objectives.classify:Classify",
    "multilabel": "glora.tasks.objectives.multilabel:MultiLabel",
    "regress": "glora.tasks.objectives.regress:Regress",
    "language": "glora.tasks.objectives.language:Language",
    "choose": "glora.tasks.objectives.choose:Choose",
    "verbalize": "glora.tasks.objectives.verbalize:Verbalize",
}
