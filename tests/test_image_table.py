"""A table of images: what it may look like, and the one clear error of every table that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from glora.config import build_experiment
from glora.errors import ConfigError, DataError
from glora.tasks.data.image_table import ImageTable
from glora.tasks.images import Preprocess
from glora.tasks.objective import Objective
from glora.tasks.objectives.classify import Classify
from glora.tasks.objectives.multilabel import MultiLabel
from glora.tasks.objectives.regress import Regress
from glora.tasks.task import Task, load_task


def images(root: Path, count: int = 12) -> Path:
    (root / "more").mkdir(parents=True, exist_ok=True)
    for place in range(count):
        name = f"more/{place}.png" if place % 2 else f"{place}.png"
        Image.fromarray(np.full((4, 4, 3), 20 * place, dtype=np.uint8)).save(root / name)
    return root


def name(place: int) -> str:
    return f"more/{place}.png" if place % 2 else f"{place}.png"


def write(root: Path, text: str, *, file: str = "images.csv", encoding: str = "utf-8") -> Path:
    (root / file).write_bytes(text.encode(encoding))
    return root


def rows(*columns: Any, count: int = 12) -> str:
    return "".join(",".join([name(k), *(str(column(k)) for column in columns)]) + "\n" for k in range(count))


def load(root: Path, objective: Objective | None = None, **settings: Any) -> Task:
    return load_task(root, objective=objective or Classify(), **settings)


def everything(task: Task) -> dict[str, Any]:
    """File -> target, over all splits."""
    assert task.test is not None
    found: dict[str, Any] = {}
    for split in (task.train, task.val, task.test):
        for item, target in zip(split.items, split.targets.tolist(), strict=True):  # type: ignore[attr-defined]
            found[item.name] = target
    return found


# -- what a table may look like


def test_a_column_of_classes(tmp_path: Path) -> None:
    root = write(images(tmp_path / "pets"), "file,animal\n" + rows(lambda k: "cat" if k < 6 else "dog"))
    task = load(root)
    assert (task.name, task.objective.strata_names, task.train.unit) == ("pets", ("cat", "dog"), "images")
    assert everything(task) == {f"{k}.png": int(k >= 6) for k in range(12)}
    assert [len(split) for split in task.splits.values()] == [8, 2, 2]
    assert task.train.strata == tuple(task.train.targets.tolist())
    batch = task.prepared(Preprocess((4, 4))).train.batch([0, 1])
    assert batch.inputs.shape == (2, 3, 4, 4)
    assert load(root / "images.csv").fingerprint == task.fingerprint
    other = write(tmp_path / "pets", "file,animal\n" + rows(lambda k: "cat" if k < 5 else "dog"))
    assert load(other).fingerprint != task.fingerprint


def test_semicolons_tabs_and_parquet_are_read_alike(tmp_path: Path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    plain = "file,kind,split\n" + rows(lambda k: "ab"[k % 2], lambda k: ["train", "val", "test"][k // 2 % 3])
    wanted = load(write(images(tmp_path), plain))
    (tmp_path / "images.csv").unlink()
    values = [line.split(",") for line in plain.split()]
    table = arrow.table({head: [row[k] for row in values[1:]] for k, head in enumerate(values[0])})
    for file in ("images.tsv", "images.parquet", "semicolons.csv", "other.tsv", "other.parquet"):
        if file.endswith(".parquet"):
            parquet.write_table(table, tmp_path / file)
        else:
            write(tmp_path, plain.replace(",", "\t" if file.endswith(".tsv") else ";"), file=file)
        named = file.startswith("images.")
        found = load(tmp_path if named else tmp_path / file)
        assert found.fingerprint == wanted.fingerprint
        assert {name: len(split) for name, split in found.splits.items()} == {"train": 4, "val": 4, "test": 4}
        if named:
            (tmp_path / file).unlink()


def test_lists_truth_and_numbers_of_parquet_are_targets(tmp_path: Path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    files = [name(k) for k in range(12)]
    columns = {"file": files, "tags": [["a", "b"], ["b"], []] * 4, "b": [True, True, False] * 4,
               "a": [True, False, False] * 4, "size": [k / 2 for k in range(12)]}  # fmt: skip
    parquet.write_table(arrow.table(columns), images(tmp_path) / "images.parquet")
    labels = load(tmp_path, MultiLabel(), columns=["tags"])
    assert everything(labels) == everything(load(tmp_path, MultiLabel(labels=("a", "b")), columns=["a", "b"]))
    assert everything(labels)["0.png"] == [1, 1]
    assert everything(load(tmp_path, Regress(), columns=["size"])) == {f"{k}.png": [k / 2] for k in range(12)}
    parquet.write_table(
        arrow.table({"file": [*files, "gone.png"], "kind": ["a", "b"] * 6 + ["a"]}), tmp_path / "images.parquet"
    )
    with pytest.raises(DataError, match=r"images.parquet, row 12, names the image 'gone.png', which is not there"):
        load(tmp_path)


def test_two_tables_of_a_folder_are_refused(tmp_path: Path) -> None:
    text = "file,kind\n" + rows(lambda k: "ab"[k % 2])
    write(write(images(tmp_path), text), text.replace(",", "\t"), file="images.tsv")
    with pytest.raises(DataError, match=r"has the tables images.csv, images.tsv. Name one"):
        load(tmp_path)


def test_labels_in_one_column_or_a_column_each(tmp_path: Path) -> None:
    root = images(tmp_path)
    write(root, "file,tags\n" + rows(lambda k: "a|b" if k % 3 == 0 else "b" if k % 3 == 1 else ""), file="one.csv")
    write(root, "file,b,a\n" + rows(lambda k: int(k % 3 < 2), lambda k: int(k % 3 == 0)), file="each.csv")
    one, each = load(root / "one.csv", MultiLabel()), load(root / "each.csv", MultiLabel(labels=("a", "b")))
    assert one.name == "one"
    assert one.objective.model_dump()["labels"] == ("a", "b")
    assert everything(one) == everything(each) == {f"{k}.png": [[1, 1], [0, 1], [0, 0]][k % 3] for k in range(12)}
    assert one.train.strata is None
    assert "stratified" not in " ".join(one.notes)


def test_numbers_in_one_or_more_columns(tmp_path: Path) -> None:
    root = write(images(tmp_path), "file,age,mass\n" + rows(lambda k: k, lambda k: f"{k / 2}e1"))
    both, age = load(root, Regress()), load(root, Regress(), columns=["age"])
    assert everything(both) == {f"{k}.png": [k, 5 * k] for k in range(12)}
    assert everything(age) == {f"{k}.png": [k] for k in range(12)}
    objective = both.objective.model_dump()
    assert objective["columns"] == ("age", "mass")
    assert objective["mean"] == pytest.approx(both.train.targets.mean(0).tolist())
    assert objective["std"] == pytest.approx(both.train.targets.std(0, correction=0).tolist())


def test_columns_are_named_in_the_settings(tmp_path: Path) -> None:
    text = "id,path,class,part\n" + "".join(
        f"{k},{name(k)},{'ab'[k % 2]},{['train', 'Test', 'valid'][k // 2 % 3]}\n" for k in range(12)
    )
    task = load(write(images(tmp_path), text), image="path", columns="class", split="part")
    assert {key: len(split) for key, split in task.splits.items()} == {"train": 4, "val": 4, "test": 4}
    assert {item.name for item in task.test.items} == {"2.png", "3.png", "8.png", "9.png"}  # type: ignore[union-attr]
    settings = {"source": str(tmp_path), "image": "path", "columns": ["class"], "split": "part"}
    experiment = build_experiment({"data": settings})
    assert experiment.data.load(Classify()).fingerprint == task.fingerprint  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"data.column: no such setting. Did you mean 'columns'"):
        build_experiment({"data": {"source": str(tmp_path), "column": "class"}})


def test_splits_of_a_column_are_kept_and_val_is_cut_where_there_is_none(tmp_path: Path) -> None:
    text = "file,kind,split\n" + rows(lambda k: "ab"[k % 2], lambda k: "test" if k > 7 else "train")
    task = load(write(images(tmp_path), text))
    assert {key: len(split) for key, split in task.splits.items()} == {"train": 6, "val": 2, "test": 4}
    assert any("There is no val split: 2 val images cut from the training images" in note for note in task.notes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_marks_quotes_spaces_and_blank_lines_change_nothing(tmp_path: Path, encoding: str, newline: str) -> None:
    plain = load(
        write(images(tmp_path), "file,kind\n" + rows(lambda k: "a, b" if k % 2 else "c").replace("a, b", '"a, b"'))
    )
    lines = [f'" {name(k)}","{"a, b" if k % 2 else "c"} "{newline * (1 + k % 3)}' for k in range(12)]
    text = newline.join(["", 'file , "kind"', " , ", "".join(lines)])
    text = text.replace('file , "kind"', "file , kind")
    found = load(write(tmp_path, text, encoding=encoding))
    assert found.objective == plain.objective
    assert found.fingerprint == plain.fingerprint
    assert found.objective.strata_names == ("a, b", "c")


def test_files_elsewhere_and_absolute_paths(tmp_path: Path) -> None:
    root = images(tmp_path / "pictures")
    (tmp_path / "table").mkdir()
    lines = [f"{root / name(k) if k % 3 else '../pictures/' + name(k)},{'ab'[k % 2]}" for k in range(12)]
    bad = root / "bad.png"
    bad.write_text("no image")
    write(tmp_path / "table", "\n".join(["file,kind", *lines, f"{bad},a"]))
    task = load(tmp_path / "table", on_bad_image="skip")
    assert sum(map(len, task.splits.values())) == 12
    assert any("Skipped 1 unreadable image" in note and "bad.png" in note for note in task.notes)


# -- unreadable and repeated images


def test_unreadable_images_stop_or_are_skipped_and_said(tmp_path: Path) -> None:
    root = write(images(tmp_path), "file,kind\n" + rows(lambda k: "ab"[k % 2]))
    (root / "4.png").write_text("no image")
    with pytest.raises(DataError, match=r"4\.png' cannot be read.*--on-bad-image skip"):
        load(root)
    task = load(root, on_bad_image="skip")
    assert sum(map(len, task.splits.values())) == 11
    assert "4.png" not in everything(task)
    assert any("Skipped 1 unreadable image: 4.png" in note for note in task.notes)
    write(root, "file,kind\n4.png,a\n")
    with pytest.raises(DataError, match=r"names no image that can be read"):
        load(root, on_bad_image="skip")


def test_an_image_named_twice_is_told(tmp_path: Path) -> None:
    text = "file,kind\n" + rows(lambda k: "ab"[k % 2]) + "\n2.png,a\n4.png,b\n2.png,b\n"
    [note] = [note for note in load(write(images(tmp_path), text)).notes if "more than once" in note]
    assert note == "2 images are named more than once, and may be in train and in test: 2.png in lines 4, 15, 17."


# -- tables that do not fit


def refused(root: Path, text: str, words: str, objective: Objective | None = None, **settings: Any) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load(write(root, text), objective, **settings)
    assert caught.value.allowed or caught.value.remedy


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    root = images(tmp_path)
    good = rows(lambda k: "ab"[k % 2])
    with pytest.raises(DataError, match=r"no file .*nowhere.csv"):
        load(root / "nowhere.csv")
    refused(root, "", "no lines below its header")
    refused(root, "file,kind\n\n", "no lines below its header.*images.csv")
    refused(root, "file|kind\n" + good.replace(",", "|"), "one column alone, 'file|kind'.*commas, semicolons or tabs")
    refused(root, "file\n0.png\n", "one column alone, 'file'")
    refused(root, "file,kind,kind\n" + good, "several columns 'kind'")
    refused(root, "file,,kind\n" + good, "a column without a name")
    refused(root, "file,kind\n" + good + "0.png\n", "images.csv, line 14, has 1 values, and the header 2.*quotes")
    refused(root, "file,kind\n\n0.png,a,b\n", "line 3, has 3 values")
    refused(root, 'file,kind\n0.png,"a"b\n', "line 2, cannot be read.*comma-separated UTF-8")
    refused(root, "file,split\n" + rows(lambda k: "train"), "no column to predict beside file, split")
    (root / "images.csv").write_bytes("file,kind\n0.png,é\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot be read.*UTF-8"):
        load(root)


def test_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    root, text = images(tmp_path), "file,kind\n" + rows(lambda k: "ab"[k % 2])
    refused(root, text, "no column 'knd'. Its columns are file, kind. Did you mean 'kind'", columns=["knd"])
    refused(root, text, "no column 'fil'.*Did you mean 'file'", image="fil")
    refused(root, text, "no column 'part'", split="part")
    more = "file,kind,size\n" + rows(lambda k: "ab"[k % 2], lambda k: k)
    refused(root, more, r"'classify' got 2 columns: kind, size. It takes one column.*data.columns=\[NAME\]")


def test_values_that_do_not_fit_are_named_with_file_and_line(tmp_path: Path) -> None:
    root, good = images(tmp_path), rows(lambda k: "ab"[k % 2])
    refused(root, "file,kind\n" + good + "\n7.png,a\n", "line 15, names the image '7.png', which is not there")
    refused(root, "file,kind\n" + good + "more/12.png,a\n", "line 14, .*Names are relative to.*Did you mean")
    refused(root, "file,kind\n" + good + ",a\n", "line 14, names no image")
    refused(root, "file,kind\n" + good + "0.png,\n", "images.csv, line 14, has no class")
    refused(root, "file,kind\n" + rows(lambda k: "a"), "only one class, 'a'")
    refused(root, "file,kind\n" + good + "0.png,c\n", "Class 'c' has too few images: 1")
    number = "file,age,split\n" + rows(lambda k: k, lambda k: ["train", "val", "test"][k % 3])
    refused(root, number + "0.png,old,test\n", "images.csv, line 14, has 'old' for a number", Regress())
    refused(root, number + "0.png,,test\n", "images.csv, line 14, has '' for a number", Regress())
    bits = "file,a,b\n" + rows(lambda k: k % 2, lambda k: 1 - k % 2)
    refused(root, bits + "0.png,2,0\n", "images.csv, line 14, has '2' for a label. Allowed: 0 and 1", MultiLabel())
    tags = "file,tags\n" + rows(lambda k: "a|b")
    refused(root, tags + "0.png,a|bb\n", "images.csv, line 14, has the label 'bb'", MultiLabel(labels=("a", "b")))
    refused(root, "file,tags\n" + rows(lambda k: ""), "No example has a label", MultiLabel())
    refused(root, "file,kind\n" + rows(lambda k: "ab"[k % 2], count=2), "too few images")


def test_splits_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    root = images(tmp_path)

    def text(*splits: str) -> str:
        return "file,kind,split\n" + rows(lambda k: "ab"[k // 2 % 2], lambda k: splits[k % len(splits)])

    refused(root, text("train", "fold3"), "images.csv, line 3, has the split 'fold3'. Allowed: train, val and test")
    refused(root, text("train", ""), "line 3, has the split ''")
    refused(root, text("train", "val"), "'split' of images.csv has train, val alone.*Name the missing split")
    refused(root, text("test"), "has test alone")


# -- labelled examples for a model that is there


def test_another_table_is_read_by_a_fitted_objective(tmp_path: Path) -> None:
    root = write(images(tmp_path / "one"), "file,age,mass\n" + rows(lambda k: k, lambda k: 2 * k))
    objective = load(root, Regress()).objective
    other = write(
        images(tmp_path / "other"), "file,mass,age,split\n" + rows(lambda k: 2 * k, lambda k: k, lambda k: "test")
    )

    found, notes = ImageTable(source=str(other)).load_all(objective)
    assert notes == []
    assert torch.equal(found.targets, torch.tensor([[float(k), 2.0 * k] for k in range(12)]))
    write(other, "file,size\n" + rows(lambda k: k))
    with pytest.raises(
        DataError, match=r"images.csv has the columns size. To be predicted are age, mass.*data.columns"
    ):
        ImageTable(source=str(other)).load_all(objective)
