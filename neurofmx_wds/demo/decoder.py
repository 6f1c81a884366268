"""The demo's model: a small recurrent network that decodes the position of the animal from spike counts.

Knows torch; it must know nothing of files or loaders.
"""

from __future__ import annotations

from torch import Tensor, nn


class Decoder(nn.Module):
    """Decode the position in each bin of a window from its spike counts.

    Args:
        units: number of units.
        hidden: size of the recurrent state in each direction.
    """

    def __init__(self, units: int, hidden: int = 48) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(units, hidden), nn.ReLU())
        self.remember = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.place = nn.Linear(2 * hidden, 2)

    def forward(self, spikes: Tensor) -> Tensor:
        """Decode windows.

        Args:
            spikes: (B, L, units) float32 counts.

        Returns:
            (B, L, 2) float32, metres.
        """
        memory, _ = self.remember(
            self.encode(spikes.sqrt())
        )  # the square root stabilises the variance of Poisson counts
        place: Tensor = self.place(memory)
        return place


def squared_error(decoded: Tensor, position: Tensor, known: Tensor) -> Tensor:
    """Return the mean squared error over the known values, in square metres.

    Args:
        decoded: (B, L, 2) float32, metres.
        position: (B, L, 2) float32, metres; NaN where unknown.
        known: (B, L, 2) bool, False where `position` must be ignored.
    """
    return (decoded - position)[known].square().mean()
