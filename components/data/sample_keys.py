"""Keys of samples: the content of a picture or of a crop, whatever its path, by which results are cached."""

import polars as pl

from components.data.sources.images import Box


def content_of(identity: str) -> str:
    """The sha256 of the file, from a row's id."""
    return identity.partition("#")[0]


def sample_key(content: str, crop: Box | None) -> str:
    """The key of a picture or crop. It depends on the content and the box, not on the path or on other crops."""
    return content if crop is None else f"{content}:{','.join(map(str, crop))}"


def name_samples(rows: pl.DataFrame) -> list[str]:
    """The key of every row."""
    pairs = rows.select("id", "crop").iter_rows()
    return [sample_key(content_of(identity), tuple(crop) if crop else None) for identity, crop in pairs]
