"""Knowledge distillation for image super-resolution: the names that most people need, each loaded when first used.

Written by hand; nbdev only keeps the version. `import fakd` itself loads neither PyTorch nor matplotlib.
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {  # name -> the module that defines it
    "distill": "runs",
    "train_teacher": "runs",
    "evaluate_weights": "study.evaluation",
    "explore": "look.explorer",
    "explore_run": "look.explorer",
    "load_any": "nets.foreign",
    "upscale": "measure.upscale",
    "spatial_affinity": "distil.affinity",
    "affinity_l1": "distil.affinity",
    "DistillLoss": "distil.loss",
    "Taps": "distil.taps",
}
__all__ = list(_HOMES)

if TYPE_CHECKING:  # the same for editors and type checkers, which do not run what follows
    from .distil.affinity import affinity_l1 as affinity_l1
    from .distil.affinity import spatial_affinity as spatial_affinity
    from .distil.loss import DistillLoss as DistillLoss
    from .distil.taps import Taps as Taps
    from .look.explorer import explore as explore
    from .look.explorer import explore_run as explore_run
    from .measure.upscale import upscale as upscale
    from .nets.foreign import load_any as load_any
    from .runs import distill as distill
    from .runs import train_teacher as train_teacher
    from .study.evaluation import evaluate_weights as evaluate_weights
else:

    def __getattr__(name: str) -> object:
        "A name of `__all__`, imported now (PEP 562)."
        if name not in _HOMES:
            raise AttributeError(f"module 'fakd' has no attribute {name!r}; it has {', '.join(_HOMES)}")
        globals()[name] = value = getattr(import_module(f"fakd.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    "What completion shows before anything is loaded."
    return sorted({*globals(), *__all__})
