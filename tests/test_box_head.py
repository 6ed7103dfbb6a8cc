"""The head of labelled boxes: its assignment, loss and answers against a count object by object, at any size of
canvas, patch and backbone."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms
from vits import DENSE_SIZES, draw_tokens, unsettle

from components.models.heads import HEADS, Shape, create_head
from components.models.heads.assignment import POINTS, Assignment, assign
from components.models.heads.detection import OVERLAP, DetectionHead, find_centres
from components.models.tokens import Needs, Tokens
from components.records.boxes import LEAST, MOST_FOUND, NONE
from components.tasks import CLASSIFICATION
from components.tasks.detection import DetectionTask

CLASSES = 3
OBJECT, DIFFICULT, CROWD = 0.0, 1.0, 2.0
Floats = NDArray[np.float64]


def create(stride: int = 8, patch: tuple[int, int] = (16, 16), depth: int = 12) -> DetectionHead:
    torch.manual_seed(1)
    head = create_head(DetectionTask.model_validate({"stride": stride}), Shape(6, depth, patch), CLASSES)
    assert isinstance(head, DetectionHead)
    unsettle(head)
    return head


def draw_targets(images: int, size: tuple[int, int], seed: int = 3, objects: int = 9) -> Tensor:
    """Objects of all kinds, the first of them tiny; an image without any and rows that fill up where there is room."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.5, (images, objects, 2)) * size[::-1]
    high = low + rng.uniform(0.2, 0.5, (images, objects, 2)) * size[::-1]
    high[:, 0] = low[:, 0] + 2.5
    kinds = rng.choice([OBJECT, OBJECT, DIFFICULT, CROWD], (images, objects, 1))
    low[:, 1], high[:, 1] = 4, 20  # from a centre to another one
    kinds[:, :2] = OBJECT
    targets = np.concatenate([low, high, rng.integers(0, CLASSES, (images, objects, 1)), kinds], axis=2)
    targets[1:2] = NONE
    targets[2:, -1] = NONE
    return torch.from_numpy(targets.astype(np.float32))


