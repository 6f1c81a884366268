"""Make a group of labels a dataset of its own, which links to the shards of another dataset and copies no data.

Knows manifests, shards and labels; knows nothing of what is in a recording.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GroupError, OutputError
from ..format.groups import Group, Groups, linked_group
from ..format.index import index_path
from ..format.manifest import Manifest
from ..format.shards import open_shards
from ..loading.selection import group_samples
from ..storage.atomic import refuse_url
from .joining import manifest_of
from .merge import atomic_dataset
from .place import refuse_inside


def link_group(
    dataset_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    group: str,
    groups: Groups | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make a dataset of a group of labels, without copying data.

    It holds links to those shards in which the group has samples, under their own names and with their own indexes,
    and a manifest that names the group. Loaders read it like the original dataset with ``group=``: they deliver the
    samples of the group only, with labels 0 … n−1. A link leads to a whole shard: the official webdataset library reads
    all of its samples.

    The links are hard links, so the group outlives the original dataset. Where these are impossible, such as between
    file systems, they are symbolic links; then the original dataset must stay in its place.

    Args:
        dataset_dir: the dataset's directory.
        output_dir: the new dataset's directory; new or empty unless `overwrite` is set.
        group: the group's name.
        groups: the definitions of groups, see :meth:`~neurofmx_wds.format.groups.Group.of`; by default the file
            ``groups.yaml`` or ``groups.json`` of the dataset.
        overwrite: replace an existing dataset, in one step.

    Returns:
        The new manifest. Its ``config["group"]`` has the group's name, its labels, and the number of their samples.

    Raises:
        GroupError: there is no such group, the dataset does not have its labels, or is a group itself.
        FileNotFoundError, ShardError, ManifestError: the dataset cannot be opened.
        OutputError: the output is not empty, or cannot be written.
    """
    refuse_url(output_dir)
    directory = Path(dataset_dir)
    shards = open_shards(directory, shard_pattern="*.tar*")
    if linked_group(shards.manifest) is not None:
        remedy = "link the group from the original dataset"
        raise GroupError("the dataset is itself a group of another dataset", file=directory, remedy=remedy)
    refuse_inside([directory], output_dir)
    wanted = Group.of(group, groups, directory)
    ids, _ = group_samples(shards, wanted)
    counts = np.histogram(ids, np.concatenate([[0], np.cumsum(shards.counts)]))[0]
    whole = manifest_of(directory, shards)
    here = np.flatnonzero(counts).tolist()
    about = {**asdict(wanted), "n_samples": len(ids), "of": os.path.realpath(directory)}
    made = replace(whole, shards=[shards.records[i] for i in here], config={**whole.config, "group": about})
    with atomic_dataset(output_dir, overwrite) as staged:
        for i in here:
            place = staged.path / shards.paths[i].name
            _link(shards.paths[i], place)
            shards.index(i).save(index_path(place))
        made.save(staged.path)
        return Manifest.load(staged.path).summary()


def _link(shard: Path, place: Path) -> None:
    original = os.path.realpath(shard)
    try:
        try:
            os.link(original, place)
        except OSError as error:  # another file system, another user's file, too many links: the error number varies
            logging.getLogger("neurofmx_wds").info(
                "%s: made a symbolic link, as a hard link is impossible: %s", place.name, error.strerror
            )
            os.symlink(original, place)
    except OSError as error:
        problem = f"cannot link {original}: {error.strerror}"
        raise OutputError(problem, file=place, remedy="free disk space, or choose another output directory") from error
