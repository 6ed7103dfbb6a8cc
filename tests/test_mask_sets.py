"""Sets of masks as they are published: imported as they are, with no option but the task."""

import io
import shlex
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageFilter
from samples import make_domain, save_picture

from components.data.annotations.label_maps import find_label_map
from components.data.annotations.layouts import read_tree
from components.data.annotations.masks import THRESHOLD
from components.data.annotations.regions import LEFT_OUT, SHOWS_NOTHING, is_soft
from components.data.annotations.run_lengths import decode_runs
from components.data.checks.validation import check_rows
from components.data.store.describing import describe_folder
from components.domain.reading import render_layout
from components.errors import DataError, DomainError
from components.records.maps import IGNORE, decode_map

PATCH = 84  # pixels
SIZES = ((64, 48), (72, 50), (56, 80), (61, 47))  # width, height
COUNT = 8  # pictures of a set
WHOLE = sum(width * height for width, height in SIZES) * COUNT // len(SIZES)
COLOURS = np.array([(0, 0, 0), (128, 64, 128), (64, 0, 128)], np.uint8)

Mask = Callable[[int], np.ndarray | Image.Image]


def numbers(*values: int) -> Mask:
    """A patch of each value on 0."""

    def draw(n: int) -> np.ndarray:
        width, height = SIZES[n % len(SIZES)]
        mask = np.zeros((height, width), np.uint16 if max(values, default=0) > 255 else np.uint8)
        for place, value in enumerate(values):
            mask[4 + 8 * place : 10 + 8 * place, 6:20] = value
        return mask

    return draw


def coloured(*values: int) -> Mask:
    return lambda n: COLOURS[numbers(*values)(n)]


def recompressed(n: int) -> Image.Image:
    """A mask that was once saved as JPEG."""
    file = io.BytesIO()
    Image.fromarray(numbers(255)(n)).save(file, "JPEG", quality=80)
    return Image.open(file)


def smooth(n: int) -> Image.Image:
    return Image.fromarray(numbers(255)(n)).filter(ImageFilter.GaussianBlur(0.8))


def transparent(n: int) -> np.ndarray:
    """Red on black, with an alpha channel that is all 255."""
    mask = numbers(255)(n)
    return np.dstack([mask, 0 * mask, 0 * mask, np.full_like(mask, 255)])


class Kind(NamedTuple):
    """A published form. picture, masks: paths, with {n} the number, {s}, {S} and {t} the split, {d} and {k} folders.

    pixels: of each class, in patches of one picture; the background is the rest. given: whether train, val and test are
    found. ignored: pictures of the folder that are not read, such as masks of another kind.
    """

    name: str
    picture: str
    masks: Mapping[str, Mask]
    layout: str
    pixels: Mapping[str, float]
    given: bool = False
    files: Mapping[str, str] = {}
    background: str | None = "background"
    group: str | None = None
    ignored: int = 0
    unknown: int = 0


