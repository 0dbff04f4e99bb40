"""Executable replications of four theory papers on deep residual networks as ODEs.

The names in ``__all__`` are the public interface; docs/python.md shows them at work. Each is
imported when it is first used, so that ``import resnet_limits`` alone loads neither torch nor
pandas. The package's own modules import one another directly: digests of sources follow imports,
and would lose sight of what comes by way of this module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_limits.archive import archived_runs as archived_runs
    from resnet_limits.errors import UserError as UserError
    from resnet_limits.layout import Layout as Layout
    from resnet_limits.models.activations import LayerRule as LayerRule
    from resnet_limits.models.chains import chain as chain
    from resnet_limits.models.descent import train_chain as train_chain
    from resnet_limits.models.resnet import network as network
    from resnet_limits.models.rkhs import FeatureResNet as FeatureResNet
    from resnet_limits.models.smoothness import smoothness as smoothness
    from resnet_limits.models.two_layer_ode import TwoLayerODE as TwoLayerODE
    from resnet_limits.runs import collect as collect
    from resnet_limits.spec import load_study as load_study
    from resnet_limits.spec import study_names as study_names

_MODULES = {
    "FeatureResNet": "models.rkhs",
    "LayerRule": "models.activations",
    "Layout": "layout",
    "TwoLayerODE": "models.two_layer_ode",
    "UserError": "errors",
    "archived_runs": "archive",
    "chain": "models.chains",
    "collect": "runs",
    "load_study": "spec",
    "network": "models.resnet",
    "smoothness": "models.smoothness",
    "study_names": "spec",
    "train_chain": "models.descent",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
