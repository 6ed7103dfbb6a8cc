"""Tables of answers for many images: journaled, resumed, the same in every form."""

import base64
import io
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import fleets
import numpy as np
import polars as pl
import pytest
import typer
import uvicorn
import yaml
from conftest import clean_environment
from PIL import Image

from components.errors import DataError, WorkspaceError
from components.files import hash_file
from components.models.adapter import InputMeta, hash_meta, load_meta
from components.models.backbones import load_backbone
from components.processes import identify
from components.promotion import versions
from components.records.predictions import BoxesAnswer, MapAnswer, Predictions, Unanswered
from components.serving.__main__ import answer_pictures
from components.serving.address import Address, remove_address, save_address
from components.serving.folder_journal import name_journal
from components.serving.folders import Group, Summary, open_table
from components.serving.predictor import Predictor
from components.serving.questions import Question, group_questions
from components.serving.rack import Racks
from components.serving.rows import create_row, describe, list_columns
from components.serving.saliency import require_saliency
from components.serving.server.app import create_app
from components.serving.server.champions import Champion, Champions
from components.serving.server.service import open_service
from components.serving.tables import READERS, read_table, write_table
from components.tasks.detection import DetectionTask
from components.tasks.multilabel import MultilabelTask
from components.tasks.segmentation import SegmentationTask
from components.tracking.store import Store
from components.workspace import REPOSITORY, Workspace
from flows.commands.counting import Counter
from flows.commands.predict import exit_code, predict
from flows.commands.predict_files import require_files
from flows.commands.predict_questions import read_questions
from flows.steps.asking import describe_champion
from flows.steps.asking_server import Moved, Server, find_server

CLASSES = fleets.CLASSES
COLUMNS = list_columns("label", CLASSES)
COLUMN_NAMES = [column.name for column in COLUMNS]
FORMS = tuple(READERS)


# Tables