OBJECT = {"object": 1}
LIST = "".join(f"p{n}\n" for n in range(COUNT))
KINDS = [
    Kind("voc", "JPEGImages/p{n}.jpg",
         {"SegmentationClass/p{n}.png": numbers(8, 15, 255), "SegmentationObject/p{n}.png": numbers(1, 2)},
         "{kind: masks, images: JPEGImages, masks: SegmentationClass, ids: {class_8: 8, class_15: 15}, ignore: [255]}",
         {"class_15": 1, "class_8": 1}, True,
         {"ImageSets/Segmentation/trainval.txt": LIST[:18], "ImageSets/Segmentation/val.txt": LIST[12:18],
          "ImageSets/Segmentation/test.txt": LIST[18:], "ImageSets/Main/val.txt": LIST}, ignored=COUNT, unknown=1),
    Kind("camvid with class_dict", "CamVid/{s}/a{n}.png", {"CamVid/{s}_labels/a{n}_L.png": coloured(1, 2)},
         "{kind: masks, images: CamVid/<split>, masks: CamVid/<split>_labels, suffix: _L, ids: {Road: '#804080', "
         "Car: '#400080'}, ignore: ['#000000']}", {"Car": 1, "Road": 1}, True,
         {"CamVid/class_dict.csv": "name,r,g,b\nRoad,128,64,128\nCar,64,0,128\nVoid,0,0,0\n"}, background=None),
    Kind("camvid with label_colors", "raw/a{n}.png", {"LabeledApproved_full/a{n}_L.png": coloured(1, 2)},
         "{kind: masks, images: raw, masks: LabeledApproved_full, suffix: _L, ids: {Road: '#804080', Car: '#400080'}, "
         "ignore: ['#000000']}", {"Car": 1, "Road": 1}, False,
         {"label_colors.txt": "128 64 128\tRoad\n64 0 128\tCar\n0 0 0\tVoid\n"}, background=None),
    Kind("camvid of SegNet", "{s}/a{n}.png", {"{s}annot/a{n}.png": numbers(3, 11)},
         "{kind: masks, images: <split>, masks: <split>annot, ids: {class_3: 3, class_11: 11}}",
         {"class_11": 1, "class_3": 1}, True),
    Kind("cityscapes", "leftImg8bit/{s}/c{d}/c{d}_{n}_leftImg8bit.png",
         {"gtFine/{s}/c{d}/c{d}_{n}_gtFine_labelIds.png": numbers(7, 26),
          "gtFine/{s}/c{d}/c{d}_{n}_gtFine_color.png": coloured(1, 2),
          "gtFine/{s}/c{d}/c{d}_{n}_gtFine_instanceIds.png": numbers(7, 26001)},
         "{kind: masks, images: leftImg8bit/<split>/<folder>, masks: gtFine/<split>/<folder>, suffix: "
         "_gtFine_labelIds, ids: {class_7: 7, class_26: 26}}", {"class_26": 1, "class_7": 1}, True, ignored=2 * COUNT),
    Kind("ade20k", "images/{S}/ADE_{n}.jpg", {"annotations/{S}/ADE_{n}.png": numbers(1, 3)},
         "{kind: masks, images: images/<split>, masks: annotations/<split>, ids: {wall: 1, sky: 3}}",
         {"sky": 1, "wall": 1}, True, {"objectInfo150.txt": "Idx\tRatio\tName\n1\t.1\twall\n3\t.1\tsky\n"}),
    Kind("clinicdb", "Original/{n}.tif", {"Ground Truth/{n}.tif": numbers(255)},
         "{kind: masks, images: Original, masks: Ground Truth, ids: {object: 255}}", OBJECT),
    Kind("isic", "ISIC_Task1-2_{S}_Input/ISIC_{n}.jpg",
         {"ISIC_Task1_{S}_GroundTruth/ISIC_{n}_segmentation.png": numbers(255)},
         "{kind: masks, images: ISIC_Task1-2_<split>_Input, masks: ISIC_Task1_<split>_GroundTruth, ids: {object: "
         "255}}", OBJECT, True),
    Kind("drive", "{S}/images/{n}_{S}.tif",
         {"{S}/1st_manual/{n}_manual1.gif": numbers(255), "{S}/mask/{n}_{S}_mask.gif": numbers(255, 255)},
         "{kind: masks, images: <split>/images, masks: <split>/1st_manual, suffix: _manual1, ids: {object: 1}}",
         OBJECT, True, ignored=COUNT),
    Kind("chase", "Image_{n}L.jpg", {"Image_{n}L_1stHO.png": numbers(255), "Image_{n}L_2ndHO.png": numbers(255)},
         "{kind: masks, images: ., masks: ., suffix: _1stHO, ids: {object: 255}}", OBJECT, ignored=COUNT),
    Kind("kolektor", "kos{k}/Part{d}.jpg", {"kos{k}/Part{d}_label.bmp": numbers(255)},
         "{kind: masks, images: <group>, masks: <group>, ids: {object: 255}}", OBJECT, group="group"),
    Kind("kolektor 2", "{s}/{n}.png", {"{s}/{n}_GT.png": numbers(255)},
         "{kind: masks, images: <split>, masks: <split>, ids: {object: 255}}", OBJECT, True),
    Kind("pets", "images/cat_{n}.jpg", {"annotations/trimaps/cat_{n}.png": lambda n: numbers(1)(n) + np.uint8(2)},
         "{kind: masks, masks: annotations/trimaps, ids: {class_2: 2, class_3: 3}}",
         {"class_2": -1, "class_3": 1}, False, background=None),
    Kind("roboflow masks", "{s}/a{n}_jpg.rf.0{n}.jpg", {"{s}/a{n}_jpg.rf.0{n}_mask.png": numbers(1, 2)},
         "{kind: masks, images: <split>, masks: <split>, ids: {crack: 1, pit: 2}}", {"crack": 1, "pit": 1}, True,
         {"{s}/_classes.csv": "Pixel Value, Class\n0, background\n1, crack\n2, pit\n"}),
    Kind("cvat masks", "JPEGImages/p{n}.jpg",
         {"SegmentationClass/p{n}.png": coloured(1, 2), "SegmentationObject/p{n}.png": coloured(2, 1)},
         "{kind: masks, images: JPEGImages, masks: SegmentationClass, ids: {crack: '#804080', pit: '#400080'}}",
         {"crack": 1, "pit": 1}, False,
         {"labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:128,64,128::\npit:64,0,128::\n"},
         ignored=COUNT),
    Kind("deepglobe", "train/{n}_sat.jpg", {"train/{n}_mask.png": coloured(1, 2)},
         "{kind: masks, images: train, masks: train, suffix: _mask, ids: {town: '#804080', field: '#400080'}, ignore: "
         "['#000000']}", {"field": 1, "town": 1}, False,
         {"class_dict.csv": "name,r,g,b\ntown,128,64,128\nfield,64,0,128\nunknown,0,0,0\n"}, background=None),
    Kind("magnetic tile", "MT_{d}x/Imgs/e{n}.jpg", {"MT_{d}x/Imgs/e{n}.png": numbers(255)},
         "{kind: masks, images: <folder>/Imgs, masks: <folder>/Imgs, suffix: .png, ids: {object: 255}}", OBJECT),
    Kind("loveda", "{s}/d{d}/images_png/{n}.png", {"{s}/d{d}/masks_png/{n}.png": numbers(1, 2)},
         "{kind: masks, images: <split>/<folder>/images_png, masks: <split>/<folder>/masks_png, ids: {class_1: 1, "
         "class_2: 2}}", {"class_1": 1, "class_2": 1}, True),
    Kind("names by place", "images/a{n}.png", {"masks/a{n}.png": numbers(1, 2)},
         "{kind: masks, ids: {scratch: 1, stain: 2}}", {"scratch": 1, "stain": 1}, False,
         {"classes.txt": "scratch\nstain\n"}),
    Kind("one colour", "images/a{n}.png", {"masks/a{n}.png": transparent},
         "{kind: masks, ids: {object: '#ff0000'}}", OBJECT),
    Kind("tif beside jpg", "a{n}.JPG", {"a{n}.TIF": numbers(255)},
         "{kind: masks, images: ., masks: ., suffix: .TIF, ids: {object: 255}}", OBJECT),
    Kind("16 bit", "images/a{n}.png", {"masks/a{n}.png": numbers(150, 300)},
         "{kind: masks, ids: {class_150: 150, class_300: 300}}", {"class_150": 1, "class_300": 1}),
    Kind("dagm", "Class{k}/{t}/{n}.PNG", {"Class{k}/{t}/Label/{n}_label.PNG": numbers(255)},
         "{kind: masks, images: <group>/<split>, masks: <group>/<split>/Label, ids: {object: 255}}", OBJECT, True,
         group="group"),
    Kind("nnU-Net", "imagesTr/c_{n}_0000.png", {"labelsTr/c_{n}.png": numbers(1, 2)},
         "{kind: masks, images: imagesTr, masks: labelsTr, suffix: .png, ids: {tumour: 1, stroma: 2}}",
         {"stroma": 1, "tumour": 1}, False,
         {"dataset.json": '{"labels": {"background": 0, "tumour": 1, "stroma": 2}}'}),
    Kind("one file per object", "stage1/x{n}/images/x{n}.png",
         {"stage1/x{n}/masks/a{n}0.png": numbers(255), "stage1/x{n}/masks/b{n}1.png": numbers(0, 255)},
         "{kind: instances, images: stage1/<group>/images, instances: stage1/<group>/masks}", {"object": 2},
         group="group"),
    Kind("numbered masks", "{d}_defect/a ({n}).png",
         {"{d}_defect/a ({n})_mask.png": numbers(255), "{d}_defect/a ({n})_mask_1.png": numbers(0, 255)},
         "{kind: folders, masks: .}", {"0_defect": 1, "1_defect": 1}),
    Kind("smooth edges", "images/a{n}.png", {"masks/a{n}.png": smooth},
         "{kind: masks, ids: {object: 255}, threshold: 128}", OBJECT),
    Kind("once in JPEG", "images/a{n}.png", {"masks/a{n}.png": recompressed},
         "{kind: masks, ids: {object: 255}, threshold: 128}", OBJECT),
]  # fmt: skip


