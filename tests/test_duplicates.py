"""Near duplicates are found whatever was done to the copy, and what pictures merely share joins nothing."""

import hashlib
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from samples import picture

from components.data.duplicates import (
    MIN_AGREEMENT,
    NOTHING,
    RANKS,
    Known,
    LookAlike,
    Pictures,
    cosine_transform,
    find_look_alikes,
    find_near_duplicates,
    find_neighbours,
    find_newcomers,
    hash_spectra,
    join_groups,
    keep_close,
    standardise,
    turn_spectra,
)
from components.data.features import load_known, load_near_duplicates, save_matches
from components.data.images import THUMBNAIL
from components.data.manifest import load_frame, save_frame
from components.data.matching import Match, create_sketch, match_sketches, match_turned, turn_picture


def photograph(seed):
    """Shapes of several sizes, each with an edge: something to be recognised by."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 255, (n, n), dtype=np.uint8)).resize((256, 224), kind) for n, kind in
              ((7, Image.BICUBIC), (19, Image.NEAREST), (43, Image.BICUBIC))]  # fmt: skip
    return Image.fromarray(np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8))


def expose(image, gain=0.5, noise=2.0):
    pixels = np.asarray(image) * gain + 10 + np.random.default_rng(0).normal(0, noise, (image.height, image.width))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def sketch(image):
    zoom = 192 / max(image.size)
    return create_sketch(np.asarray(image.resize((round(image.width * zoom), round(image.height * zoom)))))


CHANGES = {
    "exposed": expose,
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "a quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned and cut": lambda image: image.rotate(20, Image.BICUBIC).crop((60, 52, 196, 172)),
    "mirrored and cut": lambda image: ImageOps.mirror(image).crop((0, 0, 170, 150)),
    "smaller": lambda image: expose(image.resize((128, 112), Image.BICUBIC), 0.9),
    "sheared": lambda image: image.transform(image.size, Image.Transform.AFFINE, (1, 0.1, -11, 0.05, 1, -6)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_matches_and_another_picture_does_not(change):
    original, copy = sketch(photograph(1)), sketch(CHANGES[change](photograph(1)))
    assert match_sketches(original, copy).agreement >= MIN_AGREEMENT
    assert match_sketches(copy, original).agreement >= MIN_AGREEMENT
    assert match_sketches(sketch(photograph(2)), copy) == Match()


def test_a_shared_frame_does_not_match():
    frame, inside = photograph(3), (24, 24, 232, 200)
    framed = []
    for seed in (4, 5):
        image = frame.copy()
        image.paste(photograph(seed).crop(inside), inside[:2])
        framed.append(sketch(image))
    assert match_sketches(*framed).agreement < MIN_AGREEMENT


@pytest.mark.parametrize("turn", range(8))
def test_turned_thumbnails_are_look_alikes(turn):
    greys = np.stack([np.asarray(picture(number, 32, 32), dtype=np.float32) for number in range(300)])
    greys[1] = turn_picture(greys[299], turn)
    every = np.ones(300, bool)
    assert find_look_alikes(greys, 4, every) == [(1, 299, turn)]
    assert find_look_alikes(greys, 4, np.arange(300) == 1) == [(1, 299, turn)]
    assert find_look_alikes(greys, 4, np.arange(300) == 299) == [(1, 299, turn)]
    assert find_look_alikes(greys, 4, np.arange(300) == 2) == []
    assert find_look_alikes(greys[:1], 4, every[:1]) == []
    turned = cosine_transform(turn_picture(greys, turn))
    assert np.allclose(turn_spectra(cosine_transform(greys), turn), turned, atol=0.01)


def test_pictures_without_points_match_by_their_turn():
    y, x = np.mgrid[:192, :192] / 192
    soft = (128 + 60 * np.sin(23 * x + 9 * y) + 40 * np.cos(31 * y * x)).astype(np.uint8)
    first, second = create_sketch(soft), create_sketch(np.ascontiguousarray(np.rot90(soft)))
    # rot90 of the first, so three more quarter turns bring the second back
    assert match_turned(first, second, 3).agreement == 1
    assert match_turned(first, second, 0).agreement < MIN_AGREEMENT


def greys_of_blank_tiles(count):
    """The same lamp on blank tiles: only shade, and a little grain."""
    y, x = np.mgrid[:THUMBNAIL, :THUMBNAIL] / THUMBNAIL
    spot = np.exp(-((x - 0.3) ** 2 + (y - 0.6) ** 2) / 0.1)
    shade = 120 + 80 * x * x + 50 * y - 120 * ((x - 0.4) ** 2 + (y - 0.5) ** 2) + 60 * spot
    return np.stack([shade + np.random.default_rng(n).normal(0, 0.3, shade.shape) for n in range(count)])


def test_blank_tiles_under_one_lamp_are_not_look_alikes():
    greys = greys_of_blank_tiles(40).astype(np.float32)
    hashes = hash_spectra(cosine_transform(greys))
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    assert ((bits <= 4).sum() - 40) / 2 > 100  # the hash alone would join them
    assert find_look_alikes(greys, 4, np.ones(40, bool)) == []


# The search


def search(images, known=NOTHING, read=None, keep=lambda found: None):
    """The real search; thumbnails stand in for a network's features."""
    contents = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    order = sorted(range(len(images)), key=contents.__getitem__)
    greys = np.stack([np.asarray(images[k].resize((32, 32), Image.BOX), dtype=np.float32) for k in order])

    def sized(index):
        image = images[order[index]]
        if read is not None:
            read.append(contents[order[index]])
        return np.asarray(image.resize((192, round(192 * image.height / image.width))))

    names = [contents[k] for k in order]
    found = find_near_duplicates(Pictures(names, greys, greys.reshape(len(greys), -1), sized), 4, known, keep)
    return contents, found


