"""Every error names the file, the sample and the remedy, and crosses to another process whole."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from neurofmx_wds import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.NeurofmxError) and kind is not errors.NeurofmxError
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_message_says_where_what_and_what_to_do(kind: type[errors.NeurofmxError]) -> None:
    error = kind("is wrong", file=Path("/a/b.tar"), sample="k1", member="spikes", remedy="mend it")
    assert str(error) == "/a/b.tar, sample 'k1', field 'spikes': is wrong (mend it)"
    assert str(kind("is wrong")) == "is wrong"


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling(kind: type[errors.NeurofmxError]) -> None:
    error = pickle.loads(pickle.dumps(kind("is wrong", file="b.tar", sample="k1", member="x", remedy="mend it")))
    assert type(error) is kind
    assert (error.problem, error.file, error.sample, error.member, error.remedy) == (
        "is wrong",
        "b.tar",
        "k1",
        "x",
        "mend it",
    )


def test_errors_are_also_what_python_programs_catch() -> None:
    assert issubclass(errors.FieldError, ValueError)
    assert issubclass(errors.OutputError, OSError)
    assert issubclass(errors.UnsafeDataError, errors.ShardError)
    assert issubclass(errors.ShardIndexError, errors.ShardError)
    assert issubclass(errors.ManifestError, errors.ShardError)
    assert all(issubclass(kind, (ValueError, OSError)) for kind in KINDS)