def write(raw, kind: Kind) -> None:
    for n in range(COUNT):
        split = ("train", "train", "train", "train", "val", "val", "test", "test")[n]
        if "{S}" in kind.picture and kind.name == "drive" and split == "val":
            split = "test"
        words = {
            "n": n,
            "s": split,
            "S": {"train": "training", "val": "validation"}.get(split, split),
            "d": n % 2,
            "k": n // 2,
            "t": ("Train", "Test")[n % 2],
        }
        width, height = SIZES[n % len(SIZES)]
        save_picture(raw / kind.picture.format(**words), n, width=width, height=height)
        for path, draw in kind.masks.items():
            target, mask = raw / path.format(**words), draw(n)
            target.parent.mkdir(parents=True, exist_ok=True)
            (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(target)
        for path, text in kind.files.items():
            target = raw / path.format(**words)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)


def understand(raw, layout=None):
    domain = describe_folder(raw, "tiles", layout, None, raw / "domain.yaml", "segmentation")
    return domain, read_tree(domain, raw)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_published_set_is_imported_as_it_is(tmp_path, kind):
    write(tmp_path, kind)
    domain, understood = understand(tmp_path)
    assert render_layout(domain.layout) == kind.layout
    assert domain.group == kind.group
    validated = check_rows(understood.rows, tmp_path, domain)
    assert (validated.fit.height, [str(item) for item in validated.quarantined]) == (COUNT, [])
    maps = [decode_map(data) for data in validated.fit["class_map"]]
    counts = {name: sum(int((shown == k).sum()) for shown in maps) for k, name in enumerate(domain.classes)}
    drawn = {name: int(COUNT * PATCH * patches) + WHOLE * (patches < 0) for name, patches in kind.pixels.items()}
    unknown = sum(int((shown == IGNORE).sum()) for shown in maps)
    if ids := getattr(domain.layout, "ids", None):  # in the order of the numbers, or of the label map
        assert [name for name in domain.classes if name in ids] == [name for name in ids if name in domain.classes]
    if kind.background is None:
        assert counts == drawn
        assert unknown == WHOLE - sum(drawn.values())
    else:
        assert unknown == COUNT * PATCH * kind.unknown
        assert counts == {kind.background: WHOLE - unknown - sum(drawn.values())} | drawn
    assert (set(understood.account.given) >= {"train", "test"}) == kind.given
    assert len(understood.pictures.ignored) == kind.ignored
    assert understood.pictures.quarantined == 0


