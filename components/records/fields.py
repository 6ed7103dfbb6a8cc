"""Types of fields that many records share, and an error as `--json` has it."""

from typing import Annotated

from pydantic import Field

from components.domain.strict import Strict
from components.errors import TesseraError

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[int, Field(ge=1)]  # of a registered version, or of a record of the ledger
Seconds = Annotated[float, Field(ge=0)]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.dir$")]  # of a folder in DVC: a data version
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, ends exclusive
Corners = tuple[float, float, float, float]  # the same of numbers that need not be whole


class ErrorRecord(Strict):
    """A TesseraError: what was expected of `what`, what was found, how to fix it, and all of it as one paragraph."""

    type: str
    what: str
    expected: str
    found: str
    hint: str
    message: str

    @classmethod
    def of(cls, error: TesseraError) -> "ErrorRecord":
        return cls(**error.to_dict())


class Refused(Strict):
    """What a command prints that ends with exit code 2."""

    error: ErrorRecord
