"""Masks as class maps: what `tessera import --task segmentation` understands, and what is quarantined or left out."""

import shlex
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from samples import (
    explain,
    make_domain,
    picture,
    save_ids,
    save_mask,
    save_picture,
    write_csv,
    write_folders,
    write_instances,
    write_masks,
    write_multilabel,
    write_table,
)

from components.data.accounts import summarise
from components.data.annotations.layouts import read_tree
from components.data.checks.validation import check_rows
from components.data.store.describing import describe_folder, require_same_task, write_domain
from components.data.store.importing import import_folder
from components.data.store.versions import compare_annotations, list_annotations
from components.domain.reading import load_domain, render_layout
from components.errors import DataError, DomainError
from components.files import hash_file
from components.records.maps import IGNORE, decode_map
from components.workspace import Workspace

PATCH = 96  # pixels of a patch of `save_ids`, and of `save_mask`
WHOLE = 48 * 40


def pictures(raw, *names):
    for number, name in enumerate(names):
        save_picture(raw / name, 31 * number + len(name))


def sound_folder_with_empty_masks(raw):
    """As magnetic_tile: the folder of sound pictures has masks, too, and all of them are black."""
    for label in ("free", "crack"):
        pictures(raw, *(f"images/{label}/{label}{n}.png" for n in range(3)))
        for n in range(3):
            save_ids(raw / f"masks/{label}/{label}{n}.png", [255] if label == "crack" else [])


def mvtec(raw):
    pictures(raw, *(f"train/good/t{n}.png" for n in range(4)), "test/good/g.png", "test/crack/c.png", "test/hole/h.png")
    save_mask(raw / "ground_truth/crack/c_mask.png")
    save_mask(raw / "ground_truth/hole/h_mask.png")


def beside_in_classes(raw):
    for label in ("ok", "benign"):
        pictures(raw, f"{label}/{label}1.png", f"{label}/{label}2.png")
    for n in (1, 2):
        save_mask(raw / f"benign/benign{n}_mask.png")


def several_numbers(raw):
    write_masks(raw, pictures=4)
    save_ids(raw / "masks/p00.png", [1, 2, 255])


def black_and_white(raw):
    write_masks(raw, pictures=4)
    save_ids(raw / "masks/p01.png", [255])
    save_ids(raw / "masks/p03.png", [255])


def no_black(raw):
    write_masks(raw, pictures=3)
    for n in range(3):
        mask = np.full((40, 48), 1 + n % 2, np.uint8)
        mask[:4] = 3
        Image.fromarray(mask).save(raw / f"masks/p0{n}.png")


def lots(raw):
    """Folders called like lots are groups, not classes."""
    for lot in range(3):
        write_masks(raw / f"lot{lot}", pictures=2)
        for kind in ("images", "masks"):
            for n in range(2):
                path = raw / f"{kind}/lot{lot}/{lot}{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                (raw / f"lot{lot}/{kind}/p{n:02d}.png").rename(path)


def table_of_masks(raw):
    """A table as the bundled domain has it: the label of sound rows is `none`, and their masks are black."""
    rows = []
    for n in range(6):
        save_picture(raw / f"images/{n}.png", n)
        save_ids(raw / f"masks/{n}.png", [255] if n % 2 else [])
        rows.append((f"images/{n}.png", "pit" if n % 2 else "none", f"masks/{n}.png"))
    write_table(raw / "labels.csv", [("image", "label", "mask"), *rows])


class Tree(NamedTuple):
    """What is read of a tree under segmentation. pixels: of every class, summed over the pictures."""

    write: Any
    layout: str
    task: Any
    pixels: dict[str, int]
    found: int
    used: int
    layout_asked: str | None = None
    group: str | None = None