def test_masks_that_number_their_objects_are_instances(tmp_path):
    for n in range(COUNT):
        save_picture(tmp_path / f"t_{n}.bmp", n, width=64, height=48)
        mask = np.zeros((48, 64), np.uint8)
        for k in range(2 + n % 4):
            mask[4 + 7 * k : 9 + 7 * k, 6:20] = 1 + k
        Image.fromarray(mask).save(tmp_path / f"t_{n}_anno.bmp")
    domain, understood = understand(tmp_path)
    assert render_layout(domain.layout) == "{kind: instances, images: ., instances: .}"
    assert understood.rows["pixels"].list.get(1).sum() == sum((2 + n % 4) * 70 for n in range(COUNT))


# Run lengths in a table


def write_runs(raw, *, label: str = "ClassId") -> None:
    rows = [f"ImageId,{label},EncodedPixels"]
    for n in range(6):
        width, height = SIZES[n % len(SIZES)]
        save_picture(raw / f"train_images/{n}.jpg", n, width=width, height=height)
        flat = numbers(255)(n).T.ravel() > 0  # down the columns
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]))) + 1
        runs = " ".join(f"{start} {end - start}" for start, end in zip(edges[::2], edges[1::2], strict=True))
        rows += [f"{n}.jpg,{1 + n % 2},{runs}"] if n < 4 else []
    (raw / "train.csv").write_text("\n".join([*rows, "4.jpg,1,"]) + "\n")