OBJECTS = [{"label": "good", "box": [0.5, 1.0, 20.25, 30.0], "confidence": 0.1 + 0.2}]
COMPONENTS = [{"label": "pit", "box": [0, 1, 20, 30], "area": 77, "confidence": 1 / 3}]
SAID: dict[str, dict[str, Any]] = {
    "label": {"answer": {"label": "pit"}, "label": "pit", "probabilities": dict.fromkeys(CLASSES, 1 / 3)},
    "labels": {"answer": {"labels": ["pit"]}, "label": "pit", "probabilities": dict.fromkeys(CLASSES, 0.1 + 0.2)},
    "mask": {
        "answer": {"areas": dict.fromkeys(CLASSES, 7), "components": COMPONENTS, "label": "pit"},
        "label": "pit",
        "probabilities": None,
    },
    "boxes": {
        "answer": {"counts": dict.fromkeys(CLASSES, 2), "objects": OBJECTS, "label": "good"},
        "label": "good",
        "probabilities": None,
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("annotation", SAID)
def test_a_table_is_read_back_as_it_was_written(annotation: str, form: str, tmp_path: Path) -> None:
    columns = list_columns(annotation, CLASSES)
    origin = {"version": 3, "adapter_sha256": "ab" * 32}
    asked = {"path": 'a "b",\n.png', "sha256": "cd" * 32, "box": [1, 2, 30, 40]}
    answered = create_row(SAID[annotation] | {"crop": [1, 2, 30, 40]}, columns) | origin | asked
    error = DataError("a.png", expected="an image", found="a zebra, striped", hint="Ask again.")
    failed = create_row({"error": error.to_dict()}, columns) | origin | asked | {"box": None, "sha256": None}
    write_table(tmp_path / f"a{form}", columns, iter([answered, failed]))
    assert list(read_table(tmp_path / f"a{form}", columns)) == [answered, failed]
    assert failed["error"] == "expected an image; found a zebra, striped. Ask again."


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_something_else_is_refused(form: str, tmp_path: Path) -> None:
    other, columns = tmp_path / f"other{form}", list_columns("label", ["steel"])
    write_table(
        other, columns, iter([create_row({"error": dict.fromkeys(("expected", "found", "hint"), "")}, columns)])
    )
    (tmp_path / f"text{form}").write_text("what is this?\nnobody knows\n")
    for file in (other, tmp_path / f"text{form}"):
        before = file.read_bytes()
        with (
            pytest.raises(DataError, match=r"a new file, or one of earlier answers .* p_good, p_crack, p_pit, version"),
            open_table(file, COLUMNS, 1, "ab" * 32),
        ):
            raise AssertionError("it was taken")
        assert file.read_bytes() == before


# One process


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    backbone = load_backbone("embedded", 32)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    return Predictor(fleets.write_adapter(folder, backbone, {"kind": "linear"}), backbone)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which two are equal and three are unfit, each for a reason of its own."""
    place = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        save(place / f"{number:02}.png", number)
    (place / "07.png").write_bytes((place / "21.png").read_bytes())
    (place / "11.png").write_bytes(b"no picture")
    (place / "12.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 40)).save(place / "13.png")
    return place


def save(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


class Asking:
    """Asks a predictor of this process as a child would; counts, and can be interrupted."""

    def __init__(self, predictor: Predictor, most: int = 10**9) -> None:
        self.predictor, self.most = predictor, most
        self.asked = list[str]()
        self.done = self.failed = 0

    def __call__(self, groups: Iterator[Group]) -> Iterator[tuple[Group, dict[str, Any]]]:
        passed: deque[Group] = deque()

        def lines() -> Iterator[dict[str, Any]]:
            for group in groups:
                passed.append(group)
                self.asked.append(Path(group[0].path).name)
                yield {"path": group[0].path, "name": "", "boxes": [question.box for question in group]}

        for number, reply in enumerate(answer_pictures(self.predictor, lines(), False, ())):
            if number == self.most:
                raise KeyboardInterrupt
            yield passed.popleft(), reply

    def count(self, done: int, failed: int, *, known: bool = False) -> None:
        self.done += done
        self.failed += failed

    def see(self, question: Question, said: dict[str, Any]) -> None:
        assert said

    def wants(self, question: Question) -> bool:
        return False


def answer(file: Path, asked: Sequence[Question | DataError], ask: Asking, version: int = 1) -> Summary:
    with open_table(file, COLUMNS, version, "ab" * 32) as table:
        return table.answer(asked, ask, ask)


def questions(folder: Path) -> list[Question | DataError]:
    return [Question(path) for path in sorted(folder.iterdir())]


def test_rows_are_in_the_order_asked_and_bad_files_are_rows(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    asked, ask, file = questions(folder)[::-1], Asking(predictor), tmp_path / "new" / "a.jsonl"
    gone = DataError("gone.png", expected="an image", found="nothing there", hint="Look.")
    asked[3:3] = [gone, Question(folder / "removed.png")]
    summary = answer(file, asked, ask)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    paths = [one.path if isinstance(one, Question) else one.what for one in asked]
    assert [row["path"] for row in rows] == paths
    failed = [Path(row["path"]).name for row in rows if row["error"]]
    assert failed == ["gone.png", "removed.png", "13.png", "12.png", "11.png"]
    assert (summary.answered, summary.failed, ask.done, ask.failed) == (37, 5, 42, 4)  # 12 and 11 are one question
    by_name = {Path(row["path"]).name: row for row in rows}
    assert "No such file" in by_name["removed.png"]["error"]
    assert by_name["13.png"]["sha256"] == hash_file(folder / "13.png")
    for key in set(COLUMN_NAMES) - {"path"}:
        assert by_name["07.png"][key] == by_name["21.png"][key]
    assert len(ask.asked) == 40 - 2 + 1  # two contents are there twice
    assert not name_journal(file).exists()
    assert sum(summary.shown.values()) == 37
    alone = predictor.predict([folder / "00.png"])[0]
    assert by_name["00.png"]["p_pit"] == pytest.approx((alone.probabilities or {})["pit"], abs=1e-5)


def test_every_form_has_the_same_rows(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    ask = Asking(predictor)
    files = [tmp_path / f"a{form}" for form in FORMS]
    for file in files:
        answer(file, questions(folder), ask)
    first, *others = [list(read_table(file, COLUMNS)) for file in files]
    assert all(rows == first for rows in others)
    frame = pl.read_csv(tmp_path / "a.csv")
    assert frame.drop("box", "crop").equals(pl.read_parquet(tmp_path / "a.parquet").drop("box", "crop"))
    assert frame.columns == COLUMN_NAMES


@pytest.mark.parametrize("form", FORMS)
def test_what_is_known_is_not_asked_again(form: str, predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    """By the finished table: of the same version, whatever the names of the files are now."""
    file, some = tmp_path / f"a{form}", questions(folder)[20:]
    answer(file, some, Asking(predictor))
    ask = Asking(predictor)
    summary = answer(file, questions(folder), ask)
    assert ask.asked == [f"{number:02}.png" for number in range(20) if number not in (7, 12)]  # copies of known ones
    assert summary.known == 21
    expected = tmp_path / f"b{form}"
    answer(expected, questions(folder), Asking(predictor))
    assert file.read_bytes() == expected.read_bytes()
    again = Asking(predictor)
    assert answer(file, questions(folder), again).known == 40
    assert (again.asked, file.read_bytes()) == ([], expected.read_bytes())


def test_another_version_begins_anew(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    file, some = tmp_path / "a.csv", questions(folder)[:5]
    answer(file, some, Asking(predictor))
    with pytest.raises(KeyboardInterrupt):
        answer(tmp_path / "b.csv", some, Asking(predictor, most=3))
    for name, outdated in {"a.csv": 5, "b.csv": 3}.items():
        ask = Asking(predictor)
        with open_table(tmp_path / name, COLUMNS, 2, "ab" * 32) as table:
            assert table.outdated == outdated
            assert table.answer(some, ask, ask).known == 0
        assert len(ask.asked) == 5
        assert {row["version"] for row in read_table(tmp_path / name, COLUMNS)} == {2}


@pytest.mark.parametrize("damage", [b"", b'{"sha256": "abc', b"\0" * 30, b'{"sha256": "abc"}\n{"x": 1'])
def test_an_interrupted_run_goes_on(damage: bytes, predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    file, first = tmp_path / "a.csv", Asking(predictor, most=25)
    with pytest.raises(KeyboardInterrupt):
        answer(file, questions(folder), first)
    assert not file.exists()
    with name_journal(file).open("ab") as journal:
        journal.write(damage)
    second = Asking(predictor)
    assert answer(file, questions(folder), second).known == 25 + 2  # and the copies of two of them
    assert len(second.asked) == 38 - 25
    expected = tmp_path / "b.csv"
    answer(expected, questions(folder), Asking(predictor))
    assert_same(file, expected)


def assert_same(file: Path, other: Path) -> None:
    """Up to what a forward differs by from itself in another batch."""
    rows, others = (list(read_table(each, COLUMNS)) for each in (file, other))
    shares = [name for name in COLUMN_NAMES if name.startswith("p_")]
    for row, expected in zip(rows, others, strict=True):
        assert {**row, **dict.fromkeys(shares)} == {**expected, **dict.fromkeys(shares)}
        if row["error"] is None:
            assert [row[name] for name in shares] == pytest.approx([expected[name] for name in shares], abs=2e-2)


def test_boxes_are_questions_of_their_own(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    meta = predictor.meta
    inputs = meta.input.model_copy(update={"kind": "either"}) if meta.input else None
    backbone = predictor.rack.backbone
    boxed = Predictor(fleets.write_adapter(tmp_path / "boxed", backbone, {"kind": "linear"}, input=inputs), backbone)
    boxes = [(left, 0, left + 17, 20) for left in (0, 4, 4)]
    asked = [Question(folder / "00.png", box) for box in (*boxes, (0, 0, 99, 99), None)]
    ask, file = Asking(boxed), tmp_path / "a.csv"
    answer(file, asked, ask)
    rows = list(read_table(file, COLUMNS))
    assert [row["box"] for row in rows] == [None if one.box is None else list(one.box) for one in asked]
    assert rows[1] == rows[2]
    assert rows[0]["p_pit"] != rows[1]["p_pit"] != rows[4]["p_pit"]
    assert [row["error"] is None for row in rows] == [True, True, True, False, True]
    assert "inside the 32 x 24 picture" in rows[3]["error"]
    assert answer(file, asked, Asking(boxed)).known == 5


def test_a_file_that_changes_meanwhile_is_known_by_what_was_read(predictor: Predictor, tmp_path: Path) -> None:
    path, file = save(tmp_path / "a.png", 1), tmp_path / "a.jsonl"
    ask = Asking(predictor)

    def change(groups: Iterator[Group]) -> Iterator[tuple[Group, dict[str, Any]]]:
        taken = list(groups)
        save(path, 2)
        return ask(iter(taken))

    with open_table(file, COLUMNS, 1, "ab" * 32) as table:
        table.answer([Question(path)], change, ask)
    (row,) = read_table(file, COLUMNS)
    assert row["sha256"] == hash_file(path)


def test_a_full_disk_keeps_what_was_answered(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    file, soft = tmp_path / "a.csv", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, soft[1]))
        with pytest.raises(
            WorkspaceError, match=r"the same command goes on: \d+ answers are kept in .*a\.csv\.journal"
        ):
            answer(file, questions(folder), Asking(predictor))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert not file.exists()
    assert not list(tmp_path.glob("*.partial"))
    assert answer(file, questions(folder), Asking(predictor)).known > 3


def test_one_command_writes_a_table(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    with (
        open_table(file, COLUMNS, 1, "ab" * 32),
        pytest.raises(DataError, match="no other command that writes it"),
        open_table(file, COLUMNS, 1, "ab" * 32),
    ):
        raise AssertionError("it was taken")


# What is asked


def test_stdin_has_names_or_an_image(folder: Path, tmp_path: Path) -> None:
    names = [folder / "00.png", folder / "02.png"]
    for text in ("\n".join(map(str, names)), "\r\n".join(map(str, [*names, ""])), "\0".join(map(str, [*names, ""]))):
        asked = read_questions([Path("-")], [], None, tmp_path, io.BytesIO(text.encode()))
        assert [one.path for one in asked.questions if isinstance(one, Question)] == [str(name) for name in names]
    for form in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"):
        data = io.BytesIO()
        Image.open(folder / "00.png").save(data, form)
        (one,) = read_questions([Path("-")], [], None, tmp_path, io.BytesIO(data.getvalue())).questions
        assert isinstance(one, Question)
        assert (one.name, Path(one.path).read_bytes()) == ("-", data.getvalue())
    for paths, data, words in (
        ([Path("-")], b"", "names of files, or an image, on stdin; found nothing"),
        ([Path("-"), folder], b"", "no other files where names come from stdin; found 2"),
        ([Path("-")], b"BMW.png\n", "BMW.png: expected an image file or a folder; found nothing there"),
    ):
        with pytest.raises(DataError, match=words):
            read_questions(paths, [], None, tmp_path, io.BytesIO(data))


def test_progress_is_one_line_in_a_terminal_and_rare_lines_elsewhere() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, expected in (
        (Terminal(), "\r1,030 of 2,000 images, 1.0 per second, 16 min left, 3 without an answer\x1b[K"),
        (io.StringIO(), "tessera: 1,030 of 2,000 images, 1.0 per second, 16 min left, 3 without an answer\n"),
    ):
        with Counter(2000, stream) as counter:
            counter.count(1000, 0, known=True)
            counter.count(1, 0)
            assert stream.getvalue() == ""
            assert counter.began is not None
            counter.began -= 29
            counter.next = 0.0
            counter.count(29, 3)
            assert stream.getvalue() == expected
        assert stream.getvalue().removeprefix(expected) == ("\r\x1b[K" if stream.isatty() else "")


# The server


@pytest.fixture(scope="module")
def workspace(mlflow_workspace: Workspace, store: Store, predictor: Predictor) -> Workspace:
    """Its domain `plates` has a champion."""
    fleets.promote_adapter(mlflow_workspace, store, "plates", predictor.resident.folder)
    (file := mlflow_workspace.domain_file("plates")).parent.mkdir(parents=True)
    domain = {"name": "plates", "task": "classification", "classes": list(CLASSES), "layout": "folders"}
    file.write_text(yaml.safe_dump(domain))
    return mlflow_workspace


@dataclass
class Serving:
    """A server in a thread of this process. stop: cuts all connections."""

    address: Address
    stop: Callable[[], None]


@contextmanager
def serve(adapters: Mapping[str, Path]) -> Iterator[Serving]:
    champions, racks = Champions(), Racks()
    for domain, folder in adapters.items():
        champions.put(Champion(domain, 1, hash_meta(folder), *racks.put(domain, folder)))
    champions.ready = True
    service = open_service(champions)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="critical"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()

        def stop() -> None:
            server.should_exit = server.force_exit = True
            for protocol in list(server.server_state.connections):
                protocol.transport.abort()  # type: ignore[union-attr]
            thread.join()

        try:
            yield Serving(Address(identify(), f"http://127.0.0.1:{listening.getsockname()[1]}"), stop)
        finally:
            stop()
            service.close(5)


@pytest.fixture(scope="module")
def adapters(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place, backbone = tmp_path_factory.mktemp("adapters"), predictor.rack.backbone
    tasks: dict[str, Any] = {"several": MultilabelTask(), "maps": SegmentationTask(background="good")}
    tasks["found"] = DetectionTask()
    limits = {"several": dict.fromkeys(CLASSES, 0.3), "maps": {}, "found": dict.fromkeys(CLASSES, 0.01)}
    made = {
        name: fleets.write_adapter(place / name, backbone, {"kind": "linear"}, task=task, thresholds=limits[name])
        for name, task in tasks.items()
    }
    inputs = InputMeta(kind="either", max_megapixels=100, min_side=16)
    made["crops"] = fleets.write_adapter(place / "crops", backbone, {"kind": "linear"}, input=inputs)
    return {"plates": predictor.resident.folder, **made}


@pytest.fixture(scope="module")
def serving(adapters: dict[str, Path], workspace: Workspace) -> Iterator[Serving]:
    with serve(adapters) as running:
        save_address(workspace, running.address)
        yield running
        remove_address(workspace, identify())


@dataclass
class Here:
    """A source that answers in this process, as a child would."""

    champion: Any
    asking: Asking

    def ask(
        self, groups: Iterable[list[Question]], *, whole: bool, extras: Sequence[str]
    ) -> Iterator[tuple[list[Question], dict[str, Any]]]:
        return self.asking(iter(groups))


@pytest.mark.parametrize("name", ["plates", "several", "maps", "found", "crops"])
def test_the_server_and_a_child_give_the_same_rows(
    name: str, serving: Serving, adapters: dict[str, Path], workspace: Workspace, folder: Path
) -> None:
    server = find_server(workspace, name, pytest.fail)
    assert server is not None
    meta = load_meta(adapters[name])
    version = versions.Version(
        domain=name, version=1, run_id="", source="", tuner=meta.label, adapter_json_sha256=hash_meta(adapters[name])
    )
    assert server.champion == replace(describe_champion(version, meta), meta=None)
    asked = [Question(path) for path in sorted(folder.iterdir())] + [Question(folder / "gone.png")]
    if name == "crops":
        asked += [Question(folder / "00.png", box) for box in [(0, 0, 20, 20), (3, 3, 4, 4), (0, 0, 99, 9)]]
        asked += [Question(folder / "01.png", box) for box in [(3, 3, 4, 4), (0, 0, 99, 9)]]  # none has an answer
    groups = list(group_questions(asked))
    asking = Asking(Predictor(adapters[name]))
    columns = list_columns(meta.task.annotation, CLASSES)
    pairs = zip(server.ask(groups, whole=False, extras=()), asking(iter(groups)), strict=True)
    for (group, reply), (same, expected) in pairs:
        assert (group, reply["sha256"]) == (same, expected["sha256"])
        for question, said, other in zip(group, reply["answers"], expected["answers"], strict=True):
            row, known = (describe(question, one, 1).model_dump() for one in (said, other))
            assert_alike(row, known)
            assert_alike(create_row(said, columns), create_row(other, columns))


def assert_alike(one: Any, other: Any) -> None:
    """Equal up to the last digits of shares, which depend on the batch."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for some, others in zip(one, other, strict=True):
            assert_alike(some, others)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=2e-2)
    else:
        assert one == other


def test_what_the_server_leaves_is_answered_in_its_place(
    predictor: Predictor, workspace: Workspace, folder: Path, tmp_path: Path
) -> None:
    asked, said = questions(folder), list[str]()
    ask = Asking(predictor)
    with serve({"plates": predictor.resident.folder}) as going:
        save_address(workspace, going.address)
        server = find_server(workspace, "plates", said.append)
        assert server is not None
        server.instead = lambda: Here(server.champion, ask)

        def cut(groups: Iterator[Group]) -> Iterator[tuple[Group, dict[str, Any]]]:
            for number, answered in enumerate(server.ask(groups, whole=False, extras=())):
                if number == 4:
                    going.stop()
                yield answered

        with open_table(tmp_path / "a.csv", COLUMNS, 1, "ab" * 32) as table:
            summary = table.answer(asked, cut, ask)
    assert (summary.answered, summary.failed) == (37, 3)
    assert 0 < len(ask.asked) < 38 - 4
    assert len(said) == 1
    assert "another process answers the rest" in said[0]
    answer(tmp_path / "b.csv", asked, Asking(predictor))
    assert_same(tmp_path / "a.csv", tmp_path / "b.csv")
    assert find_server(workspace, "plates", said.append) is None
    assert "does not answer" in said[1]


def test_a_promotion_meanwhile_is_noticed(serving: Serving, workspace: Workspace, folder: Path) -> None:
    save_address(workspace, serving.address)
    server = find_server(workspace, "plates", pytest.fail)
    assert server is not None
    server.champion = replace(server.champion, version=2)
    with pytest.raises(Moved):
        list(server.ask([[Question(folder / "00.png")]], whole=False, extras=()))
    assert find_server(workspace, "nobody", pytest.fail) is None


def find(workspace: Workspace, serving: Serving, name: str) -> Server:
    save_address(workspace, serving.address)
    server = find_server(workspace, name, pytest.fail)
    assert server is not None
    return server


def test_a_command_with_a_table_prints_no_rows(
    serving: Serving, workspace: Workspace, folder: Path, tmp_path: Path
) -> None:
    """And an error where nothing was answered, as without a table."""
    server, file = find(workspace, serving, "plates"), tmp_path / "a.csv"
    outcome = predict(workspace, "plates", [folder], out=file, server=server)
    assert (outcome.answered, outcome.failed, outcome.predictions, exit_code(outcome)) == (37, 3, (), 1)
    assert outcome.table == file.as_posix()
    assert outcome.shown == dict(
        sorted(Counts(row["label"] for row in read_table(file, COLUMNS) if row["label"]).items())
    )
    rows = predict(workspace, "plates", [folder], server=server)
    assert [row.label for row in rows.predictions] == [row["label"] for row in read_table(file, COLUMNS)]
    assert rows.model_copy(update={"predictions": (), "table": outcome.table, "shown": outcome.shown}) == outcome
    none = predict(workspace, "plates", [folder / "11.png"], out=tmp_path / "b.csv", server=server)
    assert isinstance(none, Unanswered)
    assert (exit_code(none), none.error.what) == (2, (folder / "11.png").as_posix())
    assert "a file in another format" in none.error.found


@pytest.mark.parametrize("name", ["maps", "found"])
def test_masks_and_boxes_have_a_row_per_image_too(
    name: str, serving: Serving, workspace: Workspace, folder: Path, tmp_path: Path
) -> None:
    server, files = find(workspace, serving, name), [tmp_path / "a.parquet", tmp_path / "a.jsonl"]
    tables = []
    for file in files:
        outcome = predict(workspace, name, [folder], out=file, server=server)
        assert outcome.table == file.as_posix()
        tables.append(list(read_table(file, list_columns(server.champion.annotation, CLASSES))))
    assert len(tables[0]) == 40
    assert_alike(*tables)
    plain = predict(workspace, name, [folder / "00.png"], server=server).predictions[0]
    if isinstance(plain, BoxesAnswer):
        assert [tables[0][0][f"count_{one}"] for one in CLASSES] == list(plain.counts.values())
        assert len(tables[0][0]["objects"]) == len(plain.objects)
    else:
        assert isinstance(plain, MapAnswer)
        assert sum(tables[0][0][f"area_{one}"] for one in CLASSES) == 24 * 32
        assert len(tables[0][0]["components"]) == len(plain.components) > 0


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "folder": ("plates", {"out": "answers"}, r"ends in \.csv, \.parquet or \.jsonl; found a name without an ending"),
    "coco": ("plates", {"out": "a.json"}, r"found the ending \.json"),
    "polygons": ("plates", {"polygons": True}, "one of the task classification"),
    "polygons of a table": (
        "maps",
        {"polygons": True, "out": "a.csv"},
        "where their outlines are written; found `--out",
    ),
    "saliency": ("found", {"saliency": "seen"}, "answers a picture as a whole; found one of the task detection"),
}