def test_one_fixture_on_every_picture_joins_none_but_real_copies():
    fixture, images = photograph(99), []
    for seed in range(24):
        image = fixture.copy()
        image.paste(photograph(seed).resize((96, 84)), (80, 70))
        images.append(image)
    images[7] = expose(images[6], 0.9, 1.0)
    contents, found = search(images)
    assert found.needed > MIN_AGREEMENT
    assert found.near == [tuple(sorted(contents[6:8]))]


def test_what_was_seen_is_not_looked_at_again():
    images = [photograph(seed) for seed in range(20)]
    images[11] = ImageOps.mirror(images[10])
    _, first = search(images)
    read = []
    contents, second = search([*images, expose(images[3])], known=Known(first.matches, first.searched), read=read)
    assert set(first.near) < set(second.near)
    assert set(second.near) - set(first.near) == {tuple(sorted((contents[3], contents[20])))}
    assert set(first.matches) <= set(second.matches)
    assert len(second.matches) - len(first.matches) <= 25  # of 210 pairs
    _, third = search(images[:11], known=Known(second.matches, second.searched))
    assert {name for pair in third.matches for name in pair} <= set(contents[:11])


def test_a_search_that_was_killed_goes_on_and_is_not_taken_for_a_finished_one(tmp_path):
    images, file = [photograph(seed) for seed in range(20)], tmp_path / "matches.parquet"
    assert load_known(file, 4) == NOTHING
    _, first = search(images)
    save_matches(first, 4, file)
    assert load_known(file, 4) == Known(first.matches, first.searched)
    assert load_known(file, 6) == Known(first.matches, set())  # more bits make more look-alikes of old pictures, too
    more = [*images, *(photograph(seed) for seed in range(20, 24)), expose(images[3]), ImageOps.mirror(photograph(21))]
    looked = []

    def die(found):
        looked.append(len(found.matches))
        save_matches(found, 4, file)
        if len(looked) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        search(more, load_known(file, 4), keep=die)
    known = load_known(file, 4)
    assert known.searched == first.searched
    assert len(first.matches) < len(known.matches) == looked[-1]
    contents, second = search(more, known)
    save_matches(second, 4, file)
    assert load_known(file, 4).searched == set(contents)
    near = {tuple(sorted((contents[i], contents[j]))) for i, j in ((3, 24), (21, 25))}
    assert set(load_near_duplicates(file)) == set(first.near) | near == set(search(more)[1].near)


def test_matches_of_an_earlier_release_are_known_and_searched_again(tmp_path):
    _, found = search([photograph(seed) for seed in range(9)])
    save_matches(found, 4, tmp_path / "now.parquet")
    save_frame(load_frame(tmp_path / "now.parquet").drop("bits"), tmp_path / "then.parquet")
    assert load_known(tmp_path / "then.parquet", 4) == Known(found.matches, set())


def test_neighbours_are_the_nearest_by_cosine():
    features = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
    features[599] = features[5] + 0.01
    directions = standardise(features)
    found = find_neighbours(directions, range(600), 3)
    assert found.shape == (600, 3)
    assert found[5, 0] == 599
    assert found[599, 0] == 5
    assert all(row not in neighbours for row, neighbours in enumerate(found.tolist()))
    assert find_neighbours(directions, [599, 5], 3).tolist() == found[[599, 5]].tolist()
    assert find_neighbours(directions[:2], [0, 1], 3).tolist() == [[1], [0]]
    assert find_neighbours(directions[:1], [0], 3).shape == (1, 0)
    assert standardise(features[:0]).shape == (0, 16)


def test_a_newcomer_is_compared_with_those_whose_nearest_it_has_become():
    directions = standardise(np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32))
    new = np.arange(400) >= 370
    old = find_neighbours(directions[:370], range(370), RANKS)
    known = np.unique(np.sort([(row, other) for row in range(370) for other in old[row]], axis=1), axis=0)
    nearest = find_neighbours(directions, range(370), 2 * RANKS).tolist()
    expected = {(row, other) for row in range(370) for other in nearest[row][:RANKS] if new[other]}
    found = find_newcomers(directions, new, known)
    assert len(found) == len(set(found))
    assert expected <= set(found)
    assert all(new[other] and other in nearest[row] for row, other in found)
    assert len(expected) > 30
    assert find_newcomers(directions, np.ones(400, bool), known[:0]) == []
    assert find_newcomers(directions, new, known[:0]) == []  # compared with none before: no older search


def test_relatives_are_looked_at_together_and_each_is_sketched_once():
    """A ring of 500 pictures, each related to the next two, under names that say nothing, and room for a few."""
    names = np.random.default_rng(0).permutation(500).tolist()
    ring = [(names[at], names[(at + step) % 500]) for at in range(500) for step in (1, 2)]
    pairs = [LookAlike(min(pair), max(pair), -1) for pair in sorted(ring)]
    close = keep_close(pairs, 1000)
    assert sorted(close) == sorted(pairs)
    sketch = lru_cache(16)(lambda index: index)
    for pair in close:
        assert sketch(pair.i) < sketch(pair.j)
    assert sketch.cache_info().misses < 510
    assert keep_close([], 1000) == []


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30), st.randoms())
def test_joined_groups_bear_the_smallest_name_in_any_order(pairs, random):
    names = [f"g{number:02d}" for number in range(12)]
    joined = join_groups(names, pairs)
    assert all(joined[i] == joined[j] for i, j in pairs)
    assert all(joined[names.index(name)] == name <= own for name, own in zip(joined, names, strict=True))
    random.shuffle(pairs)
    assert join_groups(names, pairs) == joined
