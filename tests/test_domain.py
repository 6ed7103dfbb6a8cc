"""domain.yaml: the smallest legal file, and every way to get it wrong with words that help."""

from pathlib import Path

import pytest

from components.domain.domain import Domain
from components.domain.reading import load_domain
from components.errors import DomainError
from components.models.tuners import create_tuners
from components.tasks import create_task
from components.workspace import REPOSITORY

SMALLEST = "name: tiles\ntask: classification\nclasses: [good, cracked]\nlayout: folders\n"


def _write(folder: Path, text: str, name: str = "tiles") -> Path:
    path = folder / "data" / name / "domain.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_smallest_legal_file_is_four_lines(tmp_path: Path) -> None:
    domain = load_domain(_write(tmp_path, SMALLEST))
    assert (domain.layout.kind, domain.backbone, domain.training.seeds) == ("folders", "auto", (0,))
    assert [tuner.label for tuner in create_tuners(domain.candidates)] == ["linear", "vpt-deep", "vapt", "full"]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "data").glob("*/domain.yaml")), ids=lambda p: p.parent.name)
def test_shipped_domains_are_legal_and_cite(path: Path) -> None:
    domain = load_domain(path)
    create_task(domain)
    create_tuners(domain.candidates)
    assert domain.source
    assert domain.licence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SMALLEST + "augmentaton: none\n", ("augmentaton", "Did you mean 'augmentation'")),
        (SMALLEST.replace("classes", "clases"), ("unknown key 'clases'", "Did you mean 'classes'", "1 more")),
        (SMALLEST + "training: {epoch: 3}\n", ("training.epoch", "epochs")),
        (SMALLEST + "training: {epochs: abc}\n", ("expected a valid integer", "training.epochs = 'abc'")),
        (SMALLEST.replace("folders", "folder"), ("folders", "csv", "voc", "instances")),
        (SMALLEST.replace("classification", "regression"), ("classification", "regression")),
        (SMALLEST.replace("[good, cracked]", "[good]"), ("classes",)),
        (SMALLEST.replace("[good, cracked]", "[good, good]"), ("twice",)),
        (SMALLEST.replace("name: tiles\n", ""), ("name", "Add it")),
        (SMALLEST.replace("tiles", "other"), ("name: tiles", "name: other")),
        (SMALLEST + "schedule: {cron: often}\n", ("cron", "five fields")),
        (SMALLEST + "schedule: {cron: '0 3 * * 1', interval_hours: 2}\n", ("exactly one",)),
        (SMALLEST + "split: {test: 0.9}\n", ("split.test",)),
        (SMALLEST + "slices: [label]\n", ("slice", "label")),
        ("classes: [a, b\n", ("legal YAML",)),
        ("- a\n- b\n", ("mapping", "list")),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(DomainError) as caught:
        create_task(load_domain(_write(tmp_path, text)))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_missing_domain_names_the_known_ones(tmp_path: Path) -> None:
    known = _write(tmp_path, SMALLEST)
    with pytest.raises(DomainError, match="tiles"):
        load_domain(known.parent.parent / "tile" / "domain.yaml")


def test_overrides(tmp_path: Path) -> None:
    path = _write(tmp_path, SMALLEST)
    domain = load_domain(path, ["training.epochs=3", "candidates=[linear, {kind: vapt, lr: 0.1}]", "backbone=vit.x"])
    assert isinstance(domain, Domain)
    assert (domain.training.epochs, domain.backbone, domain.candidates[1]["lr"]) == (3, "vit.x", 0.1)
    again = load_domain(path, ["candidates=[linear, full]", "candidates.1={kind: vpt, num_prompts: 3}"])
    assert again.candidates[1]["num_prompts"] == 3


def test_a_mistake_in_an_override_names_it(tmp_path: Path) -> None:
    with pytest.raises(DomainError, match=r"domain\.yaml with --set trainig\.epochs=3: .*Did you mean 'training'"):
        load_domain(_write(tmp_path, SMALLEST), ["trainig.epochs=3"])


@pytest.mark.parametrize("text", ["training.epochs", "=3", "candidates.x=3", "name.first=a", "classes=[a"])
def test_bad_overrides_are_explained(tmp_path: Path, text: str) -> None:
    with pytest.raises(DomainError, match=r"--set|candidates"):
        load_domain(_write(tmp_path, SMALLEST), [text])
