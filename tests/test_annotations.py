"""Tables and annotations as people write them: what is read, what is refused, and what is said of the rest."""

from collections import Counter
from pathlib import Path

import pytest
from samples import make_domain, save_picture

from components.data.columns import complete_table
from components.data.guessing import suggest_layout
from components.data.layouts import READERS, find_classes, read_rows
from components.data.manifest import Wanted
from components.data.tables import looks_multilabel
from components.domain import Csv, Folders, Layout, parse_domain
from components.errors import DataError

NAMES = [f"p{number:02d}" for number in range(8)]
GRADES = ["good", "bad"] * 4


def write_pictures(raw: Path, folder: str = "img") -> Path:
    for number, name in enumerate(NAMES):
        save_picture(raw / folder / f"{name}.png", number)
    return raw


def lines(pattern: str = "img/{}.png,{}", grades: list[str] = GRADES) -> str:
    return "".join(f"{pattern.format(name, grade)}\n" for name, grade in zip(NAMES, grades, strict=True))


def understand(raw: Path, named: dict[str, object] | None = None) -> Layout:
    """The layout as import settles it."""
    layout = Csv(**named) if named is not None else suggest_layout(raw)
    return complete_table(layout, raw) if isinstance(layout, Csv) else layout


def read_labels(layout: Layout, raw: Path) -> dict[str, str]:
    many = isinstance(layout, Csv) and looks_multilabel(layout, raw)
    classes = find_classes(layout, raw, many=many)
    facts = {"task": "multilabel" if many else "classification", "classes": classes, "layout": layout.model_dump()}
    rows = read_rows(parse_domain({"name": "tiles", **facts}, "tests"), raw)
    assert rows["problem"].null_count() == rows.height, rows["problem"].drop_nulls()[0]
    return {Path(path).stem: label for path, label in rows.select("path", "label").iter_rows()}


TABLES = {
    "plain": ("labels.csv", "image,label\n" + lines(), {}),
    "other names": ("list.csv", "Filename,Class\n" + lines(), {"image": "Filename", "label": "Class"}),
    "semicolons": ("labels.csv", "image;label\n" + lines("img/{}.png;{}"), {"delimiter": ";"}),
    "semicolons and decimal commas": (
        "labels.csv",
        "image;mm;label\n" + lines("img/{}.png;1,5;{}"),
        {"delimiter": ";"},
    ),
    "Excel's sep": ("labels.csv", "sep=;\nimage;label\n" + lines("img/{}.png;{}"), {"delimiter": ";"}),
    "tabs": ("labels.tsv", "image\tlabel\n" + lines("img/{}.png\t{}"), {"delimiter": "\t"}),
    "bars": ("labels.csv", "image|label\n" + lines("img/{}.png|{}"), {"delimiter": "|"}),
    "byte order mark": ("labels.csv", ("image,label\n" + lines()).encode("utf-8-sig"), {}),
    "UTF-16": ("labels.csv", ("image,label\n" + lines()).encode("utf-16"), {"encoding": "utf-16"}),
    "UTF-16 without a mark": ("a.csv", ("image,label\n" + lines()).encode("utf-16-le"), {"encoding": "utf-16-le"}),
    "Windows": ("a.csv", ("image,label,by\n" + lines("img/{}.png,{},Müller")).encode("cp1252"), {"encoding": "cp1252"}),
    "CR": ("labels.csv", ("image,label\n" + lines()).replace("\n", "\r"), {}),
    "CRLF": ("labels.csv", ("image,label\n" + lines()).replace("\n", "\r\n"), {}),
    "no header": ("labels.csv", lines(), {"header": False, "image": "column_1", "label": "column_2"}),
    "trailing commas": ("labels.csv", "image,label,,\n" + lines("img/{}.png,{},,"), {}),
    "trailing commas below": ("labels.csv", "image,label\n" + lines("img/{}.png,{},,"), {}),
    "blank lines": ("labels.csv", "\nimage,label\n" + lines().replace("\n", "\n\n") + " , \n", {}),
    "comments": ("labels.csv", "# made by hand\nimage,label\n# first lot\n" + lines(), {}),
    "a header in a comment": ("labels.csv", "# image,label\n" + lines(), {}),
    "index column": ("labels.csv", ",image,label\n" + lines("7,img/{}.png,{}"), {}),
    "quoted newline": ("labels.csv", "image,label,text\n" + lines('img/{}.png,{},"a\nb, c"'), {}),
    "blanks": ("labels.csv", "image, label\n" + lines('img/{}.png, "{}"'), {}),
    "backslashes": ("labels.csv", "image,label\n" + lines("img\\{}.png,{}"), {}),
    "absolute": ("labels.csv", "image,label\n" + lines("D:\\set 1\\img\\{}.png,{}"), {}),
    "from above": ("labels.csv", "image,label\n" + lines("../input/set/img/{}.png,{}"), {}),
    "below a folder that is not here": ("labels.csv", "image,label\n" + lines("set/img/{}.png,{}"), {}),
    "from the top": ("meta/labels.csv", "image,label\n" + lines(), {}),
    "bare names": ("meta/labels.csv", "image,label\n" + lines("{}.png,{}"), {}),
    "ids": ("labels.csv", "image_id,dx\n" + lines("{},{}"), {"image": "image_id", "label": "dx"}),
    "kaggle": ("train.csv", "image,target,fold,is_train\n" + lines("{},{},0,1"), {"label": "target"}),
    "one column left": ("labels.csv", "image,finish,fold\n" + lines("img/{}.png,{},3"), {"label": "finish"}),
    "two names of the classes": (
        "labels.csv",
        "image,class_id,class_name\n"
        + "".join(f"{n},{int(g == 'bad')},{g}\n" for n, g in zip(NAMES, GRADES, strict=True)),
        {"label": "class_name"},
    ),
    "one-hot": (
        "truth.csv",
        "image,bad,good,rare\n"
        + "".join(f"{n},{g == 'bad':d}.0,{g == 'good':d}.0,0.0\n" for n, g in zip(NAMES, GRADES, strict=True)),
        {"one_hot": True},
    ),
}


