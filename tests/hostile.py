"""Requests that no client should send, drawn by a seed: for whatever must live through all of them.

for request in draw_requests(seed, 1000, domains): ...
"""

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

HEADER = "Inference-Header-Content-Length"
JUNK: Sequence[Any] = (
    None, True, 0, -1, 1.5, 10**30, -(2**63), 1e308, "", "\x00", "\u202e", "x" * 5000, "0 0 9 9", "9 9 0 0",
    [], {}, [[]], [[[[]]]], {"a": {"a": {}}}, [None] * 50, "BYTES", "!!!", "data:image/png;base64,AAAA",
)  # fmt: skip
TYPES = (
    "application/json", "text/csv", "text/plain", "application/octet-stream", "image/png", "multipart/form-data",
    "multipart/form-data; boundary=x", "application/json; charset=utf-16", "application/vnd.apache.parquet", "\xff", "",
)  # fmt: skip


@dataclass(frozen=True)
class Hostile:
    """One request. kind: what is wrong with it."""

    kind: str
    path: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


def draw_requests(seed: int, number: int, domains: Sequence[str]) -> Iterator[Hostile]:
    """The same requests for a seed, whatever is asked of them."""
    dice = random.Random(seed)
    for _ in range(number):
        domain = dice.choice(domains)
        yield dice.choice(WAYS)(dice, domain)


def draw_picture(dice: random.Random, size: tuple[int, int] = (48, 40)) -> bytes:
    pixels = np.frombuffer(dice.randbytes(size[0] * size[1] * 3), np.uint8).reshape(size[1], size[0], 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, dice.choice(["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"]))
    return file.getvalue()


# Images


def truncate(dice: random.Random) -> bytes:
    data = draw_picture(dice)
    return data[: dice.randrange(len(data))]


def flip(dice: random.Random) -> bytes:
    """Some bytes of a picture are others, mostly in its header."""
    data = bytearray(draw_picture(dice))
    for _ in range(dice.choice([1, 3, 30])):
        data[min(int(dice.expovariate(1 / 60)), len(data) - 1)] = dice.randrange(256)
    return bytes(data)


