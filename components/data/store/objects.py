"""DVC's cache by hash: `python -m components.data.store.objects [--whole] MD5...` fetches what is missing.

DVC's command line fetches only what a pointer in the working tree names. A version is compared and restored without
touching the tree, so this module requests the hashes from DVC's own storage. It runs in a process of its own, like
every use of DVC here. What is still missing when it has ended is not on the remote.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def main() -> None:
    """Fetch in the current folder's DVC repository. An error of DVC ends the process; its message is the last line."""
    parser = argparse.ArgumentParser(prog="python -m components.data.store.objects", description="Fetch DVC objects.")
    parser.add_argument("--whole", action="store_true", help="also fetch all files of a folder, not only its listing")
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
    """The hashes that are not in the cache. whole: also those of the files in a folder whose listing is there."""
    missing = []
    for md5 in md5s:
        if not locate_object(cache, md5).exists():
            missing.append(md5)
        elif whole and md5.endswith(".dir"):
            missing += list_missing(cache, set(load_listing(cache, md5).values()), whole=False)
    return missing


def locate_object(cache: Path, md5: str) -> Path:
    """The path of an object in DVC 3's cache."""
    return cache / md5[:2] / md5[2:]


def load_listing(cache: Path, md5: str) -> dict[str, str]:
    """The md5 of every file in a version of a folder, by its path below the folder."""
    entries = json.loads(locate_object(cache, md5).read_text(encoding="utf-8"))
    return {entry["relpath"]: entry["md5"] for entry in entries}


if __name__ == "__main__":
    main()
