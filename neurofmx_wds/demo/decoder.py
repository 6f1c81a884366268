"""The demo's model: a small recurrent network that reads where the animal is from what its cells fire.

Knows torch; it must know nothing of files or loaders.
"""

from __future__ import annotations

from torch import Tensor, nn


class Decoder(nn.Module):
    """Spike counts of a window → position in each of its bins.

    Args:
        units: number of units.
        hidden: size of the recurrent state, per direction.
    """

    def __init__(self, units: int, hidden: int = 48) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(units, hidden), nn.ReLU())
        self.remember = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.place = nn.Linear(2 * hidden, 2)

    def forward(self, spikes: Tensor) -> Tensor:
        """Decodes windows.

        Args:
            spikes: (B, L, units) float32 counts.

        Returns:
            (B, L, 2) float32, metres.
        """
        memory, _ = self.remember(self.encode(spikes.sqrt()))  # the square root evens out Poisson variance
        place: Tensor = self.place(memory)
        return place


def squared_error(decoded: Tensor, position: Tensor, known: Tensor) -> Tensor:
    """Mean squared error, square metres, over the values that are there.

    Args:
        decoded: (B, L, 2) float32, metres.
        position: (B, L, 2) float32, metres; NaN where unknown.
        known: (B, L, 2) bool, false where `position` is not to be used.
    """
    return (decoded - position)[known].square().mean()
