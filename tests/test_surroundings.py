"""What surrounds the images: odd terminals, damaged files of git and DVC, schedules, YAML that costs too much."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import DOMAIN, clean_environment
from PIL import Image

from components.data.batches.transforms import embed_augmentation
from components.data.store import proofs, versioning
from components.data.store.versioning import git
from components.domain.canvas import ImgSize
from components.domain.reading import load_domain, parse_domain
from components.domain.settings import Schedule
from components.errors import DomainError, TesseraError, VersioningError, make_visible
from components.workspace import REPOSITORY, Workspace
from flows.progress import make_harmless

# Schedules

CRONS = (
    "0 3 * * 1",
    "*/15 8-18 * * MON-FRI",
    "0 0 1,15 * *",
    "30 2 * jan,JUL *",
    "0 3 * * 7",
    "0 3 L * *",
    "5 4 29 2 *",
)
BAD_CRONS = (
    "0 0 3 * * 1",
    "0 3 * *",
    "@daily",
    "0 3 31 2 *",
    "60 3 * * 1",
    "0 3 * * R",
    "H 3 * * *",
    "0 3 * * 1#1",
    "",
)


@pytest.mark.parametrize("cron", CRONS)
def test_a_cron_line_that_is_taken_means_the_same_to_prefect(cron: str) -> None:
    from datetime import UTC, datetime

    from cronsim import CronSim
    from prefect._vendor.croniter import croniter
    from prefect.client.schemas.schedules import CronSchedule

    schedule = Schedule(cron=cron, timezone="UTC")
    assert CronSchedule(cron=schedule.cron or "", timezone=schedule.timezone)
    start = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
    ours, theirs = CronSim(cron, start), croniter(cron, start)
    assert [next(ours) for _ in range(5)] == [theirs.get_next(datetime) for _ in range(5)]


@pytest.mark.parametrize("cron", BAD_CRONS)
def test_a_cron_line_of_other_forms_is_refused_at_the_door(cron: str) -> None:
    with pytest.raises(ValueError, match="cron needs five fields, minute first"):
        Schedule(cron=cron)


@pytest.mark.slow
def test_every_zone_that_is_taken_is_one_of_prefects() -> None:
    from zoneinfo import available_timezones

    from prefect.client.schemas.schedules import CronSchedule

    for zone in available_timezones():
        assert Schedule(cron="0 3 * * 1", timezone=zone)
    assert CronSchedule(cron="0 3 * * 1", timezone="Europe/Zurich")


@pytest.mark.parametrize(
    ("zone", "words"),
    [("Europe/Zürich", "did you mean Europe/Zurich"), ("CEST", "a name such as"), ("+02:00", "a name"), ("", "a name")],
)
def test_a_zone_that_prefect_would_refuse_is_refused_at_the_door(zone: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Schedule(cron="0 3 * * 1", timezone=zone)


# YAML

BOMB = "\n".join(f"{name}: &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]" for name in "bcdefghi")
BOMB = f"a: &a [{', '.join(['lol'] * 9)}]\n{BOMB}\n"
TILES = {"name": "tiles", "task": "classification", "classes": ["good", "cracked"], "layout": "folders"}


def test_aliases_are_refused_wherever_yaml_is_read(tmp_path: Path) -> None:
    """A few lines of them stand for more text than any memory holds."""
    file = tmp_path / "tiles" / "domain.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(TILES) + BOMB)
    with pytest.raises(DomainError, match="an alias"):
        load_domain(file)
    file.write_text(yaml.safe_dump(TILES))
    with pytest.raises(DomainError, match="--set"):
        load_domain(file, [f"description={{x: &x [1], y: *x}}"])  # noqa: F541  as a user types it
    (file.parent / "augment.yaml").write_text(f"{BOMB}transform: {{__class_fullname__: Compose, transforms: *i}}\n")
    domain = parse_domain(TILES | {"augmentation": "augment.yaml"}, "tests")
    with pytest.raises(DomainError, match="an alias"):
        embed_augmentation(domain, file.parent)


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    """Most readers of YAML take the last one and say nothing."""
    file = tmp_path / "tiles" / "domain.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(TILES) + "classes: [good, bad]\n")
    with pytest.raises(DomainError, match="the key 'classes' twice"):
        load_domain(file)


# Files of DVC

CONFLICT = "<<<<<<< HEAD\nstages: {}\n=======\nstages: []\n>>>>>>> theirs\n"
DAMAGES = {
    "conflict": CONFLICT.encode(),
    "torn": b"stages:\n  manifest@parts: {cmd: [",
    "binary": b"\xff\xfe\x00\x81",
    "list": b"- a\n",
    "shape": b"stages: {manifest@parts: {deps: [{path: x}]}}\nvars: {}\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["dvc.lock", "dvc.yaml"])
def test_a_damaged_file_of_dvc_is_one_paragraph_with_the_fix(tmp_path: Path, name: str, damage: str) -> None:
    place = Workspace(tmp_path)
    (tmp_path / name).write_bytes(DAMAGES[damage])
    read = {"dvc.lock": proofs.load_locked, "dvc.yaml": lambda place: versioning.register_domain(place, DOMAIN)}[name]
    with pytest.raises(VersioningError) as caught:
        read(place)
    assert name in caught.value.what
    assert "git checkout" in caught.value.hint


@pytest.mark.parametrize("damage", ["conflict", "torn", "binary"])
def test_damaged_settings_of_dvc_are_one_paragraph(tmp_path: Path, damage: str) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_bytes(DAMAGES[damage])
    with pytest.raises(TesseraError, match=r"DVC's settings in .*git checkout -- \.dvc/config"):
        versioning.require_repository(Workspace(tmp_path))


def test_a_repository_of_somebody_elses_making_keeps_its_cache_and_settings(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "workspace")
    (place.root / ".dvc" / "cache").mkdir(parents=True)
    (place.root / ".dvc" / "cache" / "precious").write_text("theirs")
    settings = place.root / ".dvc" / "config"
    settings.write_text("[core]\n    no_scm = True\n    autostage = false\n['remote \"far\"']\n    url = /far\n")
    with pytest.raises(TesseraError, match="dvc remote default NAME"):
        versioning.require_repository(place)
    settings.write_text("[core]\n    no_scm = True\n    autostage = false\n")
    versioning.require_repository(place)
    assert (place.root / ".dvc" / "cache" / "precious").read_text() == "theirs"
    assert "autostage = false" in settings.read_text()
    assert "remote = local" in settings.read_text()


# Terminals


def test_control_characters_are_written_out() -> None:
    """ESC commands a terminal, an override turns the order of what follows; line ends and accents stay."""
    assert make_visible("a\x1b[31mb\x07\x9b\u202e\r") == r"a\x1b[31mb\x07\x9b\u202e\r"
    assert make_visible("défaut\nÜ\t✓") == "défaut\nÜ\t✓"
    assert make_harmless({"\x1b": [("\x1b", 1)]}) == {r"\x1b": [(r"\x1b", 1)]}
    assert make_harmless([ImgSize(192, 448)]) == [ImgSize(192, 448)]


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes whose names hold accents, brackets as markup has them, and a command to the terminal."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("odd")
    for label in ("défaut", "go[red]od", "\x1b[31mhot"):
        (folder / label).mkdir()
        for number in range(12):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / label / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_are_shown_on_any_terminal_as_they_are(tmp_path: Path, odd_names: Path, encoding: str) -> None:
    """What the terminal's encoding lacks is spelt; nothing in a name is a command or markup."""
    for command in (["import", str(odd_names), "--domain", "odd"], ["check", "odd"]):
        done = subprocess.run(
            [sys.executable, "-m", "flows.commands.cli", *command, "--workspace", str(tmp_path / "workspace")],
            capture_output=True,
            env=clean_environment() | {"PYTHONIOENCODING": encoding, "COLUMNS": "200"},
            cwd=REPOSITORY,
            check=False,
        )
        told = done.stdout.decode(encoding) + done.stderr.decode(encoding)
        assert done.returncode == 0, told
        assert ("d\\xe9faut" if encoding == "ascii" else "défaut") in told
        assert "go[red]od" in told
        assert "\\x1b[31mhot" in told
        assert "\x1b" not in told


# Repositories of others


def test_state_is_no_business_of_the_repository_around_it(tmp_path: Path) -> None:
    """`git add -A` in a project that holds the workspace would commit caches and databases."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    place = Workspace(tmp_path / "vision" / "workspace")
    code = "from components.workspace import find_workspace; find_workspace().activate()"
    env = clean_environment() | {"TESSERA_WORKSPACE": str(place.root)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, env=env)
    (place.state / "logs" / "prefect.log").write_text("a line")
    assert git(tmp_path, "status", "--porcelain", "--untracked-files=all") == ""
