"""Layouts: how a raw folder says which pictures it holds and how they are annotated."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from components.domain.strict import Strict

PART = re.compile(r"<([a-z][a-z0-9_]*)>")  # a part of a folder's path in a layout that matches every name
RESERVED_COLUMNS = (
    *("id", "path", "label", "labels", "class_map", "pixels", "objects", "group", "mask", "boxes", "crop"),
    *("width", "height", "split", "stated_size", "problem"),
)


class Tree(Strict):
    """The base of layouts with folders: a part `<name>` of `images` stands for every folder at that place."""

    images: str = "."
    """The folder of the pictures; a part `<name>` stands for every folder at that place."""

    @field_validator("images", "masks", "annotations", "instances", check_fields=False)
    @classmethod
    def _legal_parts(cls, value: str | None, info: ValidationInfo) -> str | None:
        names = PART.findall(value or "")
        if len(set(names)) != len(names):
            raise ValueError("names a part in angle brackets twice")
        if "class" in names and not (cls is Folders and info.field_name == "images"):
            raise ValueError("only `images` of the layout folders may hold the part <class>")
        known = set(PART.findall(info.data.get("images", value) or ""))
        if info.field_name != "images" and (strange := set(names) - known - {"split"}):
            raise ValueError(f"the part <{strange.pop()}> does not occur in `images`")
        return value

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts in angle brackets; they become columns of the rows."""
        return tuple(PART.findall(self.images))


class Folders(Tree):
    """One folder per class: `<images>/<class>/*.jpg`, and optionally masks `<masks>/<class>/<same stem>.png`.

    A mask may also be called `<stem>_mask.png`, and `masks: .` takes masks that lie beside their pictures. A part of
    `images` in angle brackets stands for every folder at that place: `images: <split>` reads train/good and
    test/good, `<lot>` reads P00/good and P01/good, `<class>/<lot>` reads good/P00. Its name is a column that may
    serve as `group` or as a slice, except that `<split>` matches only names of splits and serves `split: given`.
    The layouts voc, coco, labelme, cvat, instances and masks take such parts as well: `{kind: masks, images:
    <split>/images, masks: <split>/masks}`. With the task `segmentation` every pixel of a mask that is not 0 has the
    folder's class; pictures in the folder that is called like the background need no mask. With the task `detection`
    each connected component of a mask is an object of the folder's class, and pictures of a folder without any mask
    show no object.
    """

    kind: Literal["folders"] = "folders"
    """One folder per class."""
    images: str = "."
    """The folder that holds one folder per class; a part `<name>` stands for every folder at that place."""
    masks: str | None = None
    """The folder that holds the masks, in folders with the names of the classes."""


