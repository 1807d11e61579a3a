"""From settings to trained networks: `fakd.train.distill` is `fakd.distill`, loaded when first used."""

from typing import TYPE_CHECKING

import fakd

__all__ = ["distill", "train_teacher"]

if TYPE_CHECKING:
    from fakd import distill as distill
    from fakd import train_teacher as train_teacher
else:

    def __getattr__(name: str) -> object:
        "The two calls that do a whole run; they lie above this wing, in `fakd.runs`."
        if name not in __all__:
            raise AttributeError(f"module 'fakd.train' has no attribute {name!r}")
        return getattr(fakd, name)
