"""What a training takes of its device's memory, computed before it starts."""

from components.domain.strict import Strict
from components.records.fields import Count


class Memory(Strict):
    """Bytes.

    weights: what is frozen, in the number format of the computation. learned: what learns, with AdamW's moments and the
    best epoch's copy. kept: for the backward pass, of one part of a step. step: the most that is alive while a part is
    computed, of which `kept` is most. update: gradients and what the optimizer adds. validation: the most that is alive
    while a batch is answered. pixels: batches in the loader, in the machine's memory. loading: the most that the
    machine holds before the first step.
    """

    weights: Count
    learned: Count
    kept: Count
    step: Count
    update: Count
    validation: Count
    pixels: Count
    loading: Count

    @property
    def device(self) -> int:
        """The most on the device that computes, a GPU for instance."""
        return self.weights + self.learned + max(self.step, self.update, self.validation)

    @property
    def machine(self) -> int:
        """The most where the machine itself computes."""
        return max(self.loading, self.device + self.pixels)