def swell(dice: random.Random) -> bytes:
    """A small file whose header promises more pixels than any memory holds."""
    sides = dice.choice([(2**31 - 1, 2**31 - 1), (60_000, 60_000), (2**31 - 1, 1), (40_000, 3_000), (12_000, 12_000)])
    kind = dice.randrange(4)
    if kind == 0:
        header = struct.pack(">IIBBBBB", *sides, 8, dice.choice([0, 2, 6]), 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n"
            + _chunk(b"IHDR", header)
            + _chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
            + _chunk(b"IEND", b"")
        )
    if kind == 1:
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, sides[0], sides[1], 1, 24, 0, 0, 1, 1, 0, 0)
    if kind == 2:
        return b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0xF7, 0, 0) + dice.randbytes(800)
    tags = [
        (256, sides[0]),
        (257, sides[1]),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, sides[1]),
        (279, 9),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value & 0xFFFFFFFF) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def inflate(dice: random.Random) -> bytes:
    """A file of some kilobytes that really holds a hundred million black pixels; or text that does, in a PNG."""
    if dice.random() < 0.5:
        header = struct.pack(">IIBBBBB", 30_000, 4_000, 1, 0, 0, 0, 0)
        rows = zlib.compress(b"\0" * (4_000 * (30_000 // 8 + 1)), 9)
        return _png(header, rows)
    file = io.BytesIO()
    Image.fromarray(np.arange(48 * 40, dtype=np.uint32).astype(np.uint8).reshape(40, 48)).save(file, "PNG")
    plain, text = file.getvalue(), zlib.compress(b"a" * 20_000_000, 9)
    return plain[:33] + _chunk(b"zTXt", b"Comment\0\0" + text) + plain[33:]


def _png(header: bytes, rows: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def babble(dice: random.Random) -> bytes:
    start = dice.choice(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"RIFF", b"%!PS", b"PK\3\4"]
    )
    return start + dice.randbytes(dice.choice([0, 1, 30, 3000, 100_000]))


DAMAGES: Sequence[Callable[[random.Random], bytes]] = (truncate, truncate, flip, flip, flip, swell, babble, babble)


def draw_image(dice: random.Random) -> bytes:
    if dice.random() < 0.01:  # these take the server a tenth of a second each
        return inflate(dice)
    return dice.choice(DAMAGES)(dice)


# Requests


def ask_plainly(dice: random.Random, domain: str) -> Hostile:
    """A damaged image, or one with parameters that are none."""
    names, values = (
        ["box", "whole", "saliency", "version", "x"],
        ["", "1", "nan", "9" * 400, "0,0,9,9", "-1,0,1e9,7", "%00", "%ff", " " * 900],
    )
    query = "&".join(f"{dice.choice(names)}={dice.choice(values)}" for _ in range(dice.choice([0, 0, 1, 3])))
    if dice.random() < 0.05:
        query = "&".join(f"box=0,0,{9 + number},20" for number in range(3000))
    image = draw_picture(dice) if dice.random() < 0.2 else draw_image(dice)
    return Hostile("image", f"/predict/{domain}?{query}", image, {"content-type": dice.choice(TYPES)})


def create_infer(dice: random.Random, texts: Sequence[Any]) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts), "parameters": {}}
    return {"id": "x", "inputs": [tensor], "outputs": [{"name": "label", "parameters": {"binary_data": False}}]}


def create_table(dice: random.Random, texts: Sequence[Any]) -> dict[str, Any]:
    rows = [{"image": text, "box": dice.choice(["", None, "0 0 20 20"])} for text in texts]
    split = {"columns": ["image"], "data": [[text] for text in texts]}
    tables = {"dataframe_records": rows, "instances": rows, "dataframe_split": split, "inputs": {"image": list(texts)}}
    name = dice.choice([*tables])
    return {name: tables[name], "params": {"whole": False}}


def draw_text(dice: random.Random) -> Any:
    """Base64, mostly of something damaged, sometimes broken itself, sometimes no text."""
    text = base64.b64encode(draw_picture(dice) if dice.random() < 0.3 else draw_image(dice)).decode()
    return dice.choice([text, text, text, text[:-1], f"{text}\n", f"!{text}", dice.choice(JUNK)])


def ask_in_json(dice: random.Random, domain: str) -> Hostile:
    """One of the two protocols with parts of it replaced by junk."""
    create, end = dice.choice([(create_infer, "infer"), (create_table, "invocations")])
    tree = create(dice, [draw_text(dice) for _ in range(dice.choice([0, 1, 1, 3, 300]) if dice.random() < 0.1 else 1)])
    for _ in range(dice.choice([0, 1, 1, 2, 5])):
        tree = replace(dice, tree)
    path = f"/v2/models/{domain}/infer" if end == "infer" else f"/{domain}/invocations"
    return Hostile("json", path, json.dumps(tree).encode(), {"content-type": "application/json"})


def replace(dice: random.Random, tree: Any) -> Any:
    """A tree with one of its parts replaced."""
    if not isinstance(tree, dict | list) or not tree or dice.random() < 0.15:
        return dice.choice(JUNK)
    place = dice.choice([*tree]) if isinstance(tree, dict) else dice.randrange(len(tree))
    if isinstance(tree, dict) and dice.random() < 0.15:
        return {name: value for name, value in tree.items() if name != place}
    made = dict(tree) if isinstance(tree, dict) else list(tree)
    made[place] = replace(dice, made[place])
    return made


def break_json(dice: random.Random, domain: str) -> Hostile:
    """JSON cut off, with a byte replaced, deep, endless, of huge numbers or of what JSON has not."""
    good = json.dumps(create_infer(dice, [draw_text(dice)])).encode()
    place = dice.randrange(len(good))
    depth = dice.choice([10, 190, 250, 100_000])
    broken = [
        good[:place], good[:place] + dice.randbytes(1) + good[place + 1 :],
        b"[" * depth + b"]" * depth, b'{"a":' * depth,
        b'{"inputs": ' + b"9" * dice.choice([400, 5000, 1_000_000]) + b"}", b'{"inputs": [NaN, Infinity, -Infinity]}',
        b'{"inputs": [1e400, -1e400, 1e-400]}', b'{"inputs": "\\ud800"}', b"[" + b"[]," * 400_000 + b"[]]",
        b"\xef\xbb\xbf" + good, good.decode().encode("utf-16"), b"", b"null", b'"' + b"\\u0041" * 100_000 + b'"',
        b"{" + b'"a":1,' * 30_000 + b'"a":1}', b"\x1f\x8b" + dice.randbytes(50),
    ]  # fmt: skip
    path = dice.choice(
        [f"/v2/models/{domain}/infer", f"/v2/models/{domain}/versions/1/infer", f"/{domain}/invocations"]
    )
    return Hostile("broken json", path, dice.choice(broken), {"content-type": dice.choice(TYPES[:1] * 5 + TYPES)})


def lie(dice: random.Random, domain: str) -> Hostile:
    """The binary extension with lengths and shapes that are others."""
    lies = [0, -1, 1, 3, 4, 2**31, 2**32 - 1, 2**63, 10**30, "9", None, 1.0, [], True]
    parts = [draw_picture(dice) if dice.random() < 0.5 else draw_image(dice) for _ in range(dice.choice([1, 2]))]
    lengths = [dice.choice([len(part), len(part), len(part) + 1, 0, 2**32 - 1]) for part in parts]
    raw = b"".join(struct.pack("<I", length) + part for length, part in zip(lengths, parts, strict=True))
    tensor = {"name": "image", "datatype": dice.choice(["BYTES"] * 3 + ["UINT8", "FP64"]), "shape": [len(parts)]}
    if dice.random() < 0.4:
        tensor["shape"] = [
            dice.choice([0, 1, -1, 3, 2**31, 2**63, 10**30]) for _ in range(dice.choice([0, 1, 2, 4, 4, 90]))
        ]
    tensor["parameters"] = {"binary_data_size": len(raw) if dice.random() < 0.6 else dice.choice(lies)}
    tree: dict[str, Any] = {"inputs": [tensor], "parameters": {"binary_data_output": dice.choice([True, False, 1])}}
    if dice.random() < 0.2:
        tree["inputs"].append({"name": "box", "datatype": "BYTES", "shape": [3000], "data": ["0 0 9 9"] * 3000})
    text = json.dumps(tree).encode()
    told = (
        str(len(text))
        if dice.random() < 0.7
        else dice.choice(["", "-1", "0", "9" * 30, "x", str(len(text) - 3), "\xb2"])
    )
    return Hostile("lie", f"/v2/models/{domain}/infer", text + raw, {HEADER: told})


def ask_in_csv(dice: random.Random, domain: str) -> Hostile:
    bodies = [
        b"image\n" + dice.randbytes(200),
        b'image\n"' + b"a" * 200_000,
        b"image,image\na,b\n",
        b"\0" * 500,
        b"box\n1\n",
    ]
    bodies += [
        b"image\n" + f"{draw_text(dice)}".encode(errors="replace") + b"\n",
        b"\n" * 5000,
        b"image\n" + b"a\n" * 3000,
    ]
    return Hostile("csv", f"/{domain}/invocations", dice.choice(bodies), {"content-type": "text/csv"})


def get_lost(dice: random.Random, domain: str) -> Hostile:
    """Paths, versions and headers that are none."""
    paths = [
        "/v2/models//infer", f"/v2/models/{domain}/versions/{'9' * 500}/infer",
        f"/v2/models/{domain}/versions/-1/infer", f"/{domain}//invocations", "/champions", "/metrics", "/v2",
        f"/v2/models/{domain}/versions/%00/infer", "/predict/%2e%2e%2fetc", f"/predict/{'a' * 5000}", "/predict/%ff%fe",
        "/v2/models/%F0%9F%92%A3/infer", "/..%2f..%2fetc/invocations",
    ]  # fmt: skip
    headers = dice.choice(
        [
            {"x-request-id": "\xff" * 300},
            {"content-encoding": "gzip"},
            {"expect": "100-continue"},
            {"range": "bytes=0-"},
        ]
    )
    return Hostile("path", dice.choice(paths), draw_picture(dice), headers)


WAYS: Sequence[Callable[[random.Random, str], Hostile]] = (
    *[ask_plainly] * 5, *[ask_in_json] * 5, *[break_json] * 2, *[lie] * 4, ask_in_csv, get_lost
)  # fmt: skip
