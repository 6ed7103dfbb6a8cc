"""A second import adds, says what it did, takes nothing away unasked, and leaves old or new images when killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import clean_environment, run_tessera
from filelock import FileLock
from samples import (
    CLASSES,
    save_coco,
    save_picture,
    write_annotation,
    write_coco,
    write_csv,
    write_folders,
    write_instances,
    write_masks,
    write_multilabel,
    write_parquet,
    write_table,
    write_voc,
)

from components.data.annotations.layouts import read_rows
from components.data.store import versioning
from components.data.store.importing import Imported, import_folder
from components.data.store.proofs import load_locked
from components.data.store.removing import remove_domain
from components.data.store.shards import open_images
from components.data.store.versions import list_versions, name_version
from components.domain.reading import load_domain
from components.errors import DataError, DomainError, VersioningError
from components.workspace import REPOSITORY, Workspace


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def counts(imported: Imported) -> tuple[int, int, int, int]:
    return imported.added, imported.removed, imported.changed, imported.kept


def refused(workspace: Workspace, source: Path, *words: str, **options: Any) -> None:
    """An import that says all of this and changes nothing."""
    before = contents(workspace.root / "data")
    with pytest.raises(DataError) as caught:
        import_folder(workspace, source, "tiles", **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert contents(workspace.root / "data") == before
    assert not list(workspace.state.glob("import-*"))


# Adding: in every layout two halves one after the other are the whole


def is_first_half(path: Path) -> bool:
    """Of pictures and what belongs to each: by the digits in the name, so that both halves have every class."""
    return sum(int(sign) for sign in path.stem if sign.isdigit()) % 4 < 2


def split_lines(table: Path, halves: tuple[Path, Path]) -> None:
    head, *lines = table.read_text().splitlines(keepends=True)
    for half in halves:
        kept = [line for line in lines if (half / line.split(",")[0]).exists()]
        (half / table.name).write_text("".join([head, *kept]))


def split_parquet(table: Path, halves: tuple[Path, Path]) -> None:
    frame = pl.read_parquet(table)
    for half in halves:
        frame.filter(pl.Series([(half / path).exists() for path in frame["image"]])).write_parquet(half / table.name)


def split_coco(table: Path, halves: tuple[Path, Path]) -> None:
    """Each half counts ids from 1 again, as an annotation tool does for each of its jobs."""
    whole = json.loads(table.read_text())
    for number, half in enumerate(halves):
        images = [image for image in whole["images"] if (half / "images" / image["file_name"]).exists()]
        ids = {image["id"]: place for place, image in enumerate(images, 1)}
        kinds = list(reversed(whole["categories"])) if number else whole["categories"]
        names = {kind["id"]: place for place, kind in enumerate(kinds, 1)}
        said = [item for item in whole["annotations"] if item["image_id"] in ids]
        said = [item | {"image_id": ids[item["image_id"]], "category_id": names[item["category_id"]]} for item in said]
        said = [item | {"id": place} for place, item in enumerate(said, 1)]
        images = [image | {"id": ids[image["id"]]} for image in images]
        save_coco(half / table.name, images, said, [kind | {"id": names[kind["id"]]} for kind in kinds])


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str | None, Callable[[Path, tuple[Path, Path]], None] | None]] = {
    "folders": (lambda raw: write_folders(raw, masks=True), None, None),
    "csv": (lambda raw: write_csv(raw, lots=3), "labels.csv", split_lines),
    "multilabel": (lambda raw: write_multilabel(raw, pictures=12), "labels.csv", split_lines),
    "parquet": (lambda raw: write_parquet(raw, lots=3), "labels.parquet", split_parquet),
    "voc": (write_voc, None, None),
    "coco": (write_coco, "annotations.json", split_coco),
    "instances": (write_instances, None, None),
    "masks": (write_masks, None, None),
}


@pytest.mark.parametrize("shards", [False, True], ids=["folder", "shards"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_halves_are_the_whole(tmp_path: Path, layout: str, shards: bool) -> None:
    write, table, split = LAYOUTS[layout]
    whole, halves = write(tmp_path / "whole"), (tmp_path / "first", tmp_path / "second")
    for number, half in enumerate(halves):
        for path in whole.rglob("*"):
            if path.is_file() and path.name != table and is_first_half(path) == (number == 0):
                target = half / path.relative_to(whole)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    if table and split:
        split(whole / table, halves)
    workspace = Workspace(tmp_path / "w")
    first = import_folder(workspace, halves[0], "tiles", shards=shards)
    second = import_folder(workspace, halves[1], "tiles")
    new = len(contents(halves[1])) - bool(table)
    assert (second.added, second.removed, second.changed) == (new, 0, int(bool(table)))
    assert second.files == first.files + new == len(contents(whole))
    rows = read_rows(second.domain, open_images(workspace, "tiles"))
    assert rows.equals(read_rows(second.domain, whole))
    again = import_folder(workspace, halves[0], "tiles")
    assert (again.added, again.removed) == (0, 0)
    assert read_rows(second.domain, open_images(workspace, "tiles")).equals(rows)


def test_lists_of_splits_are_joined(tmp_path: Path) -> None:
    for number, half in enumerate(("first", "second")):
        lists = write_voc(tmp_path / half, pictures=3) / "ImageSets/Main"
        for path in (tmp_path / half).rglob("p*.*"):
            path.rename(path.with_name(f"{half}{path.name}"))
        for path in (tmp_path / half / "Annotations").iterdir():
            path.write_text(path.read_text().replace("<filename>", f"<filename>{half}"))
        for index, image in enumerate((tmp_path / half / "JPEGImages").iterdir()):
            save_picture(image, 50 * number + index, width=96, height=80)
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text(f"{half}p0\n{half}p1" if number == 0 else f"{half}p0\n{half}p1\n")
    workspace = Workspace(tmp_path / "w")
    import_folder(workspace, tmp_path / "first", "tiles", "voc")
    import_folder(workspace, tmp_path / "second", "tiles")
    lists = workspace.raw("tiles") / "ImageSets/Main/train.txt"
    assert lists.read_text().split() == ["firstp0", "firstp1", "secondp0", "secondp1"]


# What would take something away


@pytest.fixture
def tiles(tmp_path: Path) -> tuple[Workspace, Path]:
    """A workspace with a domain of twelve pictures in two folders, and the folder that they came from."""
    source, workspace = write_folders(tmp_path / "source"), Workspace(tmp_path / "w")
    versioning.require_repository(workspace)
    import_folder(workspace, source, "tiles")
    return workspace, source


def test_another_picture_at_a_path_in_use_is_refused_unless_forced(tiles: tuple[Workspace, Path]) -> None:
    """A camera counts from 1 again every day."""
    workspace, source = tiles
    shutil.rmtree(source)
    save_picture(source / "good/good00.png", 77)
    save_picture(source / "good/new.png", 78)
    save_picture(source / "cracked/new.png", 79)
    refused(workspace, source, "good/good00.png", "--force", "--replace")
    assert counts(import_folder(workspace, source, "tiles", force=True)) == (2, 0, 1, 11)
    assert (workspace.raw("tiles") / "good/good00.png").read_bytes() == (source / "good/good00.png").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True], ids=["folder", "shards"])
def test_pictures_go_only_when_a_version_holds_them_or_force_says_so(tmp_path: Path, shards: bool) -> None:
    workspace, source = Workspace(tmp_path / "w"), write_folders(tmp_path / "source")
    versioning.require_repository(workspace)
    import_folder(workspace, source, "tiles", shards=shards)
    before = contents(source)
    (source / "good/good00.png").unlink()
    save_picture(source / "good/good01.png", 76)
    (source / "good/good02.png").rename(source / "good/renamed.png")
    refused(workspace, source, "good/good00.png, good/good01.png.", "tessera version tiles", "--force", replace=True)
    name_version(workspace, load_domain(workspace.domain_file("tiles")))
    assert counts(import_folder(workspace, source, "tiles", replace=True)) == (1, 2, 1, 9)
    assert contents(open_images(workspace, "tiles")).items() >= contents(source).items()
    shutil.rmtree(source / "cracked")
    save_picture(source / "cracked/only.png", 80)
    (source / "good/good01.png").unlink()  # the one that came after the version
    refused(workspace, source, "good/good01.png", replace=True)
    assert counts(import_folder(workspace, source, "tiles", replace=True, force=True)) == (1, 7, 0, 4)
    assert not contents(open_images(workspace, "tiles")).keys() & before.keys() - contents(source).keys()


Change = Callable[[Path], object]


def relabel(source: Path) -> None:
    write_table(source / "labels.csv", [("image", "label"), ("a.png", "good"), ("d.png", "cracked")])
    save_picture(source / "d.png", 4)


def add_column(source: Path) -> None:
    write_table(source / "labels.csv", [("image", "label", "lot"), ("d.png", "cracked", "1")])
    save_picture(source / "d.png", 4)


def list_twice(source: Path) -> None:
    """A picture in place that only the new table says something else of."""
    write_table(source / "labels.csv", [("image", "label"), ("d.png", "cracked"), ("b.png", "good")])
    save_picture(source / "d.png", 4)
    (source / "b.png").unlink()


def rewrite_utf16(source: Path) -> None:
    (source / "labels.csv").write_text("image,label\nd.png,good\n", encoding="utf-16")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (relabel, ("a.png", "label=cracked", "label=good", "--replace")),
        (add_column, ("labels.csv", "image,label", "image,label,lot", "--replace")),
        (list_twice, ("b.png", "label=cracked")),
        (rewrite_utf16, ("labels.csv",)),
    ],
)
def test_tables_that_disagree_are_refused(tmp_path: Path, change: Change, words: tuple[str, ...]) -> None:
    source, workspace = tmp_path / "source", Workspace(tmp_path / "w")
    rows = [("a.png", "cracked"), ("b.png", "cracked"), ("c.png", "good")]
    write_table(source / "labels.csv", [("image", "label"), *rows])
    for number, (name, _) in enumerate(rows):
        save_picture(source / name, number)
    import_folder(workspace, source, "tiles", "csv")
    change(source)
    refused(workspace, source, *words)


def test_a_table_keeps_quoted_lines_and_its_last_line(tmp_path: Path) -> None:
    source, workspace = tmp_path / "source", Workspace(tmp_path / "w")
    for number, (name, note) in enumerate([("a.png", "one\nfine"), ("b.png", "plain"), ("c.png", "one\nfine")]):
        shutil.rmtree(source, ignore_errors=True)
        save_picture(source / name, number)
        label = CLASSES[number % 2]
        write_table(source / "labels.csv", [("image", "label", "note"), (name, label, note)])
        text = (source / "labels.csv").read_bytes()
        (source / "labels.csv").write_bytes(text.rstrip(b"\n"))  # as editors leave it
        if number == 0:
            workspace.domain_file("tiles").parent.mkdir(parents=True)
            facts = "name: tiles\ntask: classification\nclasses: [good, cracked]\nlayout: csv\n"
            workspace.domain_file("tiles").write_text(facts)
        import_folder(workspace, source, "tiles")
    table = pl.read_csv(workspace.raw("tiles") / "labels.csv")
    assert table["image"].to_list() == ["a.png", "b.png", "c.png"]
    assert table["label"].to_list() == ["good", "cracked", "good"]
    assert table["note"].to_list() == ["one\nfine", "plain", "one\nfine"]


def test_other_boxes_for_a_picture_in_place_are_refused(tmp_path: Path) -> None:
    source, workspace = write_coco(tmp_path / "source"), Workspace(tmp_path / "w")
    import_folder(workspace, source, "tiles")
    content = json.loads((source / "annotations.json").read_text())
    content["annotations"][0]["bbox"][2] -= 4
    (source / "annotations.json").write_text(json.dumps(content))
    refused(workspace, source, "images/p0.jpg", "--replace")
    voc = write_voc(tmp_path / "voc")
    import_folder(workspace, voc, "other")
    write_annotation(voc / "Annotations/p0.xml", "p0.jpg", [("good", (1, 1, 30, 30))])
    with pytest.raises(DataError, match=r"Annotations/p0\.xml.*--force"):
        import_folder(workspace, voc, "other")
    assert import_folder(workspace, voc, "other", force=True).changed == 1


def test_other_names_for_the_numbers_in_label_files_are_refused_even_by_force(tmp_path: Path) -> None:
    """The labels in place would all change their meaning."""
    workspace = Workspace(tmp_path / "w")
    for number, names in enumerate((CLASSES, tuple(reversed(CLASSES)))):
        source = tmp_path / f"source{number}"
        for index in range(4):
            save_picture(source / f"images/s{number}{index}.png", 10 * number + index, width=96, height=80)
            label = source / f"labels/s{number}{index}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f"{index % 2} 0.5 0.5 0.4 0.4\n")
        (source / "data.yaml").write_text(yaml.safe_dump({"names": list(names)}))
        if number == 0:
            import_folder(workspace, source, "tiles")
    refused(workspace, source, "data.yaml", "--force")
    refused(workspace, source, "images/s00.png", "--replace", force=True)


@pytest.mark.slow
def test_images_that_are_not_checked_out_are_no_empty_domain(tiles: tuple[Workspace, Path]) -> None:
    workspace, source = tiles
    versioning.record_version(workspace, "tiles")
    before = contents(workspace.raw("tiles"))
    shutil.rmtree(workspace.raw("tiles"))
    shutil.rmtree(source)
    save_picture(source / "good/new.png", 50)
    save_picture(source / "cracked/new.png", 51)
    assert counts(import_folder(workspace, source, "tiles")) == (2, 0, 0, 12)
    assert contents(workspace.raw("tiles")) == before | contents(source)
    versioning.record_version(workspace, "tiles")
    shutil.rmtree(workspace.raw("tiles"))
    shutil.rmtree(workspace.root / ".dvc/cache")
    refused(workspace, source, "raw.dvc", "nowhere", "--replace")
    refused(workspace, source, "--force", replace=True)
    assert counts(import_folder(workspace, source, "tiles", replace=True, force=True)) == (2, 0, 0, 0)


@pytest.mark.slow
def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source", images=3)
    first = run_tessera(tmp_path / "w", "import", str(source), "--domain", "tiles")
    shutil.rmtree(source)
    save_picture(source / "good/new.png", 50)
    save_picture(source / "cracked/new.png", 51)
    second = run_tessera(tmp_path / "w", "import", str(source), "--domain", "tiles", as_json=False)
    assert [first.outcome[key] for key in ("added", "removed", "changed", "kept")] == [6, 0, 0, 0]
    assert "+2 -0" in second.stdout
    third = run_tessera(tmp_path / "w", "import", str(source), "--domain", "tiles", "--replace")
    assert third.code == 2
    assert "cracked/cracked00.png" in third.outcome["error"]["found"]


# Kills


#: Ends the process before the Nth thing that it does to the file system: "N SCRIPT ARGUMENTS".
DIES = """
import os, sys
left = int(sys.argv[1])
def watch(event, _):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree"):
        left -= 1
        if left == 0:
            os._exit(9)