TREES = [
    Tree(sound_folder_with_empty_masks, "{kind: folders, images: images, masks: masks}",
         {"kind": "segmentation", "background": "free"}, {"free": 6 * WHOLE - 3 * PATCH, "crack": 3 * PATCH}, 12, 12),
    Tree(mvtec, "{kind: folders, images: <split>, masks: ground_truth}",
         {"kind": "segmentation", "background": "good"},
         {"good": 7 * WHOLE - 2 * PATCH, "crack": PATCH, "hole": PATCH}, 9, 9),
    Tree(beside_in_classes, "{kind: folders, masks: .}", {"kind": "segmentation", "background": "ok"},
         {"ok": 4 * WHOLE - 2 * PATCH, "benign": 2 * PATCH}, 6, 6),
    Tree(lambda raw: write_masks(raw, 4), "{kind: masks, ids: {object: 1}}", "segmentation",
         {"background": 4 * WHOLE - 2 * PATCH, "object": 2 * PATCH}, 8, 8),
    Tree(black_and_white, "{kind: masks, ids: {object: 255}}", "segmentation",
         {"background": 4 * WHOLE - 2 * PATCH, "object": 2 * PATCH}, 8, 8),
    Tree(several_numbers, "{kind: masks, ids: {class_1: 1, class_2: 2}, ignore: [255]}", "segmentation",
         {"background": 4 * WHOLE - 5 * PATCH, "class_1": 3 * PATCH, "class_2": PATCH}, 8, 8),
    Tree(no_black, "{kind: masks, ids: {class_1: 1, class_2: 2, class_3: 3}}",
         {"kind": "segmentation", "background": None},
         {"class_1": 2 * 36 * 48, "class_2": 36 * 48, "class_3": 3 * 4 * 48}, 6, 6),
    Tree(lots, "{kind: masks, images: images/<group>, masks: masks/<group>, ids: {object: 1}}", "segmentation",
         {"background": 6 * WHOLE - 3 * PATCH, "object": 3 * PATCH}, 12, 12, group="group"),
    Tree(table_of_masks, "{kind: csv, mask: mask}", {"kind": "segmentation", "background": "none"},
         {"none": 6 * WHOLE - 3 * PATCH, "pit": 3 * PATCH}, 12, 12),
    Tree(lambda raw: write_instances(raw, 2), "{kind: instances, label: cell}", "segmentation",
         {"background": 2 * (160 * 120 - 740), "cell": 2 * 740}, 4, 4, "{kind: instances, label: cell}"),
]  # fmt: skip


def understand(raw, layout=None, task="segmentation"):
    domain = describe_folder(raw, "tiles", layout, None, raw / "domain.yaml", task)
    return domain, read_tree(domain, raw)


def check(domain, raw):
    return check_rows(read_tree(domain, raw).rows, raw, domain)


def sum_pixels(domain, rows):
    """Counted from the maps themselves, not from the column `pixels`."""
    maps = [decode_map(data) for data in rows["class_map"].drop_nulls()]
    return {name: sum(int((shown == k).sum()) for shown in maps) for k, name in enumerate(domain.classes)}


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.layout)
def test_a_tree_of_masks_is_read_whole(tmp_path, tree):
    tree.write(tmp_path)
    domain, understood = understand(tmp_path, tree.layout_asked)
    assert render_layout(domain.layout) == tree.layout
    assert (domain.task, domain.group) == (tree.task, tree.group)
    assert sum_pixels(domain, understood.rows) == tree.pixels
    assert list(domain.classes) == list(tree.pixels)  # the background first
    assert understood.rows["pixels"].list.sum().sum() == sum(tree.pixels.values())
    counts = understood.pictures
    assert (counts.found, counts.used, counts.quarantined, len(counts.ignored)) == (tree.found, tree.used, 0, 0)
    path = tmp_path / "written/tiles/domain.yaml"
    write_domain(domain, path)
    assert load_domain(path) == domain


# What cannot be used is quarantined by name


def jpeg(raw):
    picture(1).save(raw / "masks/p00.jpg")
    (raw / "masks/p00.png").unlink()


