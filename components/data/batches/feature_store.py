"""Features of frozen networks, each computed once: whoever asks for known ones reads them.

    <cache>/features/<name>/about.json          what all features of the set depend on, for people
    <cache>/features/<name>/000001.parquet      parts: keys of samples and their features, each with a checksum
    <cache>/features/<name>.lock                held by the one process that computes more of them

The name of a set depends on everything that decides its features, so it is never stale; a key is the content of a
sample (`sample_key`). A part is written whole every KEEP_SECONDS, so a killed process loses what it computed since. A
damaged part is logged and removed, and its features are computed again. Locks are kernel locks: a killed process holds
none, and the next one continues.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from components.data.batches.room import FEATURES, lock_of, make_room
from components.data.manifest import load_cache, save_frame
from components.files import write_whole

Floats = NDArray[np.float32]
Compute = Callable[[list[int]], Iterator[Floats]]

SCHEMA = {"key": pl.String, "feature": pl.Binary}  # little-endian float32
KEEP_SECONDS = 20.0  # between two parts
LOOK_SECONDS = 0.2  # between two looks whether another process has finished


class FeatureStore:
    """One set of features. facts: everything that they depend on, besides the sample."""

    def __init__(self, cache: Path, facts: Mapping[str, Any]) -> None:
        self.cache, self.facts = cache, dict(facts)
        name = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = cache / FEATURES / name

    def complete(self, keys: Sequence[str], compute: Compute, pause: Callable[[], None] = lambda: None) -> Floats:
        """The features (N, D) of the samples called `keys`, in their order; only unknown ones are computed.

        compute: yields the features (n, D) of the samples at these positions in `keys`, in batches, in their order.
        pause: called between two batches, and while another process computes features of this set; may raise. What
        was computed until then is kept. Raises what `compute` raises, and OSError where the disk is full.
        """
        known = self.read()
        if not known.keys() >= set(keys):
            with self._turn(pause):
                known = self.read(remove_damaged=True)
                places = {key: place for place, key in enumerate(keys) if key not in known}
                if places:
                    known |= self._compute(places, compute, pause)
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile, to make room
            os.utime(self.folder)
        return np.stack([known[key] for key in keys])

    def read(self, *, remove_damaged: bool = False) -> dict[str, Floats]:
        """All features of the set that are known, by key."""
        known: dict[str, Floats] = {}
        for part in sorted(self.folder.glob("*.parquet")):
            frame = load_cache(part, SCHEMA)
            if frame.is_empty() and remove_damaged:
                part.unlink(missing_ok=True)
            known |= {key: np.frombuffer(feature, "<f4") for key, feature in frame.iter_rows()}
        return known

    def _compute(self, places: Mapping[str, int], compute: Compute, pause: Callable[[], None]) -> dict[str, Floats]:
        """Compute features and keep them, part by part; also those that are done when something is raised."""
        done: dict[str, Floats] = {}
        kept, since, names = 0, time.monotonic(), iter(places)
        try:
            for batch in compute(list(places.values())):
                done |= {next(names): np.asarray(feature, "<f4") for feature in batch}
                if time.monotonic() - since >= KEEP_SECONDS:
                    self._save(dict(list(done.items())[kept:]))
                    kept, since = len(done), time.monotonic()
                pause()
        finally:
            if len(done) > kept:
                self._save(dict(list(done.items())[kept:]))
        return done

    def _save(self, features: Mapping[str, Floats]) -> None:
        """Write one more part. Only the holder of the lock may."""
        make_room(self.cache, sum(feature.nbytes for feature in features.values()), "the images' features take")
        if not (about := self.folder / "about.json").exists():
            write_whole(about, json.dumps(self.facts, indent=1).encode())
        columns = {"key": list(features), "feature": [feature.tobytes() for feature in features.values()]}
        last = max((int(part.stem) for part in self.folder.glob("*.parquet")), default=0)
        save_frame(pl.DataFrame(columns, schema=SCHEMA), self.folder / f"{last + 1:06}.parquet")

    @contextlib.contextmanager
    def _turn(self, pause: Callable[[], None]) -> Iterator[None]:
        """Be the only process that computes features of this set."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock_of(self.folder).open("ab") as held:
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                pause()
                time.sleep(LOOK_SECONDS)
            self.folder.mkdir(parents=True, exist_ok=True)  # another process may have removed it, to make room
            yield
