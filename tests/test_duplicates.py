"""Near duplicates are found whatever was done to the copy, and what pictures merely share joins nothing."""

import hashlib
import io
from collections import Counter
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from samples import picture

from components.data.checks import duplicates, look_alikes
from components.data.checks.designs import Designs, create_outline, find_places, refine_place
from components.data.checks.duplicates import (
    NOTHING,
    Found,
    Look,
    Pictures,
    Question,
    find_near_duplicates,
    find_neighbours,
    is_certain,
    join_groups,
    keep_close,
    standardise,
)
from components.data.checks.features import load_known, load_near_duplicates, load_sisters, save_matches
from components.data.checks.look_alikes import (
    POINTS,
    LookAlike,
    cosine_transform,
    find_alike_parts,
    find_look_alikes,
    hash_spectra,
    turn_spectra,
)
from components.data.checks.matching import (
    MIN_AGREEMENT,
    Match,
    Sketch,
    match_sketches,
    match_turned,
    measure_agreement,
    turn_picture,
)
from components.data.checks.pictures import THUMBNAIL
from components.data.manifest import load_frame, save_frame


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
    return Sketch(np.asarray(image.resize((round(image.width * zoom), round(image.height * zoom)))))


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
    assert find_look_alikes(greys, 4) == [(1, 299, turn)]
    assert find_look_alikes(greys[:1], 4) == []
    assert (1, 299, turn) in find_alike_parts(greys, range(300), 1)
    assert (1, 299, turn) in find_alike_parts(greys, range(0, 300, 13), 1)  # the second alone asks
    assert find_alike_parts(greys, [], 1) == find_alike_parts(greys[:1], [0], 1) == []
    turned = cosine_transform(turn_picture(greys, turn))
    assert np.allclose(turn_spectra(cosine_transform(greys), turn), turned, atol=0.01)


def test_pictures_without_points_match_by_their_turn():
    y, x = np.mgrid[:192, :192] / 192
    soft = (128 + 60 * np.sin(23 * x + 9 * y) + 40 * np.cos(31 * y * x)).astype(np.uint8)
    first, second = Sketch(soft), Sketch(np.ascontiguousarray(np.rot90(soft)))
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
    assert find_look_alikes(greys, 4) == []


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
    assert list(found.near) == [tuple(sorted(contents[6:8]))]


def test_what_arbitrary_pictures_share_is_the_median_of_their_agreements():
    """A few copies or strangers among the pairs measured first move no threshold, as they would move a mean."""
    names = [f"{number:02}" for number in range(8)]
    agreements = (0.8, 0.0, 0.8, 0.8, 0.85, 0.0, 0.8)
    known = {Look(*pair, POINTS): Match(9, share) for pair, share in zip(pairwise(names), agreements, strict=True)}
    blank = np.zeros((192, 192), np.uint8)
    pictures = Pictures(names, np.zeros((8, 32, 32), np.float32), np.zeros((8, 4), np.float32), lambda index: blank)
    search = duplicates._Search(pictures, Found(known), lambda found: None)
    search.measure_shared()
    assert search.needed == pytest.approx(0.9)


def test_a_pair_is_a_candidate_where_it_is_among_the_nearest_of_either_picture():
    """One picture looks like twenty others, each of which looks like that one alone: all are looked at."""
    greys = np.stack([np.asarray(picture(7, 32, 32), dtype=np.float32)] * 12)
    star = {(0, other): (0.99 - 0.01 * other, 0) for other in range(1, 21)}
    assert len(look_alikes._nearest_look_alikes(star)) == 20
    crowd = find_look_alikes(greys, 4)
    nearest = Counter(index for pair in crowd for index in pair[:2])
    assert len(crowd) < 12 * 11 / 2
    assert min(nearest.values()) >= look_alikes.MOST_LOOK_ALIKES


def read_once(images, known):
    """Contents read by a search that knows an earlier one."""
    read = []
    search(images, known, read)
    return set(read)


