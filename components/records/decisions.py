"""A decision as an adapter keeps it."""

from pydantic import Field, FiniteFloat

from components.domain.settings import Decision


class PassRule(Decision):
    """An image is answered `label` where the calibrated probability of that class reaches the threshold, else the most
    probable other class.

    threshold: chosen on validation; above 1 where no probability keeps the limit `escape`, so that `label` is never
    answered.
    """

    label: str
    threshold: FiniteFloat = Field(gt=0)