def draw_answers(size: tuple[int, int], stride: int, images: int, seed: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (B, P, C), boxes (B, P, 4) about their points, and the points (P, 2)."""
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.zeros(1, 1, -(-size[0] // k), -(-size[1] // k)) for k in (stride, 16, 32)]
    centres = torch.cat([find_centres(level, k) for level, k in zip(levels, (stride, 16, 32), strict=True)])
    scores = torch.rand(images, len(centres), CLASSES, generator=generator)
    sides = torch.rand(images, len(centres), 4, generator=generator) * 12 + 1
    return scores, torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], dim=2), centres


@pytest.mark.parametrize(("size", "patch"), DENSE_SIZES)
@pytest.mark.parametrize("stride", [8, 4])
def test_every_point_answers_a_box_about_its_centre(stride: int, size: tuple[int, int], patch: tuple[int, int]) -> None:
    head = create(stride, patch)
    outputs = head(draw_tokens(head, size, patch))
    strides = [each for each in (4, 8, 16, 32) if each >= stride]
    points = [
        (x, y) for k in strides for y in range(k // 2, size[0] + k // 2, k) for x in range(k // 2, size[1] + k // 2, k)
    ]
    logits, boxes, centres = torch.split(outputs, [CLASSES, 4, 2], dim=2)
    assert logits.shape == (2, len(points), CLASSES)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(centres, torch.tensor(points, dtype=torch.float32).expand(2, -1, -1))
    assert (boxes[..., :2] < centres).all()
    assert (boxes[..., 2:] > centres).all()
    head.loss(outputs, draw_targets(2, size), torch.ones(CLASSES)).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


def test_answers_lie_where_their_patches_do() -> None:
    """On a grid of 3 x 10, where rows taken for columns would mix left and right."""
    head = create()
    tokens = draw_tokens(head, (48, 160), (16, 16))
    before = head(tokens)
    for layer in tokens.layers:
        layer.unflatten(1, (3, 10))[:, :, :3] += 5 * torch.randn(6, generator=torch.Generator().manual_seed(5))
    moved = (head(tokens) - before).detach()[..., :CLASSES].abs().mean(dim=(0, 2))[: 6 * 20]  # of the finest level
    by_column = moved.reshape(6, 20).mean(dim=0)
    assert float(by_column[:4].min()) > 2 * float(by_column[12:].max())


def test_boxes_keep_their_digits_under_autocast() -> None:
    """At the far end of a canvas, bfloat16 would round a corner to the next multiple of 2."""
    head = create()
    tokens = draw_tokens(head, (64, 400), (16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(tokens)
    assert outputs.dtype == torch.float32
    boxes = outputs[..., CLASSES : CLASSES + 4].detach()
    assert (boxes != boxes.bfloat16().float()).float().mean() > 0.9


def test_the_control_sees_pixels_on_every_level() -> None:
    """With zeros for tokens, large objects would have no level otherwise."""
    head = create()
    tokens = draw_tokens(head, (64, 64), (16, 16))
    tokens.layers = tuple(torch.zeros_like(layer) for layer in tokens.layers)
    first = head.build_pyramid(tokens)
    assert tokens.pixels is not None
    tokens.pixels = tokens.pixels.flip(0)
    for level, changed in zip(first, head.build_pyramid(tokens), strict=True):
        torch.testing.assert_close(level, changed.flip(0))
        assert (level - changed).abs().mean() > 0.1


def overlap(a: Any, b: Any) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    return shared / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - shared)


def assign_slowly(scores: Floats, boxes: Floats, points: Floats, rows: Floats, least: float) -> list[Any]:
    """Of one image: per point the number of its object, or None, its quality, and whether it is ignored."""
    objects = [k for k, row in enumerate(rows) if row[4] != NONE and row[5] == OBJECT]
    claims: dict[int, list[tuple[float, int]]] = {}
    fits: dict[int, dict[int, float]] = {}
    for k in objects:
        middle, half = (rows[k, :2] + rows[k, 2:4]) / 2, np.maximum(rows[k, 2:4] - rows[k, :2], least) / 2
        inside = [p for p, at in enumerate(points) if (at >= middle - half).all() and (at < middle + half).all()]
        fit = {p: scores[p, int(rows[k, 4])] ** 0.5 * overlap(rows[k, :4], boxes[p]) ** 4 for p in inside}
        fits[k] = dict(sorted(fit.items(), key=lambda pair: -pair[1])[:POINTS])
        for p in fits[k]:
            claims.setdefault(p, []).append((overlap(rows[k, :4], boxes[p]), k))
    owners = {p: max(some)[1] for p, some in claims.items()}
    answers: list[Any] = []
    for p, at in enumerate(points):
        k = owners.get(p)
        if k is None:
            unknown = [row for row in rows if row[4] != NONE and row[5] != OBJECT]
            answers.append((None, 0.0, any((at >= row[:2]).all() and (at < row[2:4]).all() for row in unknown)))
            continue
        mine = [q for q in fits[k] if owners[q] == k]
        best = max(overlap(rows[k, :4], boxes[q]) for q in mine)
        highest = max(fits[k][q] for q in mine)
        answers.append((k, fits[k][p] / highest * best if highest else 0.0, False))
    return answers


@pytest.mark.parametrize("stride", [8, 4])
def test_the_assignment_is_that_of_a_count_object_by_object(stride: int) -> None:
    size = (64, 96)
    scores, boxes, centres = draw_answers(size, stride, 4)
    targets = draw_targets(4, size)
    found = assign(scores, boxes, centres, targets, float(stride))
    contested = 0
    for k in range(4):
        arrays = [part.double().numpy() for part in (scores[k], boxes[k], centres, targets[k])]
        slowly = assign_slowly(*arrays, float(stride))  # type: ignore[arg-type]
        for p, (owner, quality, ignored) in enumerate(slowly):
            assert bool(found.taken[k, p]) == (owner is not None)
            assert bool(found.ignored[k, p]) == ignored
            qualities = torch.zeros(CLASSES)
            if owner is not None:
                qualities[int(targets[k, owner, 4])] = quality
                torch.testing.assert_close(found.boxes[k, p], targets[k, owner, :4])
                contested += 1
            torch.testing.assert_close(found.qualities[k, p], qualities)
    assert contested > 20
    assert not found.taken[1].any()  # the image without objects
    assert found.ignored.any()


def test_an_object_between_all_points_is_learned() -> None:
    """At a stride of 8, a box of 3 pixels holds no point; the nearest one answers for it, at the border as well."""
    scores, boxes, centres = draw_answers((64, 64), 8, 3)
    tiny = torch.tensor([[30.5, 30.5, 33.4, 33.4], [0, 0, 2, 2], [62, 17, 64, 19]])
    targets = torch.cat([tiny[:, None], torch.zeros(3, 1, 2)], dim=2)
    found = assign(scores, boxes, centres, targets, 8.0)
    assert found.taken.any(dim=1).all()
    near = centres - (tiny[:, :2] + tiny[:, 2:])[:, None] / 2
    assert near[found.taken].abs().max() <= 4


def measure_slowly(outputs: Floats, rows: Floats, weights: Floats, found: Assignment) -> float:
    """The loss of one image, whose assignment holds one image."""
    total = 0.0
    for p, row in enumerate(outputs):
        score = 1 / (1 + np.exp(-row[:CLASSES]))
        quality = found.qualities[0, p].double().numpy()
        if not found.ignored[0, p]:
            total -= float((weights * (quality * np.log(score) + (1 - quality) * np.log(1 - score))).sum())
        if found.taken[0, p]:
            box, truth = row[CLASSES : CLASSES + 4], found.boxes[0, p].double().numpy()
            hull = float(np.prod(np.maximum(box[2:], truth[2:]) - np.minimum(box[:2], truth[:2])))
            iou = overlap(box, truth)
            areas = float(np.prod(box[2:] - box[:2])) + float(np.prod(truth[2:] - truth[:2]))
            giou = iou - (hull - areas / (1 + iou)) / hull  # two boxes cover areas / (1 + IoU)
            total += 2 * (1 - giou)
    return total


def join(scores: Tensor, boxes: Tensor, centres: Tensor) -> Tensor:
    """Outputs of a head with these answers."""
    return torch.cat([scores.logit(), boxes, centres.expand(len(boxes), -1, -1)], dim=2)


def test_the_loss_is_a_count_point_by_point_and_adds_up() -> None:
    head, size, weights = create(), (64, 96), torch.tensor([1.0, 3.0, 2.0])
    scores, boxes, centres = draw_answers(size, 8, 3)
    targets = draw_targets(3, size)
    outputs = join(scores, boxes, centres).requires_grad_()
    whole = head.loss(outputs, targets, weights)
    slowly = 0.0
    for k in range(3):
        found = assign(scores[k : k + 1], boxes[k : k + 1], centres, targets[k : k + 1], 8.0)
        arrays = [part.detach().double().numpy() for part in (outputs[k], targets[k], weights)]
        slowly += measure_slowly(arrays[0], arrays[1], arrays[2], found)
    assert float(whole.detach()) == pytest.approx(slowly, rel=1e-4)
    parts = [head.loss(outputs[k : k + 1], targets[k : k + 1], weights).detach() for k in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole.detach())
    assert head.count(targets, weights) == sum(float(head.count(targets[k : k + 1], weights)) for k in range(3))
    whole.backward()  # type: ignore[no-untyped-call]
    found = assign(scores, boxes, centres, targets, 8.0)
    assert outputs.grad is not None
    assert not outputs.grad[found.ignored].any()
    assert outputs.grad[..., :CLASSES][~found.ignored].all()


def test_padding_and_the_order_of_objects_change_nothing() -> None:
    head, size = create(), (64, 96)
    outputs = join(*draw_answers(size, 8, 3))
    targets = draw_targets(3, size)
    padded = torch.cat([torch.full((3, 4, 6), float(NONE)), targets.flip(1)], dim=1)
    losses = [head.loss(outputs, some, torch.ones(CLASSES)) for some in (targets, padded)]
    torch.testing.assert_close(*losses)
    assert head.count(targets, torch.ones(CLASSES)) == head.count(padded, torch.ones(CLASSES))


def test_pictures_without_objects_teach_that_there_is_nothing() -> None:
    head = create()
    outputs = join(*draw_answers((32, 32), 8, 2)).requires_grad_()
    nothing = torch.full((2, 1, 6), float(NONE))
    loss = head.loss(outputs, nothing, torch.ones(CLASSES))
    loss.backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert (outputs.grad[..., :CLASSES] > 0).all()
    assert not outputs.grad[..., CLASSES:].any()
    assert float(head.count(nothing, torch.ones(CLASSES))) == 2


def test_the_count_is_of_objects_that_count() -> None:
    head, targets = create(), draw_targets(4, (64, 96))
    counts = [sum(row[4] != NONE and row[5] == OBJECT for row in rows) for rows in targets.numpy()]
    assert counts[1] == 0
    assert float(head.count(targets, torch.ones(CLASSES))) == sum(max(1, count) for count in counts)


def test_found_boxes_are_those_of_suppression_class_by_class() -> None:
    """Three images with more than 100 boxes, few, and none; one by one and together."""
    head = create()
    scores, boxes, centres = draw_answers((96, 160), 4, 3)
    scores = torch.stack([scores[0], scores[1].where(scores[1] > 0.98, 0.01), scores[2] * LEAST / 2])
    outputs = join(scores.clamp(1e-4, 1 - 1e-4), boxes, centres)
    found = head.decode(outputs)
    assert found.shape == (3, MOST_FOUND, 6)
    torch.testing.assert_close(found, torch.cat([head.decode(outputs[k : k + 1]) for k in range(3)]), rtol=0, atol=0)
    assert (found[0, :, 4] != NONE).all()
    assert 5 < int((found[1, :, 4] != NONE).sum()) < MOST_FOUND
    assert (found[2, :, 4] == NONE).all()
    few = found[1][found[1, :, 4] != NONE]
    slowly = []
    for number in range(CLASSES):
        likely = scores[1, :, number] >= LEAST
        kept = nms(boxes[1, likely], scores[1, likely, number], OVERLAP)
        rows = torch.cat([boxes[1, likely].clamp(min=0), scores[1, likely, number, None]], dim=1)[kept]
        slowly += [(*row[:4], float(number), row[4]) for row in rows.tolist()]
    expected = torch.tensor(sorted(slowly, key=lambda row: -row[5]))
    torch.testing.assert_close(few, expected, rtol=1e-5, atol=1e-5)


def test_temperature_lowers_confidence() -> None:
    head = create()
    outputs = join(*draw_answers((32, 32), 8, 1))
    sure, less = (head.decode(outputs, temperature)[0, 0] for temperature in (1.0, 2.0))
    torch.testing.assert_close(less[:5], sure[:5])
    torch.testing.assert_close(less[5].logit(), sure[5].logit() / 2)


def test_it_learns_to_find_two_squares() -> None:
    """Of 12 pixels, one class darker than the other, at changing places, with nothing but the pixels."""
    torch.manual_seed(6)
    head = DetectionHead(Shape(6), 2)
    optimizer = torch.optim.AdamW(head.parameters(), 5e-3)

    def draw(images: int) -> tuple[Tokens, Tensor]:
        pixels, targets = torch.zeros(images, 3, 64, 64), torch.zeros(images, 2, 6)
        for number in range(images):
            for kind in range(2):
                x, y = (int(value) for value in torch.randint(1, 19, (2,)) + 32 * kind)
                pixels[number, :, y : y + 12, x : x + 12] = 1 - 2 * kind
                targets[number, kind] = torch.tensor([x, y, x + 12, y + 12, kind, OBJECT])
        tokens = Tokens((4, 4), layers=tuple(torch.zeros(images, 16, 6) for _ in head.needs.layers))
        tokens.pixels = pixels
        return tokens, targets

    for _ in range(100):
        tokens, targets = draw(4)
        loss = head.loss(head(tokens), targets, torch.ones(2)) / float(head.count(targets, torch.ones(2)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    tokens, targets = draw(8)
    found = head.decode(head(tokens)).detach()
    right = 0
    for rows, truth in zip(found, targets, strict=True):
        for number in range(2):
            best = next(row for row in rows if row[4] == number)
            right += overlap(best[:4].numpy(), truth[number, :4].numpy()) > 0.5
    assert right >= 14


def test_its_size_is_the_documented_one() -> None:
    for stride in (8, 4):
        assert 0.36e6 < sum(each.numel() for each in DetectionHead(Shape(192), 3, stride).parameters()) < 0.39e6
    assert create().needs == Needs(layers=(2, 5, 8, 11))


def test_it_weighs_classes_alike() -> None:
    assert create().class_weights(np.zeros((2, 3, 6), np.float32)).tolist() == [1.0] * CLASSES


def test_options_choose_the_finest_stride_and_the_learning_rate() -> None:
    head = create_head(DetectionTask.model_validate({"stride": 4, "head_lr": 0.007}), Shape(6), 2)
    assert isinstance(head, DetectionHead)
    assert head.strides == (4, 8, 16, 32)
    assert head.lr == 0.007
    assert not head.solvable
    with pytest.raises(TypeError, match="no task of classification"):
        HEADS["detection"].create(CLASSIFICATION, Shape(6), 2)
