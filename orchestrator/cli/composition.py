"""The values that Hydra composes, as plain containers; what many compositions share is composed once.

Hydra takes 0.1 s to find and merge the files of a command, and a sweep composes one command a thousand times. Its
overrides are of two kinds: those that choose files, or concern Hydra itself, and those that set a value in what the
files hold. Hydra applies the former first, so their result is kept, and the latter are applied to a copy of it by
Hydra's own function.
"""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.cli.sweep import parsed

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

_HYDRA, _INTERPOLATION = "hydra", "${"


@dataclass(frozen=True)
class _Files:
    """What the chosen files of a command hold."""

    cfg: "DictConfig"
    values: dict[str, Any] | None
    """The same as plain containers; None if some of it is computed from other values."""


def composed(hydra: "Hydra", primary: str, overrides: Sequence[str]) -> Any:
    """Return the values of a primary configuration with overrides, as Hydra reads them."""
    read = [parsed(text) for text in overrides]
    values = {at: one for at, one in enumerate(read) if one is not None and _sets_a_value(hydra, one)}
    files = _files(hydra, primary, tuple(text for at, text in enumerate(overrides) if at not in values))
    texts = [overrides[at] for at in values]
    if files is None or any(map(_may_read_hydra, texts)):
        return composed_at_once(hydra, primary, overrides)
    if files.values is None or any(_INTERPOLATION in text for text in texts):
        return _with_values(copy.deepcopy(files.cfg), list(values.values()))
    return _with_few_copied(files.cfg, files.values, list(values.values()))


def composed_at_once(hydra: "Hydra", primary: str, overrides: Sequence[str]) -> Any:
    """Return the same, composed by Hydra alone."""
    from hydra.types import RunMode

    return plain(hydra.compose_config(primary, list(overrides), RunMode.RUN))


def plain(cfg: "DictConfig") -> Any:
    """Return composed values without Hydra's own."""
    from omegaconf import OmegaConf

    _take_hydra_out(cfg)
    return OmegaConf.to_container(cfg, resolve=True)


def _take_hydra_out(cfg: "DictConfig") -> None:
    """Remove Hydra's own values, and keep them where the interpolations `${hydra:…}` look for them."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    if _HYDRA in cfg:
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            cfg.pop(_HYDRA)


@functools.lru_cache(maxsize=256)  # a sweep of groups has one for each combination of their options
def _files(hydra: "Hydra", primary: str, overrides: tuple[str, ...]) -> _Files | None:
    """Return what the chosen files hold; None if that depends on Hydra's own values, which each override changes."""
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    cfg = hydra.compose_config(primary, list(overrides), RunMode.RUN)
    if OmegaConf.select(cfg, "hydra.searchpath"):  # then other groups are known than here
        return None
    _take_hydra_out(cfg)
    text = OmegaConf.to_yaml(cfg)
    if _may_read_hydra(text):
        return None
    values: Any = None if _INTERPOLATION in text else OmegaConf.to_container(cfg)
    return _Files(cfg, values)


def _may_read_hydra(text: str) -> bool:
    return _HYDRA in text.partition(_INTERPOLATION)[2]


def _with_values(cfg: "DictConfig", overrides: list[Any]) -> Any:
    """Set values in a configuration, in their order, as Hydra does, and return all of it."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import OmegaConf

    ConfigLoaderImpl._apply_overrides_to_config(overrides, cfg)
    return OmegaConf.to_container(cfg, resolve=True)


def _with_few_copied(cfg: "DictConfig", values: dict[str, Any], overrides: list[Any]) -> Any:
    """Return the same where no value depends on another: then only the groups that overrides name are computed anew."""
    from omegaconf import OmegaConf

    named = {one.key_or_group.partition(".")[0] for one in overrides}
    part = OmegaConf.masked_copy(cfg, [name for name in named if name in values])
    OmegaConf.set_struct(part, True)
    changed = _with_values(part, overrides)
    kept = {name: value for name, value in values.items() if name not in named or name in changed}
    return copy.deepcopy({**kept, **changed})


def _sets_a_value(hydra: "Hydra", override: Any) -> bool:
    """Return whether an override chooses no file, by the rule of Hydra's defaults list."""
    if override.is_hydra_override() or override.package is not None or override.is_sweep_override():
        return False
    return isinstance(override.value(), dict) or not _is_group(hydra, override.key_or_group)


@functools.lru_cache(maxsize=1024)
def _is_group(hydra: "Hydra", key: str) -> bool:
    return hydra.config_loader.repository.group_exists(key)  # type: ignore[attr-defined]
