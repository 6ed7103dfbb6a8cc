"""DVC's cache by hash: `python -m components.data.store.objects [--whole] MD5...` fetches what is missing.

DVC's command line fetches what a pointer in the working tree names; a version is compared and restored without
touching the tree, so this asks DVC's own storage for the hashes. A process of its own, as every use of DVC here;
what is missing still when it has ended is not on the remote.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def main() -> None:
    """Fetch in the current folder's DVC repository; what DVC raises ends the process with its own last line."""
    parser = argparse.ArgumentParser(prog="python -m components.data.store.objects", description="Fetch DVC objects.")
    parser.add_argument("--whole", action="store_true", help="of a folder all files too, not its listing alone")
    parser.add_argument("md5", nargs="+")
    options = parser.parse_args()
    from dvc.repo import Repo

    repo = Repo(".")
    cache = Path(repo.cache.local.path)
    _pull(repo, list_missing(cache, options.md5, whole=False))
    if options.whole:
        _pull(repo, list_missing(cache, options.md5, whole=True))


def _pull(repo: Any, md5s: list[str]) -> None:
    from dvc_data.hashfile.hash_info import HashInfo

    if md5s:
        repo.cloud.pull([HashInfo("md5", md5) for md5 in md5s])


def list_missing(cache: Path, md5s: Iterable[str], *, whole: bool) -> list[str]:
    """What of these is not in the cache; `whole`: nor the files of a folder whose listing is."""
    missing = []
    for md5 in md5s:
        if not locate_object(cache, md5).exists():
            missing.append(md5)
        elif whole and md5.endswith(".dir"):
            missing += list_missing(cache, set(load_listing(cache, md5).values()), whole=False)
    return missing


def locate_object(cache: Path, md5: str) -> Path:
    """Where DVC 3 keeps an object."""
    return cache / md5[:2] / md5[2:]


def load_listing(cache: Path, md5: str) -> dict[str, str]:
    """Path below the folder -> md5, of every file of a folder's version."""
    entries = json.loads(locate_object(cache, md5).read_text(encoding="utf-8"))
    return {entry["relpath"]: entry["md5"] for entry in entries}


if __name__ == "__main__":
    main()
