"""KServe's and MLflow's protocols over the champions: what their clients send and expect, on adapters of every task."""

import base64
import gzip
import io
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from fleets import CLASSES, write_adapter
from PIL import Image
from served import DOMAINS, create_service

from components.models.backbones import load_backbone
from components.serving.columns import flatten
from components.serving.predictor import Predictor
from components.serving.pyfunc import AdapterModel
from components.serving.server.app import create_app
from components.serving.server.bodies import MOST_PARTS, MOST_ROWS
from components.serving.server.outputs import OUTPUTS
from components.serving.server.service import Service
from components.tasks import TASKS

HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, backbone = tmp_path_factory.mktemp("adapters"), load_backbone("embedded", 64)
    return {
        name: write_adapter(folder / name, backbone, {"kind": "vpt"}, seed, **facts)
        for seed, (name, facts) in enumerate(DOMAINS.items())
    }


@pytest.fixture(scope="module")
def predictors(adapters: dict[str, Path]) -> dict[str, Predictor]:
    return {name: Predictor(folder) for name, folder in adapters.items()}


@pytest.fixture(scope="module")
def service(adapters: dict[str, Path]) -> Iterator[Service]:
    service = create_service(adapters)
    yield service
    service.close(10)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), "http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def draw(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


IMAGES = [encode(draw(seed)) for seed in range(3)]
TEXTS = [base64.b64encode(image).decode() for image in IMAGES]


def ask(client: TestClient, domain: str, data: Sequence[Any], **more: Any) -> Any:
    """The answer of KServe's protocol to texts in JSON."""
    image = {"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": list(data)}
    return client.post(f"/v2/models/{domain}/infer", json={"inputs": [image], **more})