@pytest.mark.parametrize(("name", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_form_is_refused(
    name: str, options: dict[str, Any], words: str, adapters: dict[str, Path], tmp_path: Path
) -> None:
    meta = load_meta(adapters[name])
    out, saliency = (tmp_path / options[key] if key in options else None for key in ("out", "saliency"))

    def require() -> None:
        require_files(meta.task.annotation, meta.task.kind, out, polygons="polygons" in options)
        require_saliency(saliency, meta.task.annotation, meta.task.kind)

    with pytest.raises(DataError, match=words):
        require()


def test_saliency_is_drawn_over_each_image(
    serving: Serving, workspace: Workspace, predictor: Predictor, folder: Path, tmp_path: Path
) -> None:
    """The same by a child; a known answer is asked again only where its drawing is missing."""
    server, images = find(workspace, serving, "plates"), [folder / f"{number:02}.png" for number in (3, 1, 11)]
    options: dict[str, Any] = {"out": tmp_path / "a.csv", "saliency": tmp_path / "seen", "server": server}
    assert predict(workspace, "plates", images[:1], out=tmp_path / "a.csv", server=server).answered == 1
    assert predict(workspace, "plates", images, **options).answered == 2
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == ["01.png", "03.png"]
    for image in images[:2]:
        drawn, picture = (np.asarray(Image.open(place / image.name), np.int64) for place in (tmp_path / "seen", folder))
        assert drawn.shape == picture.shape
        assert np.abs(drawn - picture).max() <= 0.61 * 255
        assert (drawn != picture).any() == (image.name == "03.png")  # in the other one no patch speaks for the answer
    before = (tmp_path / "seen" / "03.png").stat().st_mtime_ns
    assert predict(workspace, "plates", images, **options).notes == {"answers known from before": 2}
    assert (tmp_path / "seen" / "03.png").stat().st_mtime_ns == before
    (_, reply) = next(server.ask([[Question(images[0])]], whole=False, extras=["saliency"]))
    lines = iter([{"path": str(images[0]), "name": "", "boxes": [None]}])
    (same,) = answer_pictures(predictor, lines, False, ["saliency"])
    grey, other = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one["answers"][0]["saliency"]))), np.int64)
        for one in (reply, same)
    )
    assert np.abs(grey - other).max() <= 2


