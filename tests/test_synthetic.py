"""The made-up domain: same seed same bytes, and labels, masks and boxes that tell one story."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.domain.layouts import Csv
from components.domain.reading import load_domain
from components.errors import DataError
from components.synthetic import surfaces
from components.synthetic.surfaces import (
    DEFECTS,
    SURFACES,
    boxes_of,
    create_lot,
    create_surface_defects,
    lot_labels,
    render,
)
from components.workspace import REPOSITORY

SMALL = {"lots": 4, "images_per_lot": 6, "size": 64}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "raw"
    create_surface_defects(folder, **SMALL)
    return folder


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes(raw: Path, tmp_path: Path) -> None:
    create_surface_defects(tmp_path / "again", **SMALL)
    assert read_bytes(tmp_path / "again") == read_bytes(raw)


def test_pixels_are_the_ones_the_committed_data_version_was_made_of() -> None:
    digest = hashlib.sha256()
    for number, label in enumerate(("none", *DEFECTS)):
        picture, mask = render(create_lot(0, number), label, 64, np.random.default_rng([0, number, 1]))
        digest.update(picture.tobytes() + mask.tobytes())
    changed = "the pictures changed: make the data again and commit data/surface_defects/raw.dvc with this digest"
    assert digest.hexdigest()[:16] == "fc98da7a053d427f", changed


def test_other_seed_other_images_same_names(raw: Path, tmp_path: Path) -> None:
    create_surface_defects(tmp_path / "other", seed=1, **SMALL)
    first, second = read_bytes(raw), read_bytes(tmp_path / "other")
    assert first.keys() == second.keys()
    assert not any(first[name] == second[name] for name in first if name.endswith(".jpg"))


def test_a_longer_set_begins_with_the_shorter_one(raw: Path, tmp_path: Path) -> None:
    create_surface_defects(tmp_path / "longer", **(SMALL | {"lots": 5}))
    longer = read_bytes(tmp_path / "longer")
    assert all(longer[name] == data for name, data in read_bytes(raw).items() if name != "labels.csv")


def test_table_lists_every_file(raw: Path) -> None:
    rows = read_table(raw)
    assert tuple(rows[0]) == surfaces.COLUMNS
    assert len(rows) == SMALL["lots"] * SMALL["images_per_lot"]
    listed = {row["image"] for row in rows} | {row["mask"] for row in rows} | {"labels.csv"}
    assert listed == set(read_bytes(raw))


def test_masks_boxes_and_labels_agree(raw: Path) -> None:
    for row in read_table(raw):
        with Image.open(raw / row["image"]) as image, Image.open(raw / row["mask"]) as stored:
            assert image.mode == "L"
            assert image.size == stored.size == (SMALL["size"], SMALL["size"])
            assert stored.mode == "1"
            mask = np.asarray(stored)
        assert mask.any() == (row["label"] != "none") == bool(row["boxes"])
        covered = np.zeros_like(mask)
        for box in filter(None, row["boxes"].split(";")):
            x0, y0, x1, y1 = map(int, box.split())
            covered[y0:y1, x0:x1] = True
            inside = mask[y0:y1, x0:x1]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1])), "not tight"
        assert not (mask & ~covered).any()


def test_boxes_join_touching_corners_and_exclude_their_ends() -> None:
    mask = np.zeros((8, 9), dtype=np.bool_)
    mask[1, 2] = mask[2, 3] = mask[6:8, 6:9] = True
    assert boxes_of(mask) == [(2, 1, 4, 3), (6, 6, 9, 8)]


def test_a_lot_has_one_surface_and_every_class(raw: Path) -> None:
    rows = read_table(raw)
    for lot in {row["lot"] for row in rows}:
        members = [row for row in rows if row["lot"] == lot]
        assert len({row["surface"] for row in members}) == 1
        assert {row["label"] for row in members} == {"none", *DEFECTS}
    assert {row["surface"] for row in rows} == set(SURFACES)


def test_classes_are_balanced_and_none_is_the_most_frequent() -> None:
    labels = [label for number in range(45) for label in lot_labels(0, number, 10)]
    counts = {label: labels.count(label) for label in ("none", *DEFECTS)}
    assert counts == {"none": 90, **dict.fromkeys(DEFECTS, 72)}


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("label", DEFECTS)
def test_every_defect_shows_on_every_surface(label: str, surface: str) -> None:
    lot = create_lot(3, SURFACES.index(surface))
    for draw in range(6):
        picture, mask = render(lot, label, 48, np.random.default_rng([3, draw]))
        assert mask.any()
        assert mask.mean() < 0.9
        assert 20 < picture.mean() < 235
        assert picture.std() > 4


def test_a_stopped_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 24
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_surface_defects(tmp_path / "raw", progress=stop, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / f".raw-{2**22 + 1}.partial"  # no process has such a number
    left.mkdir()
    (left / "junk.jpg").write_bytes(b"half")
    create_surface_defects(tmp_path / "raw", lots=1, images_per_lot=1, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    assert len(read_bytes(tmp_path / "raw")) == 3


@pytest.mark.parametrize("wrong", [{"size": 16}, {"lots": 0}, {"images_per_lot": 0}, {"seed": -1}])
def test_impossible_numbers_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match="expected"):
        create_surface_defects(tmp_path / "raw", **(SMALL | wrong))
    assert not (tmp_path / "raw").exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"Remove it"):
        create_surface_defects(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jpg"]


def test_domain_file_fits_what_is_made() -> None:
    domain = load_domain(REPOSITORY / "data" / "surface_defects" / "domain.yaml")
    assert domain.classes == ("none", *DEFECTS)
    assert isinstance(domain.layout, Csv)
    named = {domain.layout.image, domain.layout.label, domain.layout.mask, domain.layout.boxes, domain.group}
    assert named | set(domain.slices) == set(surfaces.COLUMNS)
