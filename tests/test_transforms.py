"""Augmentation depends on (seed, epoch, index) alone, and a user's pipeline is data: checked, never executed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import DOMAIN, create_workspace, run_tessera

from components.data.batches.loading import Samples, StepOrder, create_loader
from components.data.batches.transforms import (
    Augmentation,
    create_pipeline,
    embed_augmentation,
    load_albumentations,
    require_fit,
)
from components.domain.canvas import ImgSize
from components.domain.domain import PRESETS, Domain
from components.domain.reading import load_domain
from components.errors import DomainError
from components.workspace import Workspace
from flows.plan import Plan, create_plan, load_checked_domain

A = load_albumentations()
SIZE = ImgSize(32, 32)
OWN = A.Compose(
    [
        A.D4(p=0.5),
        A.OneOf([A.GaussNoise(), A.GaussianBlur(), A.Sequential([A.Downscale(), A.ColorJitter()])], p=0.8),
        A.Compose([A.PadIfNeeded(40, 40), A.RandomCrop(32, 32)]),  # a way round that ends where it began
        A.ElasticTransform(p=0.3),
    ]
)


def _record() -> dict[str, Any]:
    return yaml.safe_load(yaml.safe_dump(A.to_dict(OWN)))


def _domain(augmentation: Any) -> Domain:
    facts = {"name": "tiles", "task": "classification", "classes": ["a", "b"], "layout": "folders"}
    return Domain.model_validate(facts | {"augmentation": augmentation})


RECIPES = {**{preset: preset for preset in PRESETS}, "own": {"transform": _record()["transform"]}}


@pytest.mark.parametrize("name", RECIPES)
def test_any_number_of_workers_gives_the_same_batches(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), dtype=np.uint8)

    def batches(workers: int) -> list[np.ndarray]:
        samples = Samples(pixels, np.arange(24), np.arange(24) % 3, Augmentation(RECIPES[name], 3))
        found = []
        for epoch in (0, 1):
            samples.epoch = epoch
            found += [
                images.numpy()
                for images, _ in create_loader(samples, 8, workers=workers, order=StepOrder(samples, 8, 3))
            ]
        return found

    alone = batches(0)
    assert not np.array_equal(alone[0], alone[3]), "epochs must differ"
    for workers in (1, 2):
        for expected, got in zip(alone, batches(workers), strict=True):
            np.testing.assert_array_equal(expected, got)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "none"])
def test_augmentation_depends_on_seed_epoch_and_index_alone(name: str) -> None:
    image = np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    augment = Augmentation(RECIPES[name], 0)
    first = augment(image, 0, 0)
    others = [augment(image, 0, 1), augment(image, 1, 0), Augmentation(RECIPES[name], 1)(image, 0, 0)]
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, augment(image, 0, 0))
    assert not all(np.array_equal(first, other) for other in others)


def test_what_albumentations_saved_is_what_is_done(tmp_path: Path) -> None:
    A.save(OWN, tmp_path / "augment.yaml", data_format="yaml")
    domain = embed_augmentation(_domain("augment.yaml"), tmp_path)
    image = np.random.default_rng(2).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    ours, theirs = Augmentation(domain.augmentation, 5), Augmentation("none", 5)
    theirs.pipeline = A.Compose([A.from_dict(_record())])
    for index in range(20):
        np.testing.assert_array_equal(ours(image, 0, index), theirs(image, 0, index))
    require_fit(domain.augmentation, SIZE)
    assert domain.augmentation == embed_augmentation(_domain(domain.augmentation), tmp_path).augmentation


def _flip(**changes: Any) -> dict[str, Any]:
    return {"__class_fullname__": "HorizontalFlip", "p": 0.5} | changes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("no such file", "augment.yaml")),
        ("transform: [", ("albumentations.save",)),
        ("- 1", ("transform",)),
        ("transform: !!python/object/apply:os.system ['touch PLACE/owned']", ("constructor",)),
        (_flip(__class_fullname__="HorizontalFlipp"), ("HorizontalFlipp", "'HorizontalFlip'")),
        (_flip(__class_fullname__="os.system"), ("os.system", "albumentations itself")),
        (_flip(__class_fullname__="evil.HorizontalFlip"), ("evil.HorizontalFlip",)),
        (_flip(__class_fullname__="Lambda"), ("Lambda",)),
        (_flip(__class_fullname__="DualTransform"), ("DualTransform",)),
        (_flip(__class_fullname__="FDA", reference_images=["/etc/passwd"]), ("FDA", "would be part of no key")),
        (_flip(propability=1), ("HorizontalFlip", "'propability'")),
        ({"__class_fullname__": "GaussNoise", "std_rang": [0, 1]}, ("GaussNoise", "'std_range'")),
        ({"__class_fullname__": "Blur", "blur_limit": "much"}, ("Blur", "blur_limit")),
        ({"__class_fullname__": "OneOf", "transforms": 3}, ("OneOf", "list of transforms")),
        ({"__class_fullname__": "OneOf", "transforms": [7]}, ("albumentations itself",)),
        (["HorizontalFlip"], ("transform",)),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused(tmp_path: Path, text: Any, words: tuple[str, ...]) -> None:
    if text is not None:
        content = text.replace("PLACE", str(tmp_path)) if isinstance(text, str) else yaml.safe_dump({"transform": text})
        (tmp_path / "augment.yaml").write_text(content)
    with pytest.raises(DomainError) as caught:
        embed_augmentation(_domain("augment.yaml"), tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (A.RandomCrop(16, 16), ("RandomCrop", "32 x 32 x 3", "16 x 16 x 3")),
        (A.Compose([A.OneOf([A.HorizontalFlip(), A.Resize(48, 48)], p=1)]), ("by Resize", "48 x 48 x 3")),
        (A.Normalize(), ("Normalize", "float32")),
        (A.MaskDropout(p=1), ("MaskDropout", "only the image")),
        (A.RandomCrop(64, 64, p=1), ("RandomCrop",)),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused_by_name(transform: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(DomainError) as caught:
        require_fit({"transform": A.to_dict(transform)["transform"]}, SIZE)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_content_of_the_file_is_in_the_key_of_a_candidate(tmp_path: Path, images: Path) -> None:
    place = Workspace(create_workspace(tmp_path / "w", images, augmentation="augment.yaml"))
    place.activate()
    file = place.domain_file(DOMAIN).with_name("augment.yaml")
    A.save(A.Compose([A.HorizontalFlip()]), file, data_format="yaml")

    def plan(*overrides: str) -> Plan:
        return create_plan(place, load_checked_domain(place, DOMAIN, overrides)).with_manifest("0" * 64)

    first = plan()
    file.rename(file.with_name("other.yaml"))
    moved = plan("augmentation=other.yaml")
    A.save(A.Compose([A.VerticalFlip()]), file, data_format="yaml")
    keys = [made.verdict_key for made in (first, moved, plan())]
    assert keys[0] == keys[1] != keys[2]
    (job, *_) = first.create_jobs().values()
    assert create_pipeline(job.domain.augmentation) is not None
    assert load_domain(place.domain_file(DOMAIN)).augmentation == "augment.yaml"


@pytest.mark.slow
def test_a_wrong_pipeline_is_refused_at_the_start(tmp_path: Path, images: Path) -> None:
    place = create_workspace(tmp_path / "w", images, augmentation="augment.yaml")
    A.save(A.Compose([A.RandomCrop(16, 16)]), place / "data" / DOMAIN / "augment.yaml", data_format="yaml")
    answer = run_tessera(place, "check", DOMAIN)
    assert answer.code == 2
    assert "RandomCrop" in answer.outcome["error"]["found"]