def test_what_was_seen_is_not_looked_at_again():
    images = [photograph(seed) for seed in range(20)]
    images[11] = ImageOps.mirror(images[10])
    contents, first = search(images)
    assert read_once(images, first) == set()
    grown = [*images, expose(images[3])]
    read = []
    contents, second = search(grown, first, read)
    assert set(second.near) - set(first.near) == {tuple(sorted((contents[3], contents[20])))}
    assert len(set(second.looks) - set(first.looks)) <= 25  # of 210 pairs
    assert {look[:2] for look in set(second.looks) - set(first.looks)} >= {tuple(sorted((contents[3], contents[20])))}
    assert len(set(read)) < 21


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.lists(st.sets(st.integers(0, 15), min_size=1), min_size=1, max_size=3))
def test_a_search_depends_on_the_pictures_alone(sets):
    """Whatever was searched before, and whatever came or went, the result is that of a search from the start."""
    images = [photograph(seed) for seed in range(10)]
    images += [expose(images[1]), ImageOps.mirror(images[1]), images[2].rotate(90, expand=True), expose(images[3], 0.8)]
    images += [fixture_part(0), fixture_part(1)]
    known = NOTHING
    for chosen in [*sets, set(range(16))]:
        known = search([images[index] for index in sorted(chosen)], known)[1]
    assert known == search(images)[1]


def test_a_search_that_was_killed_goes_on_and_is_not_taken_for_a_finished_one(tmp_path):
    images, file = [photograph(seed) for seed in range(20)], tmp_path / "matches.parquet"
    assert load_known(file) == NOTHING
    _, first = search(images)
    save_matches(first, file)
    assert load_known(file) == first
    more = [*images, *(photograph(seed) for seed in range(20, 24)), expose(images[3]), ImageOps.mirror(photograph(21))]
    looked = []

    def die(found):
        looked.append(len(found.looks))
        save_matches(found, file)
        if len(looked) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        search(more, load_known(file), keep=die)
    known = load_known(file)
    assert known.among is None
    assert set(first.looks) < set(known.looks)
    contents, second = search(more, known)
    save_matches(second, file)
    near = {tuple(sorted((contents[i], contents[j]))) for i, j in ((3, 24), (21, 25))}
    assert set(load_near_duplicates(file)) == set(first.near) | near == set(search(more)[1].near)


def test_matches_of_an_earlier_release_are_made_again(tmp_path):
    _, found = search([photograph(seed) for seed in range(9)])
    save_matches(found, tmp_path / "now.parquet")
    now = load_frame(tmp_path / "now.parquet")
    for old in (now.drop("among", "fit", "turn"), now.drop("remaining").with_columns(bits=4)):
        save_frame(old, tmp_path / "then.parquet")
        assert load_known(tmp_path / "then.parquet") == NOTHING
    save_frame(now.with_columns(method=1), tmp_path / "then.parquet")
    assert load_known(tmp_path / "then.parquet").looks == {}


# Parts of one design


