"""Numbers that every form of a pruning op takes for equal, for nothing, and for out of range (docs/ops.md, "Ties").

The references compute in float64, graphs and kernels in float32: where a choice would be left to the difference, these
numbers decide, and all forms decide alike.
"""

from __future__ import annotations

STEP = 2.0**-20  # cosines, and loadings that decide a group, are told apart from here on
SHIFT = 12.0  # float32 numbers from 8 to 16 are multiples of STEP: adding this to a cosine rounds it
LEVERAGE = 2.0**-19  # the same for leverages times the rank
ALIKE = 2.0**-19  # a cosine has to exceed a threshold by this
PARALLEL = 1 - 2.0**-16  # a cosine above this is 1
SHARE = 1e-6  # a summed share that falls short of a threshold by less has reached it
ROUNDING = 2.0**-36  # float64 numbers that decide an order are told apart from here on
# Directions with a smaller eigenvalue, relative to the largest, are none: what float32 leaves of a lower rank, with
# room above it. Where a direction's own entries decide, they have to be exact, so there is more room.
WEAKEST, WEAKEST_GROUP = 1e-5, 1e-4
CENTRED = 1e-9  # nor are directions with less than this share of the energy from before a centring
SHORTEST, LONGEST = 2.0**-60, 2.0**120  # squares of the longest row that float32 works with as they are