def test_an_interrupted_command_says_how_to_go_on(
    serving: Serving,
    workspace: Workspace,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, real = find(workspace, serving, "plates"), Server.ask

    def press(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from islice(real(*arguments, **options), 9)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Server, "ask", press)
        with pytest.raises(typer.Exit) as caught:
            predict(workspace, "plates", [folder], out=tmp_path / "a.csv", server=server)
    assert caught.value.exit_code == 130
    assert (
        f"9 answers are kept in {tmp_path / 'a.csv.journal'}, and the same command goes on" in capsys.readouterr().err
    )
    outcome = predict(workspace, "plates", [folder], out=tmp_path / "a.csv", server=server)
    assert outcome.notes["answers known from before"] >= 9


# Processes

HEAVY = ("torch", "mlflow", "polars", "prefect", "timm", "numpy", "pandas", "httpx", "PIL", "sqlalchemy", "sklearn")


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_rows(
    workspace: Workspace, predictor: Predictor, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """With the names of its images on stdin; the rest is answered by a server, for which nothing heavy is loaded."""
    images = [save(tmp_path / f"{number:04}.png", number) for number in range(400)]
    file = tmp_path / "out" / "a.csv"
    words = ["predict", "plates", "-", "--out", str(file), "--workspace", str(workspace.root), "--json"]
    command = [sys.executable, "-X", "importtime", "-m", "flows.commands.cli", *words]
    names, where = b"\0".join(str(path).encode() for path in images), {"env": clean_environment(), "cwd": REPOSITORY}
    killed = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, **where)
    assert killed.stdin
    killed.stdin.write(names)
    killed.stdin.close()
    journal = name_journal(file)
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 20):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    known = journal.read_bytes().count(b"\n") - 1
    assert known < len(images), "it was too fast to be killed"
    with serve(adapters) as running:
        save_address(workspace, running.address)
        done = subprocess.run(command, input=names, capture_output=True, check=True, **where)
    loaded = {line.rpartition(b"|")[2].strip().partition(b".")[0].decode() for line in done.stderr.splitlines()}
    assert not loaded & set(HEAVY)
    outcome = Predictions.model_validate_json(done.stdout)
    assert (outcome.answered, outcome.failed, outcome.predictions) == (400, 0, ())
    assert outcome.table == file.as_posix()
    assert outcome.notes == {"answers known from before": known}
    assert sum((outcome.shown or {}).values()) == 400
    rows = list(read_table(file, COLUMNS))
    assert [row["path"] for row in rows] == [str(path) for path in images]
    assert len({row["sha256"] for row in rows}) == 400
    expected = predictor.predict(images)
    assert [row["label"] for row in rows] == [one.label for one in expected]
    for row, one in zip(rows, expected, strict=True):
        shares = [row[f"p_{name}"] for name in CLASSES]
        assert shares == pytest.approx(list((one.probabilities or {}).values()), abs=2e-2)
