"""`python -m components.models features DOMAIN`: the one data stage that needs a network, as dvc.yaml calls it."""

import sys
from collections.abc import Sequence

from components.data.__main__ import run_stages
from components.models.features import run_features


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stage named; returns the exit code."""
    return run_stages("python -m components.models", {"features": run_features}, arguments)


if __name__ == "__main__":
    sys.exit(main())