def test_run_lengths_in_a_table_are_read(tmp_path):
    write_runs(tmp_path)
    domain, understood = understand(tmp_path)
    assert render_layout(domain.layout) == (
        "{kind: csv, table: train.csv, image: ImageId, label: ClassId, runs: EncodedPixels}"
    )
    assert domain.classes == ("background", "1", "2")
    rows = understood.rows
    assert [decode_map(data)[4:10, 6:20].tolist() for data in rows["class_map"][:2]] == [
        [[1 + n] * 14] * 6 for n in (0, 1)
    ]
    assert [pixels[1:] for pixels in rows["pixels"].to_list()] == [[84, 0], [0, 84], [84, 0], [0, 84], [0, 0]]
    assert understood.account.notes == {LEFT_OUT: 1, SHOWS_NOTHING: 1}  # 5.jpg is not listed, 4.jpg has an empty cell
    with pytest.raises(DataError, match="no `runs`, which name pixels"):
        read_tree(make_domain(layout=domain.layout.model_dump()), tmp_path)


def test_run_lengths_without_a_label_are_objects(tmp_path):
    write_runs(tmp_path, label="length")
    domain, _ = understand(tmp_path)
    assert domain.classes == ("background", "object")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 3", "no pairs of start and length"),
        ("1 x", "no pairs of start and length"),
        ("0 2", "count from 0"),
        ("1 5 3 2", "overlap"),
        ("1 0", "overlap"),
        ("10 4", "to pixel 13 of 12"),
    ],
)
def test_run_lengths_that_do_not_fit_are_refused(text, words):
    assert decode_runs("2 2 7 1", (3, 4)).astype(int).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match=words):
        decode_runs(text, (3, 4))


# What is refused, with the line to write


def test_two_kinds_of_masks_are_listed_to_choose_from(tmp_path):
    kind = next(kind for kind in KINDS if kind.name == "cityscapes")
    other = "gtFine/{s}/c{d}/c{d}_{n}_gtFine_labelTrainIds.png"
    write(tmp_path, kind._replace(masks={**kind.masks, other: numbers(4, 255)}))
    with pytest.raises(DomainError, match="one mask per picture; found 2 that may be meant") as caught:
        understand(tmp_path)
    lines = [shlex.split(line)[1] for line in caught.value.hint.splitlines() if "--layout" in line]
    layouts = [render_layout(understand(tmp_path, line)[0].layout) for line in lines]
    assert layouts[0] == kind.layout
    assert layouts[1].endswith("suffix: _gtFine_labelTrainIds, ids: {object: 4}, ignore: [255]}")