def read(answer: Any) -> dict[str, Any]:
    """Outputs by name, from JSON."""
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def pack(parts: Sequence[bytes]) -> bytes:
    """Elements of BYTES as the binary extension has them."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def decode_mask(text: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def unpack(raw: bytes) -> list[bytes]:
    found, start = [], 0
    while start < len(raw):
        (length,) = struct.unpack_from("<I", raw, start)
        found.append(raw[start + 4 : start + 4 + length])
        start += 4 + length
    return found


def send(client: TestClient, domain: str, inputs: Sequence[tuple[str, str, list[int], bytes]], **more: Any) -> Any:
    """A request whose inputs are all bytes after the JSON."""
    described = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, kind, shape, raw in inputs
    ]
    text = json.dumps({"inputs": described, **more}).encode()
    body = text + b"".join(raw for *_, raw in inputs)
    return client.post(f"/v2/models/{domain}/infer", content=body, headers={HEADER: str(len(text))})


def read_binary(answer: Any) -> dict[str, bytes]:
    """Outputs by name, from bytes after the JSON."""
    assert answer.status_code == 200, answer.text
    size = int(answer.headers[HEADER])
    head, rest, found = json.loads(answer.content[:size]), answer.content[size:], {}
    for output in head["outputs"]:
        own = output["parameters"]["binary_data_size"]
        found[output["name"]], rest = rest[:own], rest[own:]
    assert rest == b""
    return found


# KServe's protocol


@pytest.mark.parametrize("domain", [name for name in DOMAINS if name != "cuts"])
def test_outputs_are_those_that_the_metadata_name(
    client: TestClient, predictors: dict[str, Predictor], domain: str
) -> None:
    """And what they hold is what the predictor answers, of images one by one."""
    model = client.get(f"/v2/models/{domain}").json()
    answer = ask(client, domain, TEXTS, id="mine")
    assert (model["name"], model["versions"], [one["name"] for one in model["inputs"]]) == (domain, ["1"], ["image"])
    head = answer.json()
    assert (head["model_name"], head["model_version"], head["id"]) == (domain, "1", "mine")
    assert head["parameters"]["adapter_sha256"] == model["properties"]["adapter_sha256"]
    shapes = {output["name"]: (output["datatype"], output["shape"]) for output in head["outputs"]}
    assert shapes == {one["name"]: (one["datatype"], [3, *one["shape"][1:]]) for one in model["outputs"]}
    found, predictor = read(answer), predictors[domain]
    for row, image in enumerate(IMAGES):
        (expected,) = predictor.predict([io.BytesIO(image)])
        assert (found["label"][row], found["error"][row]) == (expected.label, "")
        if expected.probabilities is not None:
            chances = np.reshape(found["probabilities"], (3, -1))[row]
            assert chances == pytest.approx(list(expected.probabilities.values()), abs=2e-2)
        if expected.class_map is not None:
            mask = decode_mask(found["mask"][row])
            assert (mask == expected.class_map).mean() > 0.98
            assert np.reshape(found["areas"], (3, -1))[row].sum() == mask.size
        for name in ("labels", "objects"):
            if name in expected.answer:
                assert len(json.loads(found[name][row])) == len(expected.answer[name])


def test_the_outputs_of_every_annotation_are_named() -> None:
    assert set(OUTPUTS) == {create().annotation for create in TASKS.values()}


@pytest.mark.parametrize("domain", [name for name in DOMAINS if name != "cuts"])
def test_bytes_say_what_json_says(client: TestClient, domain: str) -> None:
    plain = read(ask(client, domain, TEXTS))
    found = read_binary(
        send(client, domain, [("image", "BYTES", [3, 1], pack(IMAGES))], parameters={"binary_data_output": True})
    )
    assert list(found) == list(plain)
    for name, raw in found.items():
        if name == "mask":
            assert [base64.b64encode(one).decode() for one in unpack(raw)] == plain[name]
        elif name in ("probabilities", "areas", "counts"):
            dtype = "<f8" if name == "probabilities" else "<i8"
            assert np.frombuffer(raw, dtype) == pytest.approx(plain[name], abs=2e-2)
        elif name == "abstained":
            assert raw == b"\0\0\0"
        elif name == "label":
            assert [one.decode() for one in unpack(raw)] == plain[name]


def test_only_the_outputs_asked_for_are_answered_and_each_in_its_way(client: TestClient) -> None:
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "label"}]
    answer = ask(client, "tiles", TEXTS, outputs=outputs)
    size = int(answer.headers[HEADER])
    assert answer.headers["content-type"] == "application/octet-stream"
    chances, label = json.loads(answer.content[:size])["outputs"]
    assert chances["parameters"]["binary_data_size"] == len(answer.content) - size == 3 * 3 * 8
    assert "data" not in chances
    assert [CLASSES[best] for best in np.frombuffer(answer.content[size:]).reshape(3, 3).argmax(axis=1)] == label[
        "data"
    ]


def test_pixels_are_answered_like_the_file_they_came_from(client: TestClient) -> None:
    raw = b"".join(np.asarray(Image.open(io.BytesIO(image))).tobytes() for image in IMAGES)
    found = read(send(client, "tiles", [("image", "UINT8", [3, 60, 80, 3], raw)]))
    assert found["probabilities"] == pytest.approx(read(ask(client, "tiles", TEXTS))["probabilities"], abs=2e-2)


def test_saliency_comes_where_it_is_asked_for(client: TestClient) -> None:
    for more in ({"parameters": {"saliency": True}}, {"outputs": [{"name": "saliency"}]}):
        (drawn,) = read(ask(client, "tiles", TEXTS[:1], **more))["saliency"]
        assert Image.open(io.BytesIO(base64.b64decode(drawn))).size == (80, 60)
    assert "saliency" not in read(ask(client, "tiles", TEXTS[:1]))


def test_one_bad_image_fails_no_batch(client: TestClient) -> None:
    bad = ["!!!", base64.b64encode(b"no image").decode(), base64.b64encode(IMAGES[0][:-40]).decode(), ""]
    for more in ({}, {"outputs": [{"name": "label"}]}):  # asked for or not, errors come with the answer
        found = read(ask(client, "tiles", [TEXTS[0], *bad, TEXTS[1]], **more))
        assert [bool(error) for error in found["error"]] == [False, True, True, True, True, False]
        assert "image in row 1: expected the base64 text" in found["error"][1]
        assert [label in CLASSES for label in found["label"]] == [True, False, False, False, False, True]
    alone = ask(client, "tiles", bad)
    assert (alone.status_code, list(alone.json())) == (422, ["error"])


def test_boxes_come_beside_images_where_the_adapter_learned_crops(
    client: TestClient, predictors: dict[str, Predictor]
) -> None:
    (image, *_) = IMAGES
    answer = send(
        client,
        "cuts",
        [("image", "BYTES", [2], pack([image] * 2)), ("box", "BYTES", [2], pack([b"0 0 40 30", b"9,9,1,1"]))],
    )
    found = read(answer)
    (expected,) = predictors["cuts"].predict([io.BytesIO(image)], boxes=[(0, 0, 40, 30)])
    assert found["probabilities"][:3] == pytest.approx(list(expected.probabilities.values()), abs=2e-2)
    assert "9 9 1 1" in found["error"][1]
    assert [one["name"] for one in client.get("/v2/models/cuts").json()["inputs"]] == ["image", "box"]
    without = ask(client, "cuts", TEXTS[:1])
    assert (without.status_code, "a box" in without.json()["error"]) == (422, True)
    assert read(ask(client, "cuts", TEXTS[:1], parameters={"whole": True}))["error"] == [""]


def test_versions_other_than_the_served_one_are_refused(client: TestClient) -> None:
    assert client.get("/v2/models/tiles/versions/1/ready").json() == {"name": "tiles", "ready": True}
    assert client.get("/v2/models/tiles/versions/1").json() == client.get("/v2/models/tiles").json()
    for path in (
        "tiles/versions/2",
        "tiles/versions/x/ready",
        "tiles/versions/2/infer",
        f"tiles/versions/{'9' * 5000}",
        "other",
        "other/ready",
    ):
        method = "POST" if path.endswith("infer") else "GET"
        answer = client.request(method, f"/v2/models/{path}", json={})
        assert answer.status_code == 404, path
        assert ("the version that is served, 1" if "tiles" in path else "other") in answer.json()["error"]
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]


def image_input(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": TEXTS[:1], **changes}]}


REFUSED: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "a JSON object"),
    "a list": (b"[]", "what the OpenAPI page says"),
    "not UTF-8": (b'{"inputs": "\xff"}', "a JSON object in UTF-8"),
    "not a number": (b'{"inputs": [NaN]}', "a JSON object"),
    "deep": (b"[" * 500, "recursion"),
    "many values": (b"[" + b"0," * MOST_PARTS + b"0]", "at most 100,000 values"),
    "no inputs": ({"inputs": []}, "no `image`"),
    "another input": ({"inputs": [image_input()["inputs"][0], image_input(name="x")["inputs"][0]]}, "`x` too"),
    "an input twice": ({"inputs": image_input()["inputs"] * 2}, "the name twice"),
    "no data": (image_input(data=None), "neither"),
    "another datatype": (image_input(datatype="FP32"), "the datatype BYTES"),
    "another shape": (image_input(shape=[2]), "2 elements"),
    "a negative shape": (image_input(shape=[-1]), "the shape [N]"),
    "a shape of text": (image_input(shape=["1"]), "inputs.0.shape.0"),
    "too many images": (image_input(shape=[MOST_ROWS + 1], data=[""] * (MOST_ROWS + 1)), f"N from 1 to {MOST_ROWS}"),
    "numbers for texts": (image_input(data=[0]), "int 0"),
    "pixels in JSON": (image_input(datatype="UINT8", shape=[1, 1, 1, 3], data=[[[[0, 0, 0]]]]), "values in JSON"),
    "an unknown output": ({**image_input(), "outputs": [{"name": "boxes"}]}, "outputs of label"),
    "a classification": (
        {**image_input(), "outputs": [{"name": "label", "parameters": {"classification": 3}}]},
        "not supported",
    ),
    "a flag of text": ({**image_input(), "parameters": {"whole": "yes"}}, "the parameter `whole`"),
    "a size that lies": (image_input(data=None, parameters={"binary_data_size": 9}), "0 bytes left"),
    "a size that is none": (image_input(data=None, parameters={"binary_data_size": -1}), "binary_data_size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_is_none_is_refused_with_the_reason(client: TestClient, case: str) -> None:
    body, reason = REFUSED[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/v2/models/tiles/infer", content=content)
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["error"]
    assert len(answer.json()["error"]) < 1000


@pytest.mark.parametrize(
    ("raw", "shape", "header", "reason"),
    [
        (pack(IMAGES[:1])[:-1], [1], None, "a length of"),
        (b"\xff\xff\xff\xff", [1], None, "a length of 4,294,967,295"),
        (b"\0\0", [1], None, "each element after its length"),
        (pack(IMAGES[:2]), [1], None, "1 elements"),
        (pack(IMAGES[:1]), [1], "9" * 30, "the header"),
        (pack(IMAGES[:1]), [1], "-1", "the header"),
        (pack(IMAGES[:1]), [1], "7", "a JSON object"),
    ],
)
def test_lengths_that_lie_are_refused(
    client: TestClient, raw: bytes, shape: list[int], header: str | None, reason: str
) -> None:
    text = json.dumps(image_input(data=None, shape=shape, parameters={"binary_data_size": len(raw)})).encode()
    for extra in (b"", b"more"):
        headers = {HEADER: str(len(text)) if header is None else header}
        answer = client.post("/v2/models/tiles/infer", content=text + raw + extra, headers=headers)
        assert answer.status_code == 400
        assert ("4 more" if extra and header is None else reason) in answer.json()["error"]


def test_a_compressed_body_is_refused_as_such(client: TestClient) -> None:
    headers = {"content-encoding": "gzip"}
    answer = client.post("/v2/models/tiles/infer", content=gzip.compress(b"{}"), headers=headers)
    assert (answer.status_code, "without compression" in answer.json()["error"]) == (415, True)


# MLflow's protocol


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[str, bytes]]:
    """The same rows in every form: content type and body."""
    frame = pd.DataFrame(rows)
    split = frame.to_dict(orient="split")
    forms = {
        "dataframe_records": rows,
        "dataframe_split": {"columns": split["columns"], "data": split["data"]},
        "instances": rows,
        "inputs": frame.to_dict(orient="list"),
    }
    written = {name: ("application/json", json.dumps({name: table}).encode()) for name, table in forms.items()}
    return {**written, "csv": ("text/csv", frame.to_csv(index=False).encode())}


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_model_itself_answers_the_same(client: TestClient, predictors: dict[str, Predictor], domain: str) -> None:
    """What MLflow makes of the same body, and the model that it serves of that."""
    from mlflow.pyfunc.scoring_server import infer_and_parse_data, parse_csv_input
    from mlflow.types import ColSpec, Schema

    schema = Schema([ColSpec("string", "image"), ColSpec("string", "box", required=False)])
    model = AdapterModel()
    model.predictor = predictors[domain]
    for form, (kind, body) in tables(
        [{"image": TEXTS[0], **({"box": "0 0 40 30"} if domain == "cuts" else {})}]
    ).items():
        text = body.decode()
        parsed = parse_csv_input(io.StringIO(text)) if form == "csv" else infer_and_parse_data(json.loads(text), schema)
        (expected,) = model.predict(None, pd.DataFrame(parsed)).to_dict(orient="records")
        answer = client.post(f"/{domain}/invocations", content=body, headers={"content-type": kind})
        assert answer.status_code == 200, (form, answer.text)
        (found,) = answer.json()["predictions"]
        assert list(found) == list(expected)
        for name, value in expected.items():
            if name == "mask":
                assert (decode_mask(found[name]) == decode_mask(value)).all()
            else:
                assert found[name] == (value if isinstance(value, str | list) else pytest.approx(value, abs=2e-2)), form


def test_one_bad_row_refuses_the_request_as_the_model_does(client: TestClient) -> None:
    for text in ("!!!", base64.b64encode(IMAGES[0][:-40]).decode(), None, 7):
        answer = client.post("/tiles/invocations", json={"dataframe_records": [{"image": TEXTS[0]}, {"image": text}]})
        assert answer.status_code == 400
        assert list(answer.json()) == ["error_code", "message"]
        assert answer.json()["error_code"] == "BAD_REQUEST"
        assert answer.json()["message"].startswith("image in row 1: expected")


def test_params_say_that_images_are_crops(client: TestClient) -> None:
    rows = [{"image": TEXTS[0]}]
    without = client.post("/cuts/invocations", json={"instances": rows})
    assert (without.status_code, "a box" in without.json()["message"]) == (422, True)
    whole = client.post("/cuts/invocations", json={"instances": rows, "params": {"whole": True}})
    assert [row["label"] in CLASSES for row in whole.json()["predictions"]] == [True]
    wrong = client.post("/cuts/invocations", json={"instances": rows, "params": {"hole": True}})
    assert (wrong.status_code, "params.hole" in wrong.json()["message"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 400, "one of dataframe_records"),
        ({"inputs": {"image": []}, "instances": []}, 400, "one of dataframe_records"),
        ({"instances": [{"picture": "x"}]}, 400, "a column `image`"),
        ({"instances": ["x"]}, 400, "instances.0"),
        ({"inputs": {"image": TEXTS[:2], "box": [""]}}, 400, "columns of one length"),
        ({"inputs": {"image": [""] * (MOST_ROWS + 1)}}, 400, f"at most {MOST_ROWS} rows"),
        ({"dataframe_split": {"columns": ["image"], "data": [["a", "b"]]}}, 400, "1 values in each row"),
        ({"dataframe_split": {"columns": ["image"]}}, 400, "dataframe_split.data"),
        ({"dataframe_records": [{"image": TEXTS[0], "box": "1 2 3"}]}, 400, "box in row 0: expected a box"),
        ({"dataframe_records": [{"image": TEXTS[0], "box": "1 2 3 4"}]}, 422, "a whole picture without a box"),
    ],
)
def test_a_table_that_is_none_is_refused(client: TestClient, body: Any, status: int, reason: str) -> None:
    answer = client.post("/tiles/invocations", json=body)
    assert (answer.status_code, reason in answer.json()["message"]) == (status, True), answer.text


def test_csv_and_other_media_types(client: TestClient) -> None:
    for kind, body, status in [
        ("text/csv", b"\xff", 400),
        ("text/csv", b'image\n"x', 400),
        ("text/csv", b"", 400),
        ("application/vnd.apache.parquet", b"PAR1", 415),
    ]:
        answer = client.post("/tiles/invocations", content=body, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error_code"]) == (status, "BAD_REQUEST")
    large = encode(draw(0, (400, 400)), "BMP")  # one field of 640 kB
    csv = b"image\n" + base64.b64encode(large) + b"\n"
    answer = client.post("/tiles/invocations", content=csv, headers={"content-type": "text/csv; charset=utf-8"})
    assert len(answer.json()["predictions"]) == 1


def test_mlflows_probes(client: TestClient) -> None:
    from mlflow.version import VERSION

    assert client.get("/version").text == VERSION
    for path, status in (("/ping", 200), ("/health", 200), ("/tiles/ping", 200), ("/other/ping", 404)):
        assert client.get(path).status_code == status, path
    answer = client.post("/other/invocations", json={"instances": []})
    assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


def test_rows_hold_the_columns_asked_for_alone() -> None:
    answer = {"label": "a", "areas": {"sky": 7, "a": 2}, "components": [{"label": "a"}], "mask": "x", "objects": None}
    columns = ["label", "mask", "area_a", "components_a"]
    assert flatten(answer, columns) == {"label": "a", "mask": "x", "area_a": 2.0, "components_a": 1.0}


def test_a_defect_is_no_bad_row() -> None:
    with pytest.raises(KeyError):
        flatten({"label": "a"}, ["label", "p_a"])
