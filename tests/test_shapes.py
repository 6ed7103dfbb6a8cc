"""Shapes become pixels: which pixels a shape covers, which of two shapes counts, and COCO's run lengths."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference

from components.data.annotations.painting import OVERLAP, SHAPES_CLIPPED, UNSEEN, paint
from components.data.annotations.shapes import Bitmap, Ellipse, Shape, box_ring, ring_of
from components.records.maps import IGNORE, Painting, decode_map
from components.records.objects import decode_rle, encode_rle, find_components

LATER, SMALLER = Painting(), Painting(overlap="smaller")
SIZE = (17, 14)
QUARTERS = st.integers(-8, 64).map(lambda number: number / 4)  # exact, and often on the centres of pixels


def draw(*shapes, size=SIZE, painting=LATER):
    """The class map, numbered by the names in their order (0: background)."""
    return decode_map(paint(shapes, size, painting).regions.data)


def count_crossings(ring, size):
    """For every pixel whether a ray to the left of its centre crosses an odd number of edges, in exact arithmetic."""
    points = [(Fraction(x), Fraction(y)) for x, y in ring]
    inside = np.zeros(size[::-1], bool)
    for row, column in np.ndindex(inside.shape):
        x, y = column + Fraction(1, 2), row + Fraction(1, 2)
        for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
            if (ay > y) != (by > y) and ax + (y - ay) * (bx - ax) / (by - ay) <= x:
                inside[row, column] ^= True
    return inside


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(QUARTERS, QUARTERS), min_size=3, max_size=9))
def test_a_polygon_covers_the_pixels_whose_centres_it_contains(points):
    inside = count_crossings(points, SIZE)
    try:
        painted = draw(Shape("a", (np.array(points, float),)))
    except ValueError:  # all points on one line
        assert not inside.any()
    else:
        assert (painted == 1).tolist() == inside.tolist()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_polygons_that_share_edges_neither_overlap_nor_leave_gaps(seed):
    rng = np.random.default_rng(seed)
    middle, corners = rng.uniform(2, 12, 2), [[0, 0], [17, 0], [17, 14], [0, 14]]
    fans = [Shape(f"c{k}", (np.array([middle, corners[k], corners[k - 1]]),)) for k in range(4)]
    painted = paint(fans, SIZE, Painting(background=None))
    assert painted.notes == {}
    assert (decode_map(painted.regions.data) != IGNORE).all()


def test_polygons_are_near_to_those_of_pycocotools():
    rng = np.random.default_rng(3)
    for _ in range(40):
        angles, radii = np.sort(rng.uniform(0, 2 * np.pi, 20)), rng.uniform(40, 90, 20)
        ring = 100 + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
        theirs = reference.decode(reference.frPyObjects([ring.reshape(-1).tolist()], 200, 200))[..., 0] > 0
        ours = draw(Shape("a", (ring,)), size=(200, 200)) == 1
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.985


@pytest.mark.parametrize("angle", [0, 30, 90, 200])
def test_an_ellipse_and_a_turned_box_cover_centres(angle):
    rows, columns = np.mgrid[:14, :17] + 0.5
    turn = np.deg2rad(angle)
    along = (columns - 8.2) * np.cos(turn) + (rows - 6.9) * np.sin(turn)
    aside = (rows - 6.9) * np.cos(turn) - (columns - 8.2) * np.sin(turn)
    ellipse = draw(Shape("a", (Ellipse(8.2, 6.9, 5.1, 2.3, angle),)))
    assert (ellipse == 1).tolist() == ((along / 5.1) ** 2 + (aside / 2.3) ** 2 <= 1).tolist()
    box = draw(Shape("a", (box_ring(8.2 - 5.1, 6.9 - 2.3, 8.2 + 5.1, 6.9 + 2.3, angle),)))
    assert (box == 1).tolist() == ((abs(along) < 5.1) & (abs(aside) < 2.3)).tolist()


def test_the_later_or_the_smaller_shape_counts_and_what_they_share_is_counted():
    small, large = Shape("small", (box_ring(2, 2, 6, 6),)), Shape("large", (box_ring(0, 0, 10, 10),))
    for painting, shown in ((LATER, (0, 100)), (SMALLER, (16, 84))):
        painted = paint([small, large], SIZE, painting)
        counts = np.bincount(decode_map(painted.regions.data).ravel(), minlength=3)
        assert tuple(counts[1:]) == shown
        assert painted.regions.names == ("background", "small", "large")
        assert painted.notes == {OVERLAP[painting.overlap]: 16}
    same = paint([small, Shape("small", large.parts), Shape(None, small.parts)], SIZE, LATER)
    assert same.notes == {}
    assert (decode_map(same.regions.data) == IGNORE).sum() == 16


def test_parts_of_a_shape_are_united_and_bitmaps_lie_at_their_place():
    two = Shape("a", (box_ring(0, 0, 4, 4), box_ring(2, 2, 6, 6), Bitmap(np.eye(3, dtype=bool), 10, 9)))
    painted = draw(two)
    assert painted.sum() == 16 + 16 - 4 + 3
    assert [painted[9 + k, 10 + k] for k in range(3)] == [1, 1, 1]


def test_what_nobody_labelled_is_ignored_where_there_is_no_background():
    shape = Shape("a", (box_ring(0, 0, 4, 4),))
    assert set(np.unique(draw(shape, painting=Painting(background=None)))) == {1, IGNORE}


def test_shapes_a_little_over_the_edge_are_clipped_and_counted():
    painted = paint([Shape("a", (box_ring(-2, -1, 19, 16),)), Shape("a", (box_ring(3.1, 3, 3.2, 9),))], SIZE, LATER)
    assert painted.notes == {SHAPES_CLIPPED: 1, UNSEEN: 1}
    assert (decode_map(painted.regions.data) == 1).all()
    bitmap = paint([Shape("a", (Bitmap(np.ones((4, 4), bool), -2, 12),))], SIZE, LATER)
    assert (decode_map(bitmap.regions.data) == 1).sum() == 4


UNFIT = [
    ([], "0 points, of at least 3"),
    ([1, 1, 5, 5], "2 points, of at least 3"),
    ([1, 1, 5, 5, 3, 3], "on one line"),
    ([1, 1, 1, 1, 1, 1], "on one line"),
    ([1, 1, 5, float("nan"), 3, 7], "not a finite number"),
    ([1, 1, float("inf"), 2, 3, 7], "not a finite number"),
    ([1, 1, 20, 2, 3, 7], "from 1, 1, 20, 7 (x0, y0, x1, y1) in a picture of 17 x 14 pixels"),
    ([1, -2.5, 5, 2, 3, 7], "from 1, -2.5"),
]


@pytest.mark.parametrize(("values", "words"), UNFIT, ids=[words for _, words in UNFIT])
def test_what_cannot_be_painted_is_refused_with_the_place_of_the_shape(values, words):
    with pytest.raises(ValueError, match="shape 3 \\(crack\\)") as caught:
        paint([Shape("crack", (ring_of(values),), "shape 3 (crack)")], SIZE, LATER)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Bitmap(np.zeros((3, 3), bool)), "without a pixel"),
        (Bitmap(np.ones((3, 3), bool), 17, 2), "from 17, 2, 20, 5"),
        (Ellipse(5, 5, 0, 3), "a radius is not above 0"),
        (Ellipse(5, float("nan"), 2, 3), "not a finite number"),
        (Ellipse(5, 5, 9, 3), "from -4, 2"),
    ],
)
def test_bitmaps_and_ellipses_are_refused_as_polygons_are(part, words):
    with pytest.raises(ValueError, match=words):
        paint([Shape("a", (part,))], SIZE, LATER)


def test_a_picture_with_more_classes_than_a_map_holds_is_refused():
    with pytest.raises(ValueError, match="254 classes in one picture, of at most 253"):
        paint([Shape(str(k), (box_ring(0, 0, 2, 2),)) for k in range(254)], SIZE, LATER)


# Run lengths


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0, 0.1, 0.5, 0.9, 1]), st.integers(0, 10**6))
def test_run_lengths_are_those_of_pycocotools(height, width, share, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < share
    theirs = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = encode_rle(mask)
    assert (ours["counts"].encode(), ours["size"]) == (theirs["counts"], [height, width])
    assert (decode_rle(ours) == mask).all()
    assert (decode_rle(theirs) == mask).all()
    runs = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=not mask[-1, -1]))
    uncompressed = {"size": [height, width], "counts": np.diff(runs, prepend=0).tolist()}
    assert (decode_rle(uncompressed) == mask).all()
    right, down = rng.integers(0, 4, 2)
    whole = np.zeros((height + down + 2, width + right + 1), bool)
    whole[down : down + height, right : right + width] = mask
    assert encode_rle(mask, (int(right), int(down)), whole.shape[::-1]) == encode_rle(whole)


def test_run_lengths_of_large_masks_take_several_characters():
    mask = np.zeros((3000, 1000), bool)
    mask[700:2900, 300:600:7] = True
    assert encode_rle(mask)["counts"].encode() == reference.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


BROKEN = [
    ({"counts": [4]}, "of size None"),
    ({"size": [2, 0], "counts": [0]}, "of size"),
    ({"size": [2, True], "counts": [2]}, "of size"),
    ({"size": [2, 2], "counts": [1, 2]}, "3 pixels, not 2 x 2"),
    ({"size": [2, 2], "counts": [5, -1]}, "not whole numbers"),
    ({"size": [2, 2], "counts": [4.0]}, "not whole numbers"),
    ({"size": [2, 2], "counts": None}, "not whole numbers"),
    ({"size": [2, 2], "counts": "no text of runs \x7f"}, "not whole numbers"),
    ({"size": [2, 2], "counts": "o" * 5000}, "not whole numbers"),
    ({"size": [999_999, 999_999], "counts": [1]}, "1 pixels, not"),
]


@pytest.mark.parametrize(("rle", "words"), BROKEN, ids=[str(number) for number in range(len(BROKEN))])
def test_broken_run_lengths_are_refused(rle, words):
    with pytest.raises(ValueError, match=words):
        decode_rle(rle)


def test_components_touch_at_corners_too():
    classes = np.array([[1, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 0], [1, 1, 0, 1]], np.uint8)
    found = find_components(classes, 1)
    assert [(each.box, each.area) for each in found] == [((0, 0, 2, 2), 2), ((0, 3, 2, 4), 2), ((3, 3, 4, 4), 1)]
    assert found[0].mask.tolist() == [[True, False], [False, True]]
    assert find_components(classes, 3) == []