def turn_picture(raw):
    """The file is stored on its side; its mask was drawn on the file as it is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(700).save(raw / "images/p00.png", exif=exif)


def save_half_transparent(raw):
    Image.fromarray(np.full((40, 48, 4), 1, np.uint8), "RGBA").save(raw / "masks/p00.png")


FAULTS = [
    (jpeg, "found a JPEG"),
    (lambda raw: save_ids(raw / "masks/p00.png", [7]), "found 7 (96 pixels)"),
    (lambda raw: save_ids(raw / "masks/p00.png", [1], width=47), "expected a mask of 48 x 40 pixels; found 47 x 40"),
    (lambda raw: (raw / "masks/p00.png").write_bytes(b""), "found an empty file"),
    (lambda raw: save_ids(raw / "masks/p00.bmp", [1]), "found masks/p00.bmp, masks/p00.png"),
    (save_half_transparent, "transparent pixels"),
    (turn_picture, "the picture is turned by EXIF"),
    (lambda raw: Image.fromarray(np.full((40, 48), 9, np.uint8)).save(raw / "masks/p00.png"), "at least one labelled"),
]
FAULTY = {"kind": "masks", "ids": {"crack": 1}, "ignore": [9]}


@pytest.mark.parametrize(("damage", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_a_mask_that_does_not_fit_is_quarantined_by_name(tmp_path, damage, words):
    write_masks(tmp_path, pictures=4)
    damage(tmp_path)
    domain = make_domain(task="segmentation", classes=["background", "crack"], layout=FAULTY)
    validated = check(domain, tmp_path)
    assert [item.path for item in validated.quarantined] == ["images/p00.png"]
    assert words in str(validated.quarantined[0].reason)
    assert validated.fit.height == 3


def test_masks_of_many_forms_give_the_same_map(tmp_path):
    write_masks(tmp_path, pictures=6)
    ids = np.zeros((40, 48), np.uint8)
    ids[4:20, 2:8] = 1
    forms = {
        "p00": Image.fromarray(ids.astype(bool)),
        "p01": Image.fromarray(ids.astype(np.uint16)),
        "p02": Image.fromarray(ids, "P"),
        "p03": Image.fromarray(np.dstack([ids] * 3)),
        "p04": Image.fromarray(np.dstack([ids] * 3 + [np.full_like(ids, 255)])),
        "p05": Image.fromarray(ids),
    }
    forms["p02"].putpalette([0, 0, 0, 200, 30, 30])
    for name, mask in forms.items():
        mask.save(tmp_path / f"masks/{name}.png")
    layout = {"kind": "masks", "ids": {"crack": 1}}
    rows = read_tree(make_domain(task="segmentation", classes=["background", "crack"], layout=layout), tmp_path).rows
    assert all(np.array_equal(decode_map(data), ids) for data in rows["class_map"])
    colours = np.zeros((40, 48, 3), np.uint8)
    colours[4:20, 2:8] = (255, 0, 128)
    for name in forms:
        Image.fromarray(colours).save(tmp_path / f"masks/{name}.png")
    layout = {"kind": "masks", "ids": {"crack": "#FF0080"}}
    rows = read_tree(make_domain(task="segmentation", classes=["background", "crack"], layout=layout), tmp_path).rows
    assert all(np.array_equal(decode_map(data), ids) for data in rows["class_map"])


def test_without_a_background_black_is_not_known(tmp_path):
    write_masks(tmp_path, pictures=2)
    save_ids(tmp_path / "masks/p00.png", [2])
    task = {"kind": "segmentation", "background": None}
    layout = {"kind": "masks", "ids": {"crack": 1, "pit": 2}}
    rows = read_tree(make_domain(task=task, classes=["crack", "pit"], layout=layout), tmp_path).rows
    shown = decode_map(rows["class_map"][0])
    assert set(np.unique(shown).tolist()) == {1, IGNORE}
    assert rows["labels"].to_list() == [["pit"], ["crack"]]


def test_a_mask_or_a_picture_alone(tmp_path):
    write_masks(tmp_path, pictures=4)
    save_ids(tmp_path / "masks/lost.png", [1])
    (tmp_path / "masks/p03.png").unlink()
    facts = {"classes": ["background", "object"], "layout": {"kind": "masks", "ids": {"object": 1}}}
    understood = read_tree(make_domain(task="segmentation", **facts), tmp_path)
    problems = understood.rows.drop_nulls("problem")
    assert problems["path"].to_list() == ["masks/lost.png"]
    assert "a picture of the same name" in explain(problems["problem"][0])
    (left,) = understood.pictures.ignored
    assert left.path == "images/p03.png"
    assert "unannotated: background" in left.reason
    assert [count for what, count in understood.account.notes.items() if "left out" in what] == [1]
    counts = understood.pictures
    assert counts.found == counts.used + counts.quarantined + len(counts.ignored) == 8
    task = {"kind": "segmentation", "unannotated": "background"}
    understood = read_tree(make_domain(task=task, **facts), tmp_path)
    assert understood.rows.filter(path="images/p03.png")["labels"].to_list() == [["background"]]
    assert understood.pictures.ignored == ()


def test_class_folders_and_their_masks_must_agree(tmp_path):
    sound_folder_with_empty_masks(tmp_path)
    save_ids(tmp_path / "masks/free/free0.png", [255])
    save_mask(tmp_path / "masks/crack/crack1_seg.png")
    (tmp_path / "masks/crack/crack1.png").rename(tmp_path / "masks/crack/crack1_mask.png")
    (tmp_path / "masks/crack/crack2.png").unlink()
    save_mask(tmp_path / "masks/crack/nobody.png")
    task = {"kind": "segmentation", "background": "free"}
    layout = {"kind": "folders", "images": "images", "masks": "masks"}
    understood = read_tree(make_domain(task=task, classes=["free", "crack"], layout=layout), tmp_path)
    problems = {path: explain(problem) for path, problem in understood.rows.select("path", "problem").rows() if problem}
    assert "'free' is the background" in problems.pop("images/free/free0.png")
    assert "crack1_mask.png, masks/crack/crack1_seg.png" in problems.pop("images/crack/crack1.png")
    assert "a picture of the same name" in problems.pop("masks/crack/nobody.png")
    assert not problems
    assert [item.path for item in understood.pictures.ignored if "images" in item.path] == ["images/crack/crack2.png"]
    both = task | {"unannotated": "background"}
    understood = read_tree(make_domain(task=both, classes=["free", "crack"], layout=layout), tmp_path)
    problem = understood.rows.filter(path="images/crack/crack2.png")["problem"][0]
    assert "a mask that shows where 'crack' is" in explain(problem)


def test_several_masks_of_a_picture_in_a_table_and_a_mask_of_two_pictures(tmp_path):
    table_of_masks(tmp_path)
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("images/1.png,pit,masks/3.png\n")
    task = {"kind": "segmentation", "background": "none"}
    layout = {"kind": "csv", "mask": "mask"}
    rows = read_tree(make_domain(task=task, classes=["none", "pit"], layout=layout), tmp_path).rows
    problems = [(path, explain(problem)) for path, problem in rows.select("path", "problem").rows() if problem]
    assert [path for path, _ in problems] == ["images/1.png", "images/1.png", "images/3.png"]
    assert "one mask per picture; found masks/1.png, masks/3.png" in problems[0][1]
    assert "shared by images/1.png, images/3.png" in problems[2][1]
    assert rows["problem"].null_count() == 4


# The task of a new domain


def asks(task, words, write, layout=None):
    return pytest.param(task, words, write, layout, id=f"{task} {words}")


@pytest.mark.parametrize(
    ("task", "words", "write", "layout"),
    [
        asks("segmentaton", "Did you mean 'segmentation'", write_masks),
        asks("{kind: segmentation, foo: 1}", "unknown key 'foo'", write_masks),
        asks("multilabel", "one of the layouts csv, parquet", write_folders),
        asks("segmentation", "the class of every pixel", write_folders),
        asks("multilabel", "several labels joined by a `separator`", write_csv),
        asks("classification", "expected one label per row", write_multilabel),
        asks("{kind: segmentation, background: ok}", "layout.background: sound", write_masks,
             "{kind: masks, background: sound}"),
    ],
)  # fmt: skip
def test_a_task_that_the_folder_cannot_serve_is_refused(tmp_path, task, words, write, layout):
    write(tmp_path)
    with pytest.raises((DomainError, DataError)) as caught:
        understand(tmp_path, layout, task)
    assert words in str(caught.value)


@pytest.mark.parametrize(("task", "column"), [("classification", "label"), ("multilabel", "labels")])
def test_masks_serve_other_tasks_that_are_asked_for(tmp_path, task, column):
    write_masks(tmp_path, pictures=4)
    domain, understood = understand(tmp_path, None, task)
    assert domain.task == task
    assert understood.rows[column].null_count() == 0


def test_masks_that_hold_no_class_numbers_are_refused(tmp_path):
    write_masks(tmp_path, pictures=2)
    colours = np.zeros((40, 48, 3), np.uint8)
    colours[4:20, 2:8] = (255, 0, 128)
    colours[30:34, 2:8] = (0, 0, 128)
    for n in range(2):
        Image.fromarray(colours).save(tmp_path / f"masks/p0{n}.png")
    with pytest.raises(DataError, match="#ff0080") as caught:
        understand(tmp_path)
    written = shlex.split(caught.value.hint.partition("--layout ")[2].rstrip("."))[0]
    domain, _ = understand(tmp_path, written)
    assert domain.classes == ("background", "class_1", "class_2")
    soft = (np.arange(WHOLE) % 200).astype(np.uint8).reshape(40, 48)
    for n in range(2):
        Image.fromarray(soft).save(tmp_path / f"masks/p0{n}.png")
    with pytest.raises(DataError, match="199 different numbers"):
        understand(tmp_path, "{kind: masks}")


def test_a_known_domain_keeps_its_task(tmp_path):
    domain = make_domain(layout="masks", classes=["background", "class_1"])
    for task in (None, "classification", "{kind: classification}"):
        require_same_task(domain, task, tmp_path)
    with pytest.raises(DomainError, match="another name with --domain"):
        require_same_task(domain, "segmentation", tmp_path)


# Copies and changes


def test_copies_with_other_maps_are_a_conflict_and_with_equal_ones_a_repeat(tmp_path):
    write_masks(tmp_path, pictures=4)
    for copy, ids in (("p10", [1]), ("p11", [1, 1])):
        (tmp_path / f"images/{copy}.png").write_bytes(
            (tmp_path / f"images/p{copy[1:]}.png").read_bytes()
        ) if 0 else None
        (tmp_path / f"images/{copy}.png").write_bytes((tmp_path / "images" / f"p0{copy[2]}.png").read_bytes())
        save_ids(tmp_path / f"masks/{copy}.png", ids)
    layout = {"kind": "masks", "ids": {"crack": 1}}
    save_ids(tmp_path / "masks/p00.png", [1])
    domain = make_domain(task="segmentation", classes=["background", "crack"], layout=layout)
    validated = check(domain, tmp_path)
    reasons = {item.path: str(item.reason) for item in validated.quarantined}
    assert "which is kept" in reasons.pop("images/p10.png")
    assert {path for path, why in reasons.items() if "a label conflict" in why} == {"images/p01.png", "images/p11.png"}


def test_an_import_adds_and_a_changed_mask_needs_leave(tmp_path):
    workspace, first, second = Workspace(tmp_path / "w"), tmp_path / "first", tmp_path / "second"
    write_masks(first, pictures=4)
    imported = import_folder(workspace, first, "tiles", task="segmentation")
    assert imported.domain.classes == ("background", "object")
    pictures(second, "images/new.png")
    save_ids(second / "masks/new.png", [1])
    assert import_folder(workspace, second, "tiles", task="segmentation").added == 2
    save_ids(second / "masks/new.png", [1, 1])
    with pytest.raises(DataError, match=r"other content at masks/new\.png"):
        import_folder(workspace, second, "tiles")
    assert import_folder(workspace, second, "tiles", force=True).changed == 1
    with pytest.raises(DomainError, match="--task classification"):
        import_folder(workspace, second, "tiles", task="classification")


def test_versions_differ_by_pixels_and_not_by_how_a_mask_is_stored(tmp_path):
    domain = make_domain(task="segmentation", classes=["background", "class_1"], layout="masks")
    states = []
    write_masks(tmp_path, pictures=4)
    for change in (None, "stored otherwise", "other pixels"):
        if change:
            mask = np.asarray(Image.open(tmp_path / "masks/p01.png")).copy()
            mask[0, 0] = change == "other pixels"
            Image.fromarray(mask).save(tmp_path / "masks/p01.png", compress_level=0)
        listing = {
            path.relative_to(tmp_path).as_posix(): hash_file(path) for path in tmp_path.rglob("*.png") if path.is_file()
        }
        states.append(list_annotations(read_tree(domain, tmp_path).rows, listing))
    found = [compare_annotations(states[0], state).model_dump() for state in states]
    assert [state["relabelled"] for state in found] == [0, 0, 1]
    assert {state["added"] + state["removed"] for state in found} == {0}


def test_renamed_classes_and_a_renamed_background(tmp_path):
    sound_folder_with_empty_masks(tmp_path)
    (tmp_path / "masks/free/free0.png").unlink()
    facts = {"layout": {"kind": "folders", "images": "images", "masks": "masks"}, "classes": ["good", "defect"]}
    facts |= {"task": {"kind": "segmentation", "background": "good"}, "rename": {"free": "good", "crack": "defect"}}
    domain = make_domain(**facts)
    understood = read_tree(domain, tmp_path)
    assert sum_pixels(domain, understood.rows) == {"good": 6 * WHOLE - 3 * PATCH, "defect": 3 * PATCH}
    assert understood.pictures.used == 11


def test_a_class_in_few_pixels_is_a_warning(tmp_path):
    write_masks(tmp_path, pictures=4)
    domain = make_domain(task="segmentation", classes=["background", "class_1"], layout="masks")
    assert not [line for line in check(domain, tmp_path).warnings if "labelled pixels" in line]
    for n in (1, 3):
        mask = np.zeros((40, 48), np.uint8)
        mask[0, 0] = n == 1
        Image.fromarray(mask).save(tmp_path / f"masks/p0{n}.png")
    (line,) = [line for line in check(domain, tmp_path).warnings if "labelled pixels" in line]
    assert "class_1 0.0130%" in line


def test_a_summary_has_no_example_without_a_label(tmp_path):
    write_masks(tmp_path, pictures=2)
    save_ids(tmp_path / "masks/p00.png", [7])
    domain = make_domain(task="segmentation", classes=["background", "crack"], layout=FAULTY)
    summary = summarise(domain, read_tree(domain, tmp_path).rows)
    assert [(item.path, item.label) for item in summary.examples] == [("images/p01.png", "crack")]
    assert summary.classes == {"background": 1, "crack": 1}


def test_255_beside_other_numbers_is_ignored_where_the_layout_is_named(tmp_path):
    several_numbers(tmp_path)
    domain, _ = understand(tmp_path, "{kind: masks, masks: masks}")
    assert render_layout(domain.layout) == "{kind: masks, ids: {class_1: 1, class_2: 2}, ignore: [255]}"


def test_a_mask_is_turned_upright_as_its_picture_is(tmp_path):
    write_masks(tmp_path, pictures=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = np.asarray(Image.open(tmp_path / "masks/p01.png"))
    picture(701).save(tmp_path / "images/p01.png", exif=exif)
    Image.fromarray(mask).save(tmp_path / "masks/p01.png", exif=exif)
    domain = make_domain(task="segmentation", classes=["background", "crack"], layout=FAULTY)
    validated = check(domain, tmp_path)
    assert validated.quarantined == ()
    shown = decode_map(validated.fit.filter(path="images/p01.png")["class_map"].item())
    assert np.array_equal(shown, np.rot90(mask, -1))
