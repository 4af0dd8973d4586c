"""The data sets of the paper as plain data: names, groups, sizes, class indices (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from glora.errors import nearest

__all__ = [
    "FEW_SHOT",
    "IMAGENET_TARGETS",
    "UNUSUAL",
    "VTAB",
    "VTAB_GROUPS",
    "FewShotSet",
    "ImageNetTarget",
    "VtabTask",
    "by_name",
]

UNUSUAL = "Not the usual copy: "  # how a note begins on a list of another length than is known


@dataclass(frozen=True)
class VtabTask:
    """A task of VTAB-1K.

    Attributes:
        name: Its folder in the shared layout, and its name in results.
        title: How the paper's Table 1 calls it.
        group: `natural`, `specialized` or `structured`.
        classes: How many there are.
        test: Images of its test list.
        others: Further names: of scripts, and of folders in other copies.
    """

    name: str
    title: str
    group: str
    classes: int
    test: int
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class FewShotSet:
    """A fine-grained few-shot set.

    Attributes:
        name: Its name in results.
        title: How figures call it.
        classes: How many there are.
        val: Images of its validation list.
        test: Images of its test list.
        others: Further names; folders may be called by any of them.
    """

    name: str
    title: str
    classes: int
    val: int
    test: int
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageNetTarget:
    """A test set that a model trained on ImageNet is carried over to.

    Attributes:
        name: Its folder, and its name in results.
        title: How the paper's Table 2 calls it.
        test: Images of its list.
        classes: The ImageNet classes that it has; empty: all 1,000.
        folders: Folders in it, one of which the images may lie in.
    """

    name: str
    title: str
    test: int
    classes: tuple[int, ...] = ()
    folders: tuple[str, ...] = ()


def _indices(text: str) -> tuple[int, ...]:
    """`"1 4-6"` as 1, 4, 5, 6."""
    ends = [part.split("-") for part in text.split()]
    return tuple(index for each in ends for index in range(int(each[0]), int(each[-1]) + 1))


VTAB = (  # the columns of the paper's Table 1, in their order
    VtabTask("cifar", "CIFAR-100", "natural", 100, 10_000, ("cifar100",)),
    VtabTask("caltech101", "Caltech101", "natural", 102, 6_085, ("caltech",)),
    VtabTask("dtd", "DTD", "natural", 47, 1_880),
    VtabTask("oxford_flowers102", "Flowers102", "natural", 102, 6_149, ("flowers", "oxford_flowers")),
    VtabTask("oxford_iiit_pet", "Pets", "natural", 37, 3_669, ("oxford_pet", "oxford_pets", "pet")),
    VtabTask("svhn", "SVHN", "natural", 10, 26_032),
    VtabTask("sun397", "Sun397", "natural", 397, 21_750, ("sun",)),
    VtabTask("patch_camelyon", "Camelyon", "specialized", 2, 32_768, ("pcam",)),
    VtabTask("eurosat", "EuroSAT", "specialized", 10, 5_400),
    VtabTask("resisc45", "Resisc45", "specialized", 45, 6_300, ("resisc",)),
    VtabTask("diabetic_retinopathy", "Retinopathy", "specialized", 5, 42_670, ("retino",)),
    VtabTask("clevr_count", "Clevr-Count", "structured", 8, 15_000),
    VtabTask("clevr_dist", "Clevr-Dist", "structured", 6, 15_000, ("clevr_distance",)),
    VtabTask("dmlab", "DMLab", "structured", 6, 22_735),
    VtabTask("kitti", "KITTI-Dist", "structured", 4, 711, ("kitti_distance",)),
    VtabTask("dsprites_loc", "dSpr-Loc", "structured", 16, 73_728, ("dsprites_location",)),
    VtabTask("dsprites_ori", "dSpr-Ori", "structured", 16, 73_728, ("dsprites_orientation",)),
    VtabTask("smallnorb_azi", "sNORB-Azim", "structured", 18, 12_150, ("azi", "smallnorb_azimuth", "snorb_azi")),
    VtabTask("smallnorb_ele", "sNORB-Ele", "structured", 9, 12_150, ("ele", "smallnorb_elevation")),
)
VTAB_GROUPS: Mapping[str, tuple[str, ...]] = {  # group -> the names of its tasks, in the paper's order
    group: tuple(task.name for task in VTAB if task.group == group)
    for group in ("natural", "specialized", "structured")
}

FEW_SHOT = (
    FewShotSet("food101", "Food101", 101, 20_200, 30_300, ("food-101",)),
    FewShotSet("stanford_cars", "StanfordCars", 196, 1_635, 8_041, ("standford-cars", "stanford-cars", "cars")),
    FewShotSet(
        "oxford_flowers", "OxfordFlowers102", 102, 1_633, 2_463, ("oxford-flowers102", "oxford-flowers", "flowers")
    ),
    FewShotSet("oxford_pets", "OxfordPets", 37, 736, 3_669, ("oxford-pets", "pets")),
    FewShotSet("fgvc_aircraft", "FGVCAircraft", 100, 3_333, 3_333, ("fgvc-aircraft", "aircraft")),
)

_A = _indices(
    "6 11 13 15 17 22 23 27 30 37 39 42 47 50 57 70 71 76 79 89 90 94 96 97 99 105 107 108 110 113 124 125 130 "
    "132 143 144 150 151 207 234 235 254 277 283 287 291 295 298 301 306-311 313 314 315 317 319 323 324 326 327 "
    "330 334 335 336 347 361 363 372 378 386 397 400 401 402 404 407 411 416 417 420 425 428 430 437 438 445 456 "
    "457 461 462 470 472 483 486 488 492 496 514 516 528 530 539 542 543 549 552 557 561 562 569 572 573 575 579 "
    "589 606 607 609 614 626 627 640-643 658 668 677 682 684 687 701 704 719 736 746 749 752 758 763 765 768 773 "
    "774 776 779 780 786 792 797 802 803 804 813 815 820 823 831 833 835 839 845 847 850 859 862 870 879 880 888 "
    "890 897 900 907 913 924 932 933 934 937 943 945 947 951 954 956 957 959 971 972 980 981 984 986 987 988"
)
_R = _indices(
    "1 2 4 6 8 9 11 13 22 23 26 29 31 39 47 63 71 76 79 84 90 94 96 97 99 100 105 107 113 122 125 130 132 144 145 "
    "147 148 150 151 155 160-163 171 172 178 187 195 199 203 207 208 219 231 232 234 235 242 245 247 250 251 254 "
    "259 260 263 265 267 269 276 277 281 288 289 291 292 293 296 299 301 308-311 314 315 319 323 327 330 334 335 "
    "337 338 340 341 344 347 353 355 361 362 365-368 372 388 390 393 397 401 407 413 414 425 428 430 435 437 441 "
    "447 448 457 462 463 469-472 476 483 487 515 546 555 558 570 579 583 587 593 594 596 609 613 617 621 629 637 "
    "657 658 701 717 724 763 768 774 776 779 780 787 805 812 815 820 824 833 847 852 866 875 883 889 895 907 928 "
    "931-934 936 937 943 945 947 948 949 951 953 954 957 963 965 967 980 981 983 988"
)
IMAGENET_TARGETS = (  # the columns of the paper's Table 2 after ImageNet itself
    ImageNetTarget("imagenetv2", "-V2", 10_000, folders=("imagenetv2-matched-frequency-format-val",)),
    ImageNetTarget("imagenet-sketch", "-Sketch", 50_889, folders=("images",)),
    ImageNetTarget("imagenet-adversarial", "-A", 7_500, _A, ("imagenet-a",)),
    ImageNetTarget("imagenet-rendition", "-R", 30_000, _R, ("imagenet-r",)),
)


def by_name(name: str, sets: tuple[VtabTask, ...] | tuple[FewShotSet, ...]) -> VtabTask | FewShotSet:
    """The set that is called so: by its name, its title or a further name; case and `-` or `_` do not matter.

    Raises:
        ValueError: None is; tells the nearest.
    """
    known = {_plain(each): found for found in sets for each in (*found.others, found.title, found.name)}
    if (found := known.get(_plain(name))) is not None:
        return found
    near = nearest(_plain(name), known, n=1)
    hint = f" Did you mean {known[near[0]].name!r}?" if near else ""
    raise ValueError(f"there is no {name!r}; known: {', '.join(each.name for each in sets)}.{hint}")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