def _check_values(value: Any) -> Any:
    """Numbers or colours of classes, none of them twice. Raises ValueError."""
    values = list(value.values()) if isinstance(value, Mapping) else list(value)
    colours = [v for v in values if isinstance(v, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", v)]
    numbers = [v for v in values if isinstance(v, int) and 0 <= v < 2**32]
    if len(values) not in (len(colours), len(numbers)):
        raise ValueError('must be whole numbers, or else colours such as "#ff0000" in quotes')
    if len({str(v).lower() for v in values}) != len(values):
        raise ValueError("gives one value to two classes")
    return value


Values = AfterValidator(_check_values)


class Table(Strict):
    """The base of the layouts csv and parquet."""

    table: str = "labels.csv"
    """Path of the table below the images' folder."""
    image: str = "image"
    """The column that names the picture."""
    label: str = "label"
    """The column that names the class."""
    separator: str | None = Field(default=None, min_length=1)
    """The mark between several labels in one cell (task `multilabel`)."""
    one_hot: bool = False
    """Whether each class has a column of 0 and 1, with exactly one 1 per row."""
    mask: str | None = None
    """The column that names the mask."""
    runs: str | None = None
    """The column of run lengths `start length ...`, counted down the columns from 1 (task `segmentation`)."""
    boxes: str | None = None
    """The column that holds boxes, in pixels."""
    crop: str | tuple[str, str, str, str] | None = None
    """The column that holds one box, or the four columns of its corners: the row is then that part of the picture, or
    an object of it (task `detection`)."""
    box_form: Literal["corners", "size"] = "corners"
    """Whether a box is `x0 y0 x1 y1` (corners) or `x y width height` (size)."""
    ids: Annotated[Mapping[str, int | str], Values] = {}
    """Which number or colour `"#rrggbb"` in a mask is which class (task `segmentation`)."""
    ignore: Annotated[tuple[int | str, ...], Values] = ()
    """Numbers or colours of pixels to ignore, where `ids` names the others."""


class Csv(Table):
    """One table with one row per image; paths in it are relative to the table or to the top folder.

    `tessera import` finds the table, its columns and its form, and writes them into domain.yaml; what `--layout` names
    is not searched for. `delimiter` is the mark between columns. `header: false` says that the first line is data (the
    columns are then `column_1`, `column_2` and so on). Any further column may serve as `group` or as a slice. `boxes`
    holds `x0 y0 x1 y1` in pixels, several boxes joined by `;`. `crop` holds one such box, or names four columns
    (`[xmin, ymin, xmax, ymax]`): the row is then that part of the picture. `box_form: size` says that boxes are
    `x y width height`. `one_hot: true`: the table has one column of 0 and 1 per class, with the name of the class, and
    exactly one 1 per row. With the task `multilabel` there are such columns with any number of 1s; or, with a
    `separator`, the column `label` holds all labels joined by it (no label: an empty cell). With the task
    `segmentation`, `mask` names one mask per picture, and every pixel of it that is not 0 has the class in `label`;
    with `ids`, which says which number or colour is which class, a mask shows any number of classes, and no label is
    read. Instead of masks, `runs` names a column of run lengths, as Kaggle's `EncodedPixels`: one line per picture and
    class, or `object` without a column `label`. With the task `detection` a picture has the boxes of all its lines,
    from `crop` (one per line) or `boxes` (several), of the class in `label`, or `object` without such a column; a
    `separator` joins one label per box. A line without a box says that its picture shows no object: its label is empty,
    or one that never has a box (`No finding`). Instead of boxes, `mask` names masks, whose connected components are the
    objects.
    """

    kind: Literal["csv"] = "csv"
    """A table as text."""
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """The mark between columns."""
    encoding: str = "utf-8"
    """The encoding of the text."""
    header: bool = True
    """Whether the first line names the columns; otherwise they are `column_1`, `column_2` and so on."""

    @field_validator("delimiter")
    @classmethod
    def _is_delimiter(cls, value: str) -> str:
        if value.isalnum() or value in '"\n\r':
            raise ValueError("must be a mark between columns, such as `;`")
        return value

    @field_validator("encoding")
    @classmethod
    def _is_known_encoding(cls, value: str) -> str:
        try:
            "".encode(value)
        except (LookupError, ValueError):  # ValueError: a zero byte in the name
            raise ValueError("must be the name of a text encoding, such as utf-8, utf-16, cp1252") from None
        return value


class Parquet(Table):
    """The same as csv in a parquet file; a column of lists is read as its values joined by `separator` (or `;`).

    Boxes may be lists of four numbers.
    """

    kind: Literal["parquet"] = "parquet"
    """A table as a parquet file."""
    table: str = "labels.parquet"
    """Path of the table below the images' folder."""


class Voc(Tree):
    """Pascal VOC: each annotated object becomes one crop, and all crops of a picture are one group.

    The lists in ImageSets/Main, if there are any, name the split of a picture. With the task `detection` a row is a
    picture with all its boxes: those marked `difficult` are ignored, and a file without objects shows none.
    """

    kind: Literal["voc"] = "voc"
    """Pascal VOC."""
    images: str = "JPEGImages"
    """The folder of the pictures; a part `<name>` stands for every folder at that place."""
    annotations: str = "Annotations"
    """The folder of the XML files."""


class Coco(Tree):
    """COCO instances: each annotation's box becomes one crop, and all crops of a picture are one group.

    `annotations` is one .json file or a folder of them, or, with the part `<split>`, one file per split
    (`annotations/instances_<split>.json`, `<split>/_annotations.coco.json`). A segmentation gives its extent if there
    is no box, and is not kept otherwise; crowds (`iscrowd: 1`) are left out. Further keys of an annotation or of its
    image may serve as `group` or as slices; `mask`, `boxes` and `whole: true` (the picture itself instead of a crop)
    are read as `tessera export` writes them. With the task `multilabel` a row is a picture with all its categories,
    with `segmentation` the class of its pixels: the polygons of an annotation are united, run-length masks may be
    compressed or not, and the pixels of crowds are ignored. With `detection` a row is a picture with all its boxes, as
    they are written; crowds, and annotations marked `ignore` or `difficult`, are ignored, and a picture that is listed
    without annotations shows no object.
    """

    kind: Literal["coco"] = "coco"
    """COCO."""
    images: str = "images"
    """The folder that file names are relative to; a part `<name>` stands for every folder at that place."""
    annotations: str = "annotations.json"
    """The .json file or a folder of them; with the part `<split>` one file per split."""


class Yolo(Strict):
    """YOLO detection: each line `class cx cy width height` of a label file becomes one crop.

    With the task `segmentation` each line is a polygon, `class x1 y1 x2 y2 x3 y3 ...`, in shares of the picture's size.

    The label file of `<images>/train/a.jpg` is `<labels>/train/a.txt`, `labels` beside `images` (`train/images/a.jpg`,
    `train/labels/a.txt`), or `a.txt` beside the picture. `names` is the file that names the classes, data.yaml or a
    text file with one name per line; it is searched for when left out. An empty label file means background. With the
    task `detection` a row is a picture with all its boxes; a polygon gives the box around it, and a picture without a
    label file shows no object, as an empty file says.
    """

    kind: Literal["yolo"] = "yolo"
    """YOLO detection."""
    images: str = "images"
    """The folder of the pictures."""
    labels: str = "labels"
    """The folder of the label files."""
    names: str | None = None
    """The file that names the classes, data.yaml or a text file; searched for when left out."""


class Labelme(Tree):
    """LabelMe: one JSON file per picture, beside it or in another folder; each object becomes one crop.

    The objects of a picture are one group. Polygons, rectangles, circles and masks are read; parts with the same
    `group_id` and label are one object. Lines and points have no area, and their pictures are quarantined. A file
    without shapes means background. A picture without shapes but with one flag that is set gets the flag as its label.
    With the task `multilabel` a row is a picture with all its labels, with `segmentation` the class of its pixels, with
    `detection` the box around each object.
    """

    kind: Literal["labelme"] = "labelme"
    """LabelMe."""
    images: str = "."
    """The folder of the pictures; a part `<name>` stands for every folder at that place."""
    annotations: str = "."
    """The folder of the JSON files."""
    ignore: tuple[str, ...] = ()
    """Labels that are left out; the tasks `segmentation` and `detection` ignore what they cover."""


class Cvat(Tree):
    """CVAT for images 1.1: one XML file for all pictures; each object becomes one crop.

    The objects of a picture are one group. Polygons, boxes, ellipses (also rotated) and masks are read. Lines, points
    and skeletons have no area, and their pictures are quarantined. `annotations` is one .xml file or a folder of them.
    The `subset` of a picture names its split. A picture without shapes but with one tag gets the tag as its label. With
    the task `multilabel` a row is a picture with all its labels, with `segmentation` the class of its pixels, where
    shapes are drawn in the order of `z_order`, with `detection` the box around each object: a picture that is listed
    without shapes shows none.
    """

    kind: Literal["cvat"] = "cvat"
    """CVAT for images 1.1."""
    images: str = "images"
    """The folder that names are relative to; a part `<name>` stands for every folder at that place."""
    annotations: str = "annotations.xml"
    """The .xml file or a folder of them; with the part `<split>` one file per split."""
    ignore: tuple[str, ...] = ()
    """Labels that are left out; the tasks `segmentation` and `detection` ignore what they cover."""


class Instances(Tree):
    """Instance-id masks (0 = background): one crop per instance, and as many crops of empty background.

    With the task `segmentation` a row is the whole picture, and the pixels of all instances have the class `label`;
    with `detection` there is a box around each instance.
    `images: <group>/images` with one picture per folder takes all masks of `instances: <group>/masks` as its objects,
    one per file.
    """

    kind: Literal["instances"] = "instances"
    """Masks with one number per object."""
    images: str = "images"
    """The folder of the pictures; a part `<name>` stands for every folder at that place."""
    instances: str = "instances"
    """The folder of the masks."""
    label: str = "object"
    """The class of every object."""
    background: str = "background"
    """The class of the crops of background."""


class Masks(Tree):
    """Semantic masks, `<masks>/<same stem>.png` with a class in every pixel: a picture gets the class its mask shows.

    `ids` says which number in the mask, or which colour `"#rrggbb"`, is which class; left out, number k is `class_k`.
    The mask of `a.jpg` may also be called `a_mask.png`, and lie beside it (`masks: .`). `suffix: _labelIds` says that
    masks are the files whose names end so: `a_labelIds.png` for `a.jpg` and for `a_camera.jpg`. 0 (black) is
    `background`, the label of pictures that show nothing else; numbers or colours in `ignore` are not counted. A
    picture with several classes has no single label and is quarantined; the task `multilabel` takes all its classes,
    and background is then not a label. With the task `segmentation` every pixel has the class of its number;
    `tessera import` then writes the numbers that it found into `ids`, with the names that a label map of the folder
    gives them (`class_dict.csv`, `labelmap.txt`, `_classes.csv` and the like), else `object` where there is one beside
    0, else `class_1`, `class_2` and so on. `threshold: 128` reads masks of two values whose edges are soft, or that
    were saved as JPEG: numbers from there on are the class, lower ones background; import counts such masks. With the
    task `detection` there is a box around each connected component of a class but `background`.
    """

    kind: Literal["masks"] = "masks"
    """Masks with one number or colour per class."""
    images: str = "images"
    """The folder of the pictures; a part `<name>` stands for every folder at that place."""
    masks: str = "masks"
    """The folder of the masks; `.` where they lie beside their pictures."""
    suffix: str | None = Field(default=None, min_length=1)
    """How the names of the masks end, such as `_labelIds`; other images in their folder are then no masks."""
    ids: Annotated[Mapping[str, int | str], Values] = {}
    """Which number or colour `"#rrggbb"` is which class; left out, number k is `class_k`."""
    background: str = "background"
    """The class of pictures that show nothing else; 0 (black) in the mask."""
    ignore: Annotated[tuple[int | str, ...], Values] = ()
    """Numbers or colours that are not counted."""
    threshold: int | None = Field(default=None, ge=1, le=65535)
    """The lowest number of the only class in `ids`, for masks with soft edges or in JPEG; less is background."""

    @field_validator("threshold")
    @classmethod
    def _one_number(cls, value: int | None, info: ValidationInfo) -> int | None:
        ids = list(info.data.get("ids", {}).values())
        if value is not None and (len(ids) != 1 or isinstance(ids[0], str) or info.data.get("ignore")):
            raise ValueError("needs exactly one class in `ids`, with a number, and nothing in `ignore`")
        return value


Layout = Annotated[
    Folders | Csv | Parquet | Voc | Coco | Yolo | Labelme | Cvat | Instances | Masks,
    Field(discriminator="kind"),
]
LAYOUTS: dict[str, type[Folders | Csv | Parquet | Voc | Coco | Yolo | Labelme | Cvat | Instances | Masks]] = {
    "folders": Folders,
    "csv": Csv,
    "parquet": Parquet,
    "voc": Voc,
    "coco": Coco,
    "yolo": Yolo,
    "labelme": Labelme,
    "cvat": Cvat,
    "instances": Instances,
    "masks": Masks,
}
WITH_COLUMNS = ("csv", "parquet", "coco")  # layouts that can hold a group and slices
