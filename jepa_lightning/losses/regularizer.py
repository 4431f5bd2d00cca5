"""What keeps features from collapsing: subclass it to bring your own."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class Regularizer(nn.Module, ABC):
    """Looks at features of a batch and says how far they are from being spread out.

    A batch is that of all processes together: loss and gradients are those of one process on the concatenated batch,
    if gradients are averaged over processes, as DDP and FSDP do.
    """

    @abstractmethod
    def terms(self, z: Float[Tensor, "*sets samples dim"], step: int = 0) -> dict[str, tuple[float, Tensor]]:
        """``{name: (weight, scalar)}``: what a method adds to its loss, and logs.

        Args:
            z: Features of samples that do not depend on each other; sets (views, for example) are looked at one by one
                and averaged.
            step: What random numbers follow from: the same in all processes.
        """