sys.addaudithook(watch)
"""

REPLACE = """
from pathlib import Path
from components.files import whole_folder
with whole_folder(Path(sys.argv[2])) as fresh:
    (fresh / "a").mkdir()
    (fresh / "a" / "x").write_text("new")
    (fresh / "y").write_text("new")
"""

SETTLE = """
from pathlib import Path
from components.files import settle_folder
settle_folder(Path(sys.argv[2]))
"""

OLD, NEW = {"a/x": b"old", "z": b"old"}, {"a/x": b"new", "y": b"new"}


def die(step: int, code: str, *arguments: object) -> bool:
    """Run a script that ends itself at the given step; whether it came so far."""
    command = [sys.executable, "-c", DIES + code, str(step), *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 9), done.stderr
    return done.returncode == 9


def write_old(target: Path) -> None:
    shutil.rmtree(target.parent, ignore_errors=True)
    for path, content in OLD.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(content)


@pytest.mark.slow
def test_a_folder_replaced_by_a_killed_process_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    target, step, found = tmp_path / "data" / "raw", 1, []
    write_old(target)
    while die(step, REPLACE, target):
        left = tmp_path / "left"
        shutil.copytree(target.parent, left)
        for again in range(1, 4):  # what settles it is killed, too
            shutil.rmtree(target.parent)
            shutil.copytree(left, target.parent)
            die(again, SETTLE, target)
            assert not die(10_000, SETTLE, target)
            assert contents(target) in (OLD, NEW)
            assert [path.name for path in target.parent.iterdir()] == ["raw"]
        found.append(contents(target))
        shutil.rmtree(left)
        write_old(target)
        step += 1
    assert contents(target) == NEW
    assert OLD in found
    assert NEW in found


IMPORT = """
from pathlib import Path
from components.data.store import versioning
from components.data.store.importing import import_folder
from components.workspace import Workspace
place = Workspace(Path(sys.argv[2]))
import_folder(place, Path(sys.argv[3]), "tiles")
versioning.register_domain(place, "tiles")
"""


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True], ids=["folder", "shards"])
def test_an_import_killed_at_any_step_is_undone_or_finished(tmp_path: Path, shards: bool) -> None:
    source, workspace = write_folders(tmp_path / "source", images=2), Workspace(tmp_path / "w")
    versioning.require_repository(workspace)
    import_folder(workspace, source, "tiles", shards=shards)
    old = versioning.record_version(workspace, "tiles")
    save_picture(source / "good/more.png", 50)
    shutil.copytree(workspace.root, tmp_path / "kept")
    files, step = {4, 5}, 1
    while die(step, IMPORT, workspace.root, source):
        version = versioning.record_version(workspace, "tiles")  # the next command
        images = contents(open_images(workspace, "tiles"))
        assert len([path for path in images if path.endswith(".png")]) in files
        assert (version.md5 == old.md5) == ("good/more.png" not in images)
        assert not list(workspace.raw("tiles").parent.glob(".raw*"))
        import_folder(workspace, source, "tiles")
        assert contents(open_images(workspace, "tiles")).items() >= contents(source).items()
        assert not list(workspace.state.glob("import-*"))
        shutil.rmtree(workspace.root)
        shutil.copytree(tmp_path / "kept", workspace.root)
        step += 7  # every seventh: the steps of the swap are tried one by one above
    assert step > 7


# Turns


HOLD = """
import sys, time
from pathlib import Path
from components.data.store.versioning import hold_domain
from components.workspace import Workspace
with hold_domain(Workspace(Path(sys.argv[1])), "tiles", "tessera check tiles"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_of_two_waits_or_is_refused_and_the_dead_hold_nothing(
    tiles: tuple[Workspace, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    workspace, source = tiles
    command = [sys.executable, "-c", HOLD, str(workspace.root)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, env=clean_environment(), text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        monkeypatch.setattr(versioning, "PATIENCE", 0.2)
        for act in (
            lambda: import_folder(workspace, source, "tiles"),
            lambda: versioning.record_version(workspace, "tiles"),
            lambda: name_version(workspace, load_domain(workspace.domain_file("tiles"))),
        ):
            with pytest.raises(VersioningError, match=f"`tessera check tiles` of process {holder.pid}"):
                act()
            assert f"`tessera check tiles` of process {holder.pid}; waiting" in capfd.readouterr().err
        with versioning.hold_domain(workspace, "others", "a test"):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with versioning.hold_domain(workspace, "tiles", "outer"), versioning.hold_domain(workspace, "tiles", "inner"):
        assert import_folder(workspace, source, "tiles").kept == 12


@pytest.mark.parametrize("name", ["../tiles", "Tiles", "", "a" * 64])
def test_a_name_that_no_domain_may_have_makes_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DomainError, match="small letters"), versioning.hold_domain(Workspace(tmp_path), name, "x"):
        pass
    assert list(tmp_path.iterdir()) == []


# Removing


@pytest.mark.slow
def test_a_removed_domain_leaves_nothing_of_its_own_and_comes_back(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    versioning.require_repository(workspace)
    for name in ("tiles", "tile"):
        import_folder(workspace, write_folders(tmp_path / name, images=5), name)
        versioning.register_domain(workspace, name)
        versioning.record_version(workspace, name)
        versioning.run_stage(workspace, "manifest", name)
    before = contents(workspace.raw("tiles"))
    with pytest.raises(VersioningError, match=r"tessera version tiles.*--force"):
        remove_domain(workspace, "tiles")
    assert contents(workspace.raw("tiles")) == before
    named, _ = name_version(workspace, load_domain(workspace.domain_file("tiles")))
    (workspace.runs("tiles") / "0123").mkdir(parents=True)
    outcome = remove_domain(workspace, "tiles")
    assert (outcome.files, outcome.data_version) == (10, named.md5)
    assert [path.name for path in workspace.domain_file("tiles").parent.iterdir()] == ["versions.json"]
    assert yaml.safe_load((workspace.root / "dvc.yaml").read_text())["vars"][0]["domains"] == ["tile"]
    assert list(load_locked(workspace)) == ["manifest@tile"]
    assert not workspace.derived("tiles").exists()
    assert not workspace.runs("tiles").exists()
    assert workspace.derived("tile").exists()
    assert list_versions(workspace, "tiles") == [named]
    subprocess.run(outcome.back, shell=True, check=True)
    assert versioning.record_version(workspace, "tiles").md5 == named.md5
    assert contents(workspace.raw("tiles")) == before
    with pytest.raises(DomainError, match="tile"):
        remove_domain(workspace, "nothing")


REMOVE = """
from pathlib import Path
from components.data.store.removing import remove_domain
from components.workspace import Workspace
remove_domain(Workspace(Path(sys.argv[2])), "tiles", force=True)
"""


@pytest.mark.slow
def test_a_removal_killed_at_any_step_is_finished_by_the_same_command(tiles: tuple[Workspace, Path]) -> None:
    workspace, _ = tiles
    versioning.register_domain(workspace, "tiles")
    versioning.record_version(workspace, "tiles")
    kept, step = workspace.root.with_name("kept"), 1
    shutil.copytree(workspace.root, kept)
    while die(step, REMOVE, workspace.root):
        if workspace.domain_file("tiles").exists():
            remove_domain(workspace, "tiles", force=True)
        assert not list(workspace.domain_file("tiles").parent.glob("*"))
        assert len(list((workspace.state / "removed").iterdir())) == 1
        shutil.rmtree(workspace.root)
        shutil.copytree(kept, workspace.root)
        step += 5
    assert step > 6


def test_a_domain_in_training_is_not_removed(tiles: tuple[Workspace, Path]) -> None:
    workspace, _ = tiles
    with (
        FileLock(workspace.state / "locks" / "retrain-tiles.lock"),
        pytest.raises(VersioningError, match="no running retrain of it"),
    ):
        remove_domain(workspace, "tiles", force=True)
    assert len(contents(workspace.raw("tiles"))) == 12