def test_masks_in_jpeg_are_refused_with_the_line_that_reads_them(tmp_path):
    write(tmp_path, Kind("kvasir", "images/a{n}.jpg", {"masks/a{n}.jpg": numbers(255)}, "", {}))
    with pytest.raises(DataError, match="found 8 in JPEG") as caught:
        understand(tmp_path)
    line = shlex.split(caught.value.hint.partition("--layout ")[2].rstrip("."))[0]
    _, understood = understand(tmp_path, line)
    assert understood.rows["pixels"].list.get(1).sum() == COUNT * PATCH
    assert understood.account.notes == {THRESHOLD: COUNT}
    assert understood.pictures.quarantined == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": {"a": 1, "b": 2}}, "exactly one class"),
        ({"ids": {"a": "#ff0000"}}, "exactly one class"),
        ({"ids": {"a": 255}, "ignore": [9]}, "nothing in `ignore`"),
    ],
)
def test_a_threshold_divides_two_values_only(changes, words):
    with pytest.raises(DomainError, match=words):
        make_domain(layout={"kind": "masks", "threshold": 128} | changes)


SHAPES = np.random.default_rng(0).integers(0, 150, (6, 8)).astype(np.uint8)


@pytest.mark.parametrize(
    ("mask", "soft"),
    [
        (np.asarray(smooth(0)), True),
        (np.asarray(recompressed(0)), True),
        (numbers(255)(0), False),
        (numbers(64, 128, 192, 255)(0), False),
        (np.kron(SHAPES, np.ones((8, 8), np.uint8)) + np.uint8(105), False),  # many classes
        (np.tile(np.arange(256, dtype=np.uint8), (20, 1)), False),  # a ramp
        (np.zeros((4, 4), bool), False),
    ],
)
def test_soft_edges_are_not_classes_and_classes_are_no_soft_edges(mask, soft):
    assert is_soft(mask) == soft


MAPS = [
    ("classes.txt", "background\ncrack\npit\n", {0: "background", 1: "crack", 2: "pit"}),
    ("classes.txt", "crack\npit\n", {1: "crack", 2: "pit"}),
    ("classes.txt", "crack\npit\nhole\n", {}),  # numbers from 0 or from 1
    ("label_map.json", '{"background": 0, "crack": 1, "pit": 2}', {0: "background", 1: "crack", 2: "pit"}),
    ("dataset.json", '{"labels": {"1": "crack", "2": "pit"}}', {1: "crack", 2: "pit"}),
    ("labels.csv", "id,name,r,g,b\n1,crack,9,9,9\n2,pit,8,8,8\n", {1: "crack", 2: "pit"}),
    ("labels.txt", "1 crack\n2 deep pit\n", {1: "crack", 2: "deep pit"}),
    ("labels.txt", "crack: 1\npit: 2\n", {1: "crack", 2: "pit"}),
    ("colors.csv", "name,hex\ncrack,#FF0000\npit,#00ff00\n", {"#ff0000": "crack", "#00ff00": "pit"}),
    ("labels.txt", "1 crack\n2 crack\n", {}),  # one name twice
    ("labels.txt", "7 crack\n8 pit\n", {}),  # other numbers
    ("labels.csv", "image,label\na.png,crack\nb.png,pit\n", {}),
    ("notes.txt", "1 crack\n2 pit\n", {}),
]


@pytest.mark.parametrize(("name", "text", "found"), MAPS, ids=[text[:24] for _, text, _ in MAPS])
def test_a_label_map_names_numbers_or_colours(tmp_path, name, text, found):
    (tmp_path / name).write_text(text)
    assert find_label_map(tmp_path, [name], {0, 1, 2}, {0, 0xFF0000, 0x00FF00}) == found
