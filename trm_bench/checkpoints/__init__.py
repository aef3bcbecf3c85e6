"""Checkpoints from elsewhere as source networks: read without running any code of theirs, fitted
into a network under account.
"""

from trm_bench.checkpoints.fitting import Account, fit
from trm_bench.checkpoints.foreign import Foreign, read

__all__ = ["Account", "Foreign", "fit", "read"]
