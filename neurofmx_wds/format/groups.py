"""Groups of labels: a name for a few of a dataset's classes, which then count from 0.

Knows how they are defined; knows nothing of shards or samples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GroupError, join_some
from .manifest import Manifest
from .plain_files import read_plain

GROUP_FILES = ("groups.yaml", "groups.yml", "groups.json")
_SECTION = "data_groups"  # of a larger configuration file, DynVision's for one
_FORM = "it must be {dataset: {group: [labels]}} or {group: [labels]}"
_QUOTES = "in YAML a name such as no, 1e3 or 2024-01-01 needs quotation marks"
_MAX_BYTES = 1 << 24

Groups = Mapping[str, Any] | str | os.PathLike[str]


@dataclass(frozen=True)
class Group:
    """A few labels of a dataset, in an order of their own.

    Attributes:
        name: what people call it.
        labels: the labels that belong to it, by number (a sample's ``label``) or by name (its ``label_name``). The
            i-th of them is delivered as i.

    Raises:
        GroupError: no labels, one of them twice, or something that is neither a number nor a name.
    """

    name: str
    labels: tuple[int | str, ...]

    def __post_init__(self) -> None:
        for label in self.labels:
            if isinstance(label, bool) or not isinstance(label, (int, str)):
                remedy = f"give numbers or names; {_QUOTES}"
                raise GroupError(f"the group {self.name!r} has {label!r} among its labels", remedy=remedy)
        repeated = [label for i, label in enumerate(self.labels) if label in self.labels[:i]]
        if repeated or not self.labels:
            problem = f"has the label {repeated[0]!r} twice" if repeated else "has no labels"
            raise GroupError(f"the group {self.name!r} {problem}")

    @classmethod
    def of(cls, name: str, groups: Groups | None, directory: Path) -> Group:
        """Look a group up.

        Args:
            name: its name, or ``"dataset/name"``.
            groups: ``{dataset: {group: [labels]}}`` or ``{group: [labels]}``, as a dictionary or in a YAML or JSON
                file (also under the key ``data_groups``); by default in the file ``groups.yaml`` or ``groups.json``
                of `directory`. The dataset is that after which `directory` or one of its parents is named, else the
                only one that has the group.
            directory: where the dataset lies.

        Raises:
            GroupError: there is no such group, or more than one; or the definition is not of this form.
            FileNotFoundError: there is no such file.
        """
        if isinstance(groups, Mapping):
            return cls(name, _labels_in(groups, name, directory))
        file = _file_in(directory) if groups is None else Path(groups)
        try:
            return cls(name, _labels_in(read_plain(file, _MAX_BYTES, GroupError), name, directory))
        except GroupError as error:
            raise GroupError(error.problem, file=file, remedy=error.remedy) from error.__cause__


def _file_in(directory: Path) -> Path:
    for name in GROUP_FILES:
        if (directory / name).is_file():
            return directory / name
    remedy = f"give groups=, or put them into {GROUP_FILES[0]} or {GROUP_FILES[-1]} there"
    raise GroupError("the dataset defines no groups", file=directory, remedy=remedy)


def _labels_in(definition: Any, name: str, directory: Path) -> tuple[int | str, ...]:
    found = _datasets_in(definition)
    dataset, _, group = name.rpartition("/")
    here = next((part for part in reversed(directory.absolute().parts) if part in found), None)
    if dataset in found:
        fitting = [dataset]
    else:
        fitting, group = [here] if here is not None else [*found], name
    fitting = [each for each in fitting if group in found[each]]
    if len(fitting) > 1:
        remedy = f'choose one by group="{fitting[0]}/{name}", or name the directory after the dataset'
        raise GroupError(f"the group {name!r} is defined for several datasets: {join_some(fitting)}", remedy=remedy)
    if not fitting:
        several = [f"{each}/{one}" if each else one for each, groups in found.items() for one in groups]
        raise GroupError(f"there is no group {name!r}; there are {join_some(several)}")
    labels = found[fitting[0]][group]
    if not isinstance(labels, (list, tuple)):
        raise GroupError(f"the group {name!r} is {labels!r}, not a list of labels: {_FORM}")
    return tuple(labels)


def _datasets_in(definition: Any) -> dict[str, dict[str, Any]]:
    """Dataset → group → labels; a definition without datasets is that of one without a name."""
    if isinstance(definition, Mapping) and isinstance(definition.get(_SECTION), Mapping):
        definition = definition[_SECTION]
    if not isinstance(definition, Mapping):
        raise GroupError(f"no definition of groups: {_FORM}")
    named = _named(definition)
    nested = [name for name, value in named.items() if isinstance(value, Mapping)]
    if not nested:
        return {"": named}
    if len(nested) < len(named):
        plain = next(name for name in named if name not in nested)
        raise GroupError(f"{plain!r} is no dataset with groups, but {nested[0]!r} is: {_FORM}")
    return {name: _named(groups) for name, groups in named.items()}


def _named(items: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a mapping with names as keys; YAML takes a name such as 38 for a number."""
    for name in items:
        if isinstance(name, bool) or not isinstance(name, (int, str)):
            raise GroupError(f"{name!r} is no name; {_QUOTES}")
    return {str(name): value for name, value in items.items()}


def linked_group(manifest: Manifest | None) -> Group | None:
    """Return the group that a dataset made by link_group consists of; None for any other dataset.

    Raises:
        GroupError: the entry in the manifest is damaged.
    """
    about = manifest.config.get("group") if manifest else None
    if about is None:
        return None
    try:
        if isinstance(about["n_samples"], int) and isinstance(about["of"], str):
            return Group(str(about["name"]), tuple(about["labels"]))
    except (TypeError, KeyError, GroupError):
        pass
    raise GroupError("the manifest's group is damaged", remedy="make the dataset again")