@pytest.mark.parametrize(("table", "text", "found"), TABLES.values(), ids=TABLES)
def test_a_table_is_understood_and_its_form_written_down(tmp_path, table, text, found):
    write_pictures(tmp_path)
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_bytes(text if isinstance(text, bytes) else text.encode())
    layout = understand(tmp_path)
    named = {} if table == "labels.csv" else {"table": table}
    assert layout.model_dump(exclude_defaults=True) == named | found
    assert read_labels(layout, tmp_path) == dict(zip(NAMES, GRADES, strict=True))


def test_options_that_are_named_are_not_searched_for(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text("file;grade;label\n" + lines("img/{}.png;{};x"))
    named = {"image": "file", "label": "grade", "separator": ";"}  # meant: between the columns
    layout = understand(tmp_path, named)
    assert layout == Csv(image="file", label="grade", delimiter=";")
    assert read_labels(layout, tmp_path)["p01"] == "bad"


def test_labels_joined_in_one_column_stay_several(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text("image;tags\n" + lines("img/{}.png;{}|worn"))
    layout = understand(tmp_path, {"label": "tags", "separator": "|"})
    assert read_labels(layout, tmp_path)["p01"] == "bad + worn"


def test_one_hot_lines_with_other_than_one_label_are_quarantined(tmp_path):
    write_pictures(tmp_path)
    rows = [f"{name},{int(k % 2)},{int(k % 2 == 0)}" for k, name in enumerate(NAMES)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,a,b", *rows[:6], "p06,1,1", "p07,0,0"]))
    read = read_rows(make_domain(classes=["a", "b"], layout={"kind": "csv", "one_hot": True}), tmp_path)
    problems = dict(read.select("path", "problem").drop_nulls().iter_rows())
    assert "found a, b in labels.csv, line 8" in problems["img/p06.png"]
    assert "found none in labels.csv, line 9" in problems["img/p07.png"]
    assert read["label"].drop_nulls().to_list() == ["b", "a"] * 3
    assert looks_multilabel(understand(tmp_path), tmp_path)  # two lines say that it is no one-hot table


EYES = lines("{},{},ok").replace("bad,ok", "bad,no")
GRADED_TWICE = lines("{},{},x").replace("p03,bad,x", "p03,bad,z")
UNCLEAR = {
    "two columns": ("image,left_eye,right_eye\n" + EYES, ["left_eye", "right_eye"]),
    "two words": ("image,grade,diagnosis\n" + GRADED_TWICE, ["diagnosis", "grade"]),
    "two pictures": ("before,after,label\n" + lines("{0}.png,{0}.png,{1}"), ["before", "after"]),
    "no label": ("image,comment\n" + lines("{},{}"), ["comment"]),
}


@pytest.mark.parametrize(("text", "columns"), UNCLEAR.values(), ids=UNCLEAR)
def test_an_unclear_table_is_refused_with_its_columns_and_the_line_to_write(tmp_path, text, columns):
    write_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        understand(tmp_path, {})
    for name in columns:
        assert repr(name) in str(caught.value)
    assert "--layout '{kind: csv, table: labels.csv, " in str(caught.value)
    assert suggest_layout(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.csv", "item,price\nbolt,3\nnut,4\n"),
        ("README.csv", "column,meaning\nimage,a picture\n"),
        ("sizes.csv", "file,width,height\n" + lines("{}.png,640,480")),
        ("qc.csv", "file,shift\np00.png,early\np01.png,late\n"),
        ("log.csv", b"\x00\x01\xff\xfe\x80"),
    ],
)
def test_a_stray_table_hides_no_folders(tmp_path, name, text):
    write_pictures(tmp_path, "good")
    save_picture(tmp_path / "bad/q00.png", 99)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert suggest_layout(tmp_path) == Folders()


def test_a_path_whose_folder_is_here_is_never_found_elsewhere(tmp_path):
    """`img/p00.png` is missing; another p00.png is another picture."""
    write_pictures(tmp_path)
    (tmp_path / "img/p00.png").unlink()
    save_picture(tmp_path / "old/p00.png", 5)
    for pattern in ("img/{}.png,{}", "D:/x/img/{}.png,{}"):
        (tmp_path / "labels.csv").write_text("image,label\n" + lines(pattern))
        if pattern.startswith("D"):
            with pytest.raises(DataError, match="inside the raw folder"):
                read_rows(make_domain(classes=["good", "bad"], layout="csv"), tmp_path)
            continue
        rows = read_rows(make_domain(classes=["good", "bad"], layout="csv"), tmp_path)
        assert rows["problem"].drop_nulls().len() == 1
        assert "old/p00.png" not in rows["path"].to_list()


def test_paths_from_elsewhere_are_counted(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text("image,label\n" + lines("/data/set/img/{}.png,{}"))
    reading = READERS["csv"](Csv(), tmp_path, Wanted())
    assert reading.notes == {"paths from another place, found by their ends": 8}


BOXES = {
    "corners": ("image,label,xmin,ymin,xmax,ymax\n", "{},{},4,5,30,31", {"crop": ("xmin", "ymin", "xmax", "ymax")}),
    "fractions": ("image,label,x1,y1,x2,y2\n", "{},{},4.2,4.8,30.4,30.9", {"crop": ("x1", "y1", "x2", "y2")}),
    "size": ("image,label,x,y,w,h\n", "{},{},4,5,26,26", {"crop": ("x", "y", "w", "h"), "box_form": "size"}),
    "one column": ("image,label,crop\n", "{},{},4 5 30 31", {"crop": "crop"}),
    "COCO's": ("image,label,bbox\n", '{},{},"[4.0, 5.0, 26.0, 26.0]"', {"crop": "bbox", "box_form": "size"}),
}


@pytest.mark.parametrize(("head", "pattern", "found"), BOXES.values(), ids=BOXES)
def test_columns_of_boxes_are_crops(tmp_path, head, pattern, found):
    write_pictures(tmp_path)
    text = head + lines(pattern)
    if "bbox" in head:  # a box that ends inside its picture in one reading alone
        text += 'p00.png,bad,"[20, 20, 10, 10]"\n'
    (tmp_path / "labels.csv").write_text(text)
    layout = understand(tmp_path)
    assert layout.model_dump(exclude_defaults=True) == found
    rows = read_rows(make_domain(classes=["good", "bad"], layout=layout.model_dump()), tmp_path)
    assert Counter(map(tuple, rows["crop"]))[4, 5, 30, 31] == 8
