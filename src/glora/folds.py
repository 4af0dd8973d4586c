"""Which weights score which images: in the plain split one supernet, with folds each what it did not see."""

from __future__ import annotations

from glora.adapted import Adapted
from glora.calibration import Calibration
from glora.checkpoint import load_supernet
from glora.data.known import Known
from glora.runfolder import RunFolder
from glora.scoring import Part
from glora.supernet import StoredSupernet, Supernet, copied

__all__ = ["load_parts"]


def load_parts(
    adapted: Adapted, known: Known, folder: RunFolder, calibration: Calibration
) -> tuple[tuple[Part, ...], StoredSupernet]:
    """The parts of val with the supernets that score them, and the supernet whose weights the winner plays.

    All of them are calibrated. The numbers of the last are in place afterwards.

    Raises:
        RunError: A supernet is not trained yet.
        AdapterFileError: A file is damaged, or of another base.
    """
    folders = [folder.fold(place) for place in range(len(known.folds))]
    for each in (*folders, folder):
        each.need(each.supernet, f"glora train --out {folder.path}")
    stored: list[StoredSupernet] = []
    for each in (*folders, folder):
        load_supernet(adapted, each.supernet)
        calibration.apply(adapted)
        stored.append(StoredSupernet(adapted, copied(adapted)))
    scoring: list[Supernet] = [*stored[:-1]] or [Supernet(adapted)]
    return tuple(map(Part, scoring, known.scoring)), stored[-1]
