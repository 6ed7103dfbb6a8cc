"""Pictures and class maps go to the same place of the canvas, and answers find the way back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import DOMAIN, create_workspace
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from components.data.batches import geometry
from components.data.batches.geometry import (
    GREY,
    Placement,
    find_canvas,
    fit_image,
    fit_map,
    place,
    restore,
    restore_bands,
)
from components.data.batches.loading import Samples, StepOrder, create_loader
from components.data.batches.pixels import load_maps
from components.data.batches.transforms import Augmentation, load_albumentations, require_fit
from components.data.sources.images import Upright
from components.domain.canvas import ImgSize
from components.domain.domain import PRESETS, Domain
from components.errors import BackboneError, DomainError
from components.models.adapter import InputMeta
from components.models.backbones import load_backbone
from components.records.maps import IGNORE, encode_map
from components.workspace import Workspace
from flows.plan import create_plan, load_checked_domain

A = load_albumentations()
FITS = ("squash", "letterbox")
FACTS = {"name": "tiles", "task": "classification", "classes": ["a", "b"], "layout": "folders"}


def _picture(height: int, width: int) -> Upright:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Upright(Image.fromarray(noise))


def _blobs(height: int, width: int) -> np.ndarray:
    """Four classes in the quarters of a picture, with a margin of the first one."""
    classes = np.zeros((height, width), np.uint8)
    y, x = height // 2, width // 2
    classes[height // 8 : y, width // 8 : x] = 1
    classes[y : -max(height // 8, 1), width // 8 : x] = 2
    classes[height // 8 : y, x : -max(width // 8, 1)] = 3
    return classes


@pytest.mark.parametrize("crop", [None, (3, 5, 40, 30)])
def test_squashed_pixels_are_those_of_plain_resizing(crop: Any) -> None:
    picture = _picture(47, 61)
    expected = np.asarray(picture.shrink((48, 32), "RGB", crop))
    np.testing.assert_array_equal(fit_image(picture, (32, 48), "squash", crop), expected)


@pytest.mark.parametrize(
    ("size", "canvas", "box"),
    [
        ((640, 480), (256, 256), (0, 32, 256, 224)),
        ((480, 640), (256, 256), (32, 0, 224, 256)),
        ((448, 192), (192, 448), (0, 0, 448, 192)),
        ((100, 100), (192, 448), (128, 0, 320, 192)),
        ((9000, 3), (64, 64), (0, 31, 64, 32)),
        ((3, 9000), (64, 64), (31, 0, 32, 64)),
        ((1, 1), (32, 64), (16, 0, 48, 32)),
    ],
)
def test_a_letterbox_keeps_the_aspect_in_the_middle(size: Any, canvas: Any, box: Any) -> None:
    assert place(size, canvas, "letterbox") == Placement(box, canvas)
    assert place(size, canvas, "squash") == Placement((0, 0, canvas[1], canvas[0]), canvas)
    x0, y0, x1, y1 = box
    image = fit_image(Upright(Image.new("RGB", size, (200, 10, 30))), canvas, "letterbox")
    classes = fit_map(np.full(size[::-1], 7, np.uint8), canvas, "letterbox")
    inside = np.zeros(canvas, bool)
    inside[y0:y1, x0:x1] = True
    assert (image[inside] == (200, 10, 30)).all()
    assert (image[~inside] == GREY).all()
    np.testing.assert_array_equal(classes, np.where(inside, 7, IGNORE))


def test_the_canvas_lies_around_a_letterboxed_picture() -> None:
    assert find_canvas((640, 480), (256, 256), "letterbox") == (0, -80, 640, 560)
    assert find_canvas((640, 480), (256, 256), "squash") == (0, 0, 640, 480)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    canvas=st.sampled_from([(32, 32), (16, 48), (64, 32)]),
    fit=st.sampled_from(FITS),
)
def test_a_picture_and_its_map_lie_in_the_same_place(size: Any, canvas: Any, fit: Any) -> None:
    """A picture of two flat halves: where it is clearly one of them, the map says so."""
    width, height = size
    classes = np.zeros((height, width), np.uint8)
    classes[:, width // 2 :] = 1
    picture = Upright(Image.fromarray(np.repeat(classes[..., None] * 255, 3, 2)))
    image, moved = fit_image(picture, canvas, fit)[..., 0], fit_map(classes, canvas, fit)
    known = moved != IGNORE
    x0, y0, x1, y1 = place(size, canvas, fit).box
    assert known.sum() == (x1 - x0) * (y1 - y0) > 0
    # A bicubic edge reaches over two pixels of either size.
    edge = x0 + (width // 2) * (x1 - x0) / width
    reach = 2 + 2 * (x1 - x0) / width
    far = known & (np.abs(np.arange(canvas[1]) + 0.5 - edge) > reach)[None]
    np.testing.assert_array_equal(moved[far], (image[far] > 127).astype(np.uint8))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    canvas=st.sampled_from([(64, 64), (32, 96)]),
    stride=st.sampled_from([1, 4, 8]),
    fit=st.sampled_from(FITS),
)
def test_a_plane_comes_back_as_it_was(size: Any, canvas: Any, stride: int, fit: Any) -> None:
    """What grows linearly over the picture is found again at every pixel whose neighbours lie inside of the picture."""
    width, height = size
    placement = place(size, canvas, fit)
    x0, y0, x1, y1 = placement.box
    y, x = ((np.arange(side // stride) + 0.5) * stride for side in canvas)
    planes = np.stack(np.broadcast_arrays((x - x0)[None, :] / (x1 - x0), (y - y0)[:, None] / (y1 - y0)))
    found = restore(planes, placement, (height, width))
    assert (found.shape, found.dtype) == ((2, height, width), np.float32)
    across, down = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    # Beyond the outermost centres nothing is known: the nearest cell answers.
    half = stride / 2
    cells_x, cells_y = x[(x + half > x0) & (x - half < x1)], y[(y + half > y0) & (y - half < y1)]
    wanted_x = np.clip(across, (cells_x[0] - x0) / (x1 - x0), (cells_x[-1] - x0) / (x1 - x0))
    wanted_y = np.clip(down, (cells_y[0] - y0) / (y1 - y0), (cells_y[-1] - y0) / (y1 - y0))
    np.testing.assert_allclose(found[0], np.broadcast_to(wanted_x, (height, width)), atol=1e-4)
    np.testing.assert_allclose(found[1], np.broadcast_to(wanted_y[:, None], (height, width)), atol=1e-4)


@pytest.mark.parametrize("fit", FITS)
def test_restoring_is_what_torch_calls_bilinear(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    placement = place((150, 90), (64, 64), fit)
    logits = np.random.default_rng(1).normal(size=(3, 64, 64)).astype(np.float32)
    x0, y0, x1, y1 = placement.box
    part = torch.from_numpy(logits[:, y0:y1, x0:x1])[None].double()  # torch rounds places to float32, too
    expected = torch.nn.functional.interpolate(part, (90, 150), mode="bilinear", align_corners=False)[0].numpy()
    np.testing.assert_allclose(restore(logits, placement, (90, 150)), expected, atol=1e-6)
    monkeypatch.setattr(geometry, "BAND", 3 * 150 * 7)
    bands = list(restore_bands(logits, placement, (90, 150)))
    assert [top for top, _ in bands] == list(range(0, 90, 7))
    np.testing.assert_array_equal(np.concatenate([band for _, band in bands], 1), restore(logits, placement, (90, 150)))


def test_nothing_changes_where_nothing_has_to() -> None:
    logits = np.random.default_rng(1).normal(size=(3, 32, 48)).astype(np.float32)
    classes = _blobs(32, 48)
    for fit in FITS:
        placement = place((48, 32), (32, 48), fit)
        np.testing.assert_array_equal(restore(logits, placement, (32, 48)), logits)
        np.testing.assert_array_equal(fit_map(classes, (32, 48), fit), classes)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(300, 300), (400, 200), (200, 400), (900, 150), (64, 48), (1000, 30)])
def test_large_regions_survive_the_way_there_and_back(size: tuple[int, int], fit: Any) -> None:
    width, height = size
    classes, canvas = _blobs(height, width), (256, 256)
    moved = fit_map(classes, canvas, fit)
    shares = np.stack([moved == number for number in range(4)]).astype(np.float32)
    back = restore(shares, place(size, canvas, fit), (height, width)).argmax(0)
    for number in range(4):
        both, either = ((back == number) & (classes == number)).sum(), ((back == number) | (classes == number)).sum()
        # The least side of a region on the canvas bounds what half a pixel at its edges can cost.
        x0, y0, x1, y1 = place(size, canvas, fit).box
        assert both / either > 1 - 4 / min(x1 - x0, y1 - y0, 128), (number, both / either)


def test_a_pixel_of_a_map_has_the_class_at_its_centre() -> None:
    assert fit_map(np.arange(9, dtype=np.uint8)[None], (1, 3), "squash").tolist() == [[1, 4, 7]]


def test_padding_is_never_part_of_an_answer() -> None:
    """Coarse cells that lie in the padding alone are not read, wherever the picture's edge falls."""
    for size in ((100, 37), (37, 100), (64, 5)):
        placement = place(size, (64, 64), "letterbox")
        x0, y0, x1, y1 = placement.box
        coarse = np.full((1, 16, 16), 1e9, np.float32)
        coarse[:, y0 // 4 : -(-y1 // 4), x0 // 4 : -(-x1 // 4)] = 1
        assert (restore(coarse, placement, size[::-1]) == 1).all()


class TestMaps:
    def _manifest(self, shapes: list[tuple[int, int]]) -> pl.DataFrame:
        return pl.DataFrame({"class_map": [encode_map(_blobs(*shape)) for shape in shapes]})

    @pytest.mark.parametrize("fit", FITS)
    def test_they_are_made_once_and_named_by_content(self, tmp_path: Path, fit: Any) -> None:
        shapes = [(60, 80), (32, 32), (90, 20)]
        manifest, size = self._manifest(shapes), ImgSize(32, 48)
        maps = load_maps(manifest, size, fit, tmp_path)
        assert isinstance(maps, np.memmap)
        assert not maps.flags.writeable
        for found, shape in zip(maps, shapes, strict=True):
            np.testing.assert_array_equal(found, fit_map(_blobs(*shape), size, fit))
        (file,) = (tmp_path / "pixels").iterdir()
        made = file.stat().st_ino
        np.testing.assert_array_equal(load_maps(manifest, size, fit, tmp_path), maps)
        assert [path.stat().st_ino for path in (tmp_path / "pixels").iterdir()] == [made]
        load_maps(self._manifest(shapes[:2]), size, fit, tmp_path)
        load_maps(manifest, ImgSize(48, 32), fit, tmp_path)
        load_maps(manifest, size, "squash" if fit == "letterbox" else "letterbox", tmp_path)
        assert len(list((tmp_path / "pixels").iterdir())) == 4

    def test_a_damaged_file_is_made_again(self, tmp_path: Path) -> None:
        manifest, size = self._manifest([(60, 80)] * 3), ImgSize(32, 32)
        expected = np.array(load_maps(manifest, size, "squash", tmp_path))
        (file,) = (tmp_path / "pixels").iterdir()
        content = bytearray(file.read_bytes())
        content[100] ^= 1
        file.write_bytes(content)
        np.testing.assert_array_equal(load_maps(manifest, size, "squash", tmp_path), expected)


def _record(*transforms: Any) -> dict[str, Any]:
    return {"transform": A.to_dict(A.Compose(list(transforms)))["transform"]}


OWN = _record(
    A.D4(p=0.5),
    A.Affine(rotate=(-40, 40), interpolation=1, mask_interpolation=1, p=0.8),
    A.ElasticTransform(p=0.3),
    A.RandomBrightnessContrast(p=0.5),
)


@pytest.mark.parametrize("recipe", [*PRESETS, OWN], ids=[*PRESETS, "own"])
@pytest.mark.parametrize("size", [(32, 32), (32, 64)], ids=str)
class TestAugmentation:
    def _augment(self, recipe: Any, size: tuple[int, int]) -> Augmentation:
        if recipe is OWN and size[0] != size[1]:
            pytest.skip("it turns by quarters, and is refused")
        return Augmentation(recipe, 7, square=size[0] == size[1])

    def test_a_map_goes_the_way_of_its_image(self, recipe: Any, size: tuple[int, int]) -> None:
        augment, classes = self._augment(recipe, size), _blobs(*size)
        colours = np.array([[30, 30, 30], [30, 30, 225], [30, 225, 30], [225, 30, 30]], np.uint8)
        image = colours[classes]
        moves = 0
        for index in range(24):
            seen, moved = augment.with_map(image, classes, 2, index)
            np.testing.assert_array_equal(seen, augment(image, 2, index))
            assert (moved.dtype, moved.shape) == (np.uint8, classes.shape)
            assert set(np.unique(moved)) <= {0, 1, 2, 3, IGNORE}
            if recipe != "pathology":  # whose stains change the colours
                nearest = np.abs(seen[..., None, :].astype(int) - colours).sum(-1).argmin(-1)
                known = moved != IGNORE
                assert (nearest[known] == moved[known]).mean() > 0.85
            moves += not np.array_equal(moved, classes)
        assert (moves > 0) == (recipe != "none")

    def test_any_number_of_workers_gives_the_same_batches(self, recipe: Any, size: tuple[int, int]) -> None:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (8, *size, 3), dtype=np.uint8)
        maps = np.stack([_blobs(*size)] * 8)
        maps.setflags(write=False)

        def draw(workers: int, targets: np.ndarray) -> list[Any]:
            samples = Samples(pixels, np.arange(8), targets, self._augment(recipe, size))
            return list(create_loader(samples, 4, workers=workers, order=StepOrder(samples, 4, 3)))

        samples, augment = Samples(pixels, np.arange(8), maps, self._augment(recipe, size)), self._augment(recipe, size)
        samples.epoch = 3
        for index in range(8):
            expected = augment.with_map(pixels[index], maps[index], 3, index)[1]
            np.testing.assert_array_equal(np.asarray(samples[index][1]), expected)
        alone = draw(0, maps)
        for (images, targets), (same, again), (plain, _) in zip(
            alone, draw(2, maps), draw(0, np.zeros(8, np.int64)), strict=True
        ):
            assert (targets.dtype, targets.shape) == (torch.uint8, (4, *size))
            assert torch.equal(images, same)
            assert torch.equal(targets, again)
            assert torch.equal(images, plain)