def fixture_part(seed, grain=2.0, mark=True):
    """A part of one design (frame, bars, dashes) with a grain and a few scratches of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:224, :224].astype(np.float32)
    part = np.full((224, 224), 150, np.float32)
    part[(x < 8) | (x > 215) | (y < 8) | (y > 215) | (x + y < 36) | (x - y > 188) | (y - x > 188)] = 30
    for bar in (40, 112, 184):
        part[bar - 1 : bar + 1, 8:216] = 60
        for dash in range(20, 200, 34):
            part[bar - 3 : bar + 3, dash : dash + 18] = 70
    own = sum(
        np.asarray(Image.fromarray(rng.normal(0, 1, (side, side)).astype(np.float32)).resize((224, 224)))
        for side in (28, 56, 112, 224)
    )
    part += grain * own
    dx, dy = rng.uniform(-2, 2, 2)
    image = Image.fromarray(np.clip(part * rng.uniform(0.8, 1.1), 0, 255).astype(np.uint8))
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy), Image.Resampling.BICUBIC)


def smaller_jpeg(image):
    small, data = image.resize((image.width // 2, image.height // 2)), io.BytesIO()
    small.save(data, "JPEG", quality=40)
    return Image.open(data).convert("L")


@lru_cache
def parts(count):
    return [fixture_part(seed) for seed in range(count)]


def test_parts_of_one_design_agree_and_are_not_joined():
    images = parts(40)
    _, found = search(images)
    assert sum(match.agreement >= MIN_AGREEMENT for match in found.looks.values()) > 40  # agreement alone joins them
    assert found.near == {}


@pytest.mark.parametrize("change", ["exposed", "mirrored", "a quarter turn", "smaller, JPEG"])
def test_copies_among_parts_of_one_design_are_found(change):
    changes = CHANGES | {"smaller, JPEG": smaller_jpeg, "exposed": lambda image: expose(image, 0.5, 0.0)}
    images = [*parts(30), *(changes[change](image) for image in parts(30)[:5])]
    contents, found = search(images)
    true = {tuple(sorted((contents[k], contents[30 + k]))) for k in range(5)}
    assert set(found.near) <= true
    assert len(found.near) >= (4 if "JPEG" in change else 5)
    assert all(remaining is not None for remaining in found.near.values())
    if "JPEG" not in change:
        assert all(map(is_certain, found.near.values()))


def test_groups_of_copies_among_the_strangers_do_not_hide_one_another():
    images = [expose(part, gain, 0.0) for part in parts(8) for gain in (1.0, 0.9, 0.8, 0.7)]
    contents, found = search(images)
    groups = join_groups(contents, [(contents.index(a), contents.index(b)) for a, b in found.near])
    assert [len(set(groups[k : k + 4])) for k in range(0, 32, 4)] == [1] * 8
    assert len(set(groups)) == 8


def test_an_answer_that_is_known_is_not_asked_for_again(monkeypatch):
    images = [*parts(20), expose(parts(1)[0], 0.8, 0.0)]
    _, first = search(images)
    asked = []
    real = Designs.measure
    monkeypatch.setattr(Designs, "measure", lambda self, *look: asked.append(look) or real(self, *look))
    assert search(images, Found(first.looks, answers=first.answers))[1] == first
    assert first.answers
    assert asked == []
    assert search(images, Found(first.looks))[1] == first
    assert len(asked) == len(first.answers)


def test_most_pictures_keep_their_strangers_when_a_set_grows():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(700, 8)).astype(np.float32)
    names = sorted(hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(700))
    greys = np.zeros((700, 32, 32), np.float32)
    old = [n for n in range(700) if n % 100]
    before = Designs([names[n] for n in old], greys[old], features[old], Sketch)
    after = Designs(names, greys, features, Sketch)
    chosen = [({old[other] for other in before.choose(at)}, set(after.choose(n))) for at, n in enumerate(old)]
    assert all(len(each) == 24 for pair in chosen for each in pair)
    assert np.mean([len(one & two) / 24 for one, two in chosen]) > 0.97


def test_a_repeated_design_in_a_small_part_of_a_set_is_seen():
    images = [*parts(20), *(photograph(seed) for seed in range(40)), expose(photograph(5))]
    contents, found = search(images)
    assert found.near == {tuple(sorted((contents[20 + 5], contents[60]))): None}


def test_a_picture_is_laid_over_another_one_as_it_lies():
    image = photograph(7)
    first = sketch(image)
    for turn in range(8):
        moved = Image.fromarray(np.ascontiguousarray(turn_picture(np.asarray(image), turn)))
        second = sketch(moved.transform(moved.size, Image.Transform.AFFINE, (1, 0.02, -12, 0.01, 1, 9)))
        outlines = create_outline(first), create_outline(second)
        (place,) = find_places(outlines[0], [outlines[1]])
        fit = refine_place(*outlines, place, (first.detail.shape, second.detail.shape))
        assert measure_agreement(first.detail, second.detail, fit) > 0.9, turn


def test_sisters_are_distinguished_from_copies_in_the_file(tmp_path):
    _, found = search([photograph(seed) for seed in range(6)])
    looks = sorted(found.looks)[:3]
    near = {look[:2]: share for look, share in zip(looks, (None, 0.85, 0.99), strict=True)}
    answers = {Question(*looks[1][:2], "a"): 0.85, Question(*looks[1][1::-1], "b"): None}
    save_matches(Found(found.looks, near, "x", answers), tmp_path / "matches.parquet")
    assert load_known(tmp_path / "matches.parquet") == Found(found.looks, near, "x", answers)
    assert load_sisters(tmp_path / "matches.parquet") == {looks[1][:2]}
    assert set(load_near_duplicates(tmp_path / "matches.parquet")) == set(near)


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