@pytest.mark.parametrize(
    "transform",
    [
        A.Affine(rotate=45, border_mode=0, fill=9, p=1),
        A.Rotate((45, 45), border_mode=0, p=1),
        A.SafeRotate((45, 45), border_mode=0, p=1),
        A.Perspective((0.2, 0.3), border_mode=0, fit_output=True, p=1),
        A.ElasticTransform(alpha=300, sigma=5, border_mode=0, p=1),
        A.Compose([A.PadIfNeeded(48, 48, border_mode=0), A.RandomCrop(32, 32)], p=1),
        A.CropAndPad(px=(4, 8), border_mode=0, keep_size=True, p=1),
        A.PixelDropout(dropout_prob=0.5, mask_drop_value=1, p=1),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_comes_in_from_outside_is_of_no_class(transform: Any) -> None:
    recipe = _record(transform)
    require_fit(recipe, ImgSize(32, 32), "mask")
    augment, image = Augmentation(recipe, 0), np.full((32, 32, 3), 200, np.uint8)
    maps = [augment.with_map(image, image[..., 0] // 40, 0, index)[1] for index in range(8)]
    assert set(np.unique(maps)) == {5, IGNORE}


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (A.Morphological(p=1), ("Morphological", "class map")),
        (A.Compose([A.HorizontalFlip(), A.Morphological(p=0.1)]), ("Morphological",)),
        (A.MaskDropout(p=1), ("MaskDropout", "only the image")),
    ],
)
def test_a_transform_that_cannot_move_a_map_is_refused_by_name(transform: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(DomainError) as caught:
        require_fit(_record(transform), ImgSize(32, 32), "mask")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    if "class map" in words:
        require_fit(_record(transform), ImgSize(32, 32))  # without maps it is one like any other


def test_quarter_turns_of_an_own_pipeline_need_a_square() -> None:
    require_fit(OWN, ImgSize(32, 32), "mask")
    with pytest.raises(DomainError, match="by D4"):
        require_fit(OWN, ImgSize(32, 64), "mask")


@pytest.mark.parametrize("preset", ["industrial", "pathology"])
def test_a_rectangle_gets_all_its_symmetries_and_a_square_its_turns(preset: str) -> None:
    names = {
        square: [type(one).__name__ for one in Augmentation(preset, 0, square=square).pipeline]
        for square in (True, False)
    }
    assert names[True][:3] == ["HorizontalFlip", "VerticalFlip", "RandomRotate90"]
    assert names[False] == [name for name in names[True] if name != "RandomRotate90"]


class TestImgSize:
    @pytest.mark.parametrize(("written", "size"), [(64, (64, 64)), ([64, 64], (64, 64)), ([192, 448], (192, 448))])
    def test_it_is_written_as_one_number_where_square(self, written: Any, size: Any) -> None:
        domain = Domain.model_validate(FACTS | {"img_size": written})
        assert domain.img_size == ImgSize(*size)
        plain = size[0] if size[0] == size[1] else list(size)
        assert json.loads(domain.model_dump_json())["img_size"] == domain.model_dump(mode="json")["img_size"] == plain
        assert Domain.model_validate_json(domain.model_dump_json()) == domain
        assert f"{domain.img_size} px" == ("64 px" if size[0] == size[1] else "192 x 448 px")

    def test_it_may_be_left_out(self) -> None:
        domain = Domain.model_validate(FACTS)
        assert domain.img_size is None
        assert json.loads(domain.model_dump_json())["img_size"] is None

    @pytest.mark.parametrize("wrong", [8, 4096, [], [64, 64, 3], [64, 8], "64", 64.0, True, [64, "64"], {"h": 1}])
    def test_anything_else_is_refused(self, wrong: Any) -> None:
        with pytest.raises(ValidationError, match=r"height, width|16 to 2048"):
            Domain.model_validate(FACTS | {"img_size": wrong})

    def test_a_backbone_takes_any_rectangle_of_its_patches(self) -> None:
        wide, own = load_backbone("embedded", (64, 112)), load_backbone("embedded")
        assert (wide.img_size, wide.vit.patch_embed.grid_size) == (ImgSize(64, 112), (4, 7))
        assert wide.sha256 == own.sha256
        assert wide.vit(torch.zeros(1, 3, 64, 112)).shape == (1, 192)
        # Positions are resampled over the same picture: those of the corners stay nearer than those of other corners.
        grids = [
            backbone.vit.pos_embed[0, 1:].unflatten(0, backbone.vit.patch_embed.grid_size) for backbone in (wide, own)
        ]
        corners = [torch.stack([grid[y, x] for y in (0, -1) for x in (0, -1)]) for grid in grids]
        assert torch.cdist(*corners).argmin(1).tolist() == [0, 1, 2, 3]
        with pytest.raises(BackboneError, match=r"img_size: \[64, 100\].*Choose \[64, 96\] or \[80, 112\]"):
            load_backbone("embedded", (64, 100))


def test_an_adapter_says_how_its_pictures_were_fitted() -> None:
    old = {"kind": "picture", "cut": "box", "resize": "stretch", "max_megapixels": 100, "min_side": 32}
    assert InputMeta.model_validate(old).fit == "squash"
    new = InputMeta(kind="picture", fit="letterbox", max_megapixels=100, min_side=32)
    assert InputMeta.model_validate(new.model_dump(mode="json")) == new
    with pytest.raises(ValidationError):
        InputMeta.model_validate(old | {"resize": "crop"})


def test_another_fit_trains_again_and_leaves_the_data_alone(tmp_path: Path, images: Path) -> None:
    workspace = Workspace(create_workspace(tmp_path / "w", images))
    workspace.activate()
    plans = [
        create_plan(workspace, load_checked_domain(workspace, DOMAIN, overrides)).with_manifest("0" * 64)
        for overrides in ((), ("fit=squash",), ("fit=letterbox",), ("img_size=[32, 64]",))
    ]
    keys = [plan.verdict_key for plan in plans]
    assert keys[0] == keys[1]
    assert len({keys[0], keys[2], keys[3]}) == 3
    assert len({plan.manifest_key for plan in plans}) == 1
