"""What a conversion can be told: stated once, refused when it cannot be, and the same on the disk as it always was."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from neurofmx_wds import NWBToWebDatasetConverter
from neurofmx_wds.cli.options import convert_options, option_table
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output, ShardConfig, Split, Task, Workers
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.convert.options import options_of
from neurofmx_wds.convert.plan import ConversionPlan
from neurofmx_wds.convert.repair import repair
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import FilesConfig, SourceConfig, WindowConfig
from neurofmx_wds.convert.sources.config import MoreOptions, SourceOptions
from neurofmx_wds.format.manifest import config_hash

# Settings, and the hash that manifests made before settings were values of several classes have of them.
HASHES: list[tuple[dict[str, Any], str]] = [
    ({}, "ee7ee37e94f708faf278b224ea543c3cacfe2a93f22fdca5c03eec7d9b863bbe"),
    (
        {
            "modalities": ("spikes", "behavior"), "bin_size_ms": "100/3", "sequence_length": 50, "overlap": 0.25,
            "intervals": ((0, 1), (2.5, 9)), "origin_ns": 5, "spike_format": "both", "spike_dtype": "uint8",
            "time_scale": "1/30000", "behavior_method": "linear", "lfp_method": "native", "max_gap_s": 1.5,
            "decode_video": True,
        },
        "25afeff2c4918fa79441e18fab84028e1e5d8b0ef7e0f0e88f749cf9bd995575",
    ),
    (
        {"align": "trials", "event": "cue_time", "before_s": 0.5, "after_s": "3/2", "bin_size_ms": 20},
        "42fce62c3ec586c41e3dfff8d1925ced637f5436a4eab6cd3c7a813186f7f748",
    ),
    ({"format": "npz", "timestamps": "t"}, "12d686a5b091dc792849c50976d9cc3afc28508c07c48323b3ff91b75be1cac2"),
    (
        {"format": "files", "modalities": ("jpg", "txt"), "allow_missing": True},
        "b960da89146a1d781ff1e139850ab309789d5848562f1b5df12462859533a555",
    ),
    (
        {"format": "imagefolder", "keep_encoded": True, "allow_missing": True},
        "c27db45726cdba67b42463de03b1a7405beae87df9efb3808b2267b26a797fa6",
    ),
    ({"format": "cifar10", "subset": "test"}, "8151560495d01fa6c1e09ebd8f7f70a619e3fc98ca3e2007a206d3740a7b2ae5"),
]  # fmt: skip

# dataset_metadata.json of `np.arange(60.).reshape(10, 6)` in x.npy, made then.
MADE_BEFORE = "19c1f2aff80f7e402a4193aa7ec10d012f6bb1d183b595caed2ee981d3bb8c75"
SETTINGS = SourceConfig.of(field="lfp")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("settings", "known"), HASHES)
def test_the_manifest_states_settings_as_it_always_did(settings: dict[str, Any], known: str) -> None:
    storage = ShardConfig(shard_size=7, compression="gz")
    config = SourceConfig.of(**settings)
    assert config_hash(ConversionPlan((), config, storage).to_json()) == known
    assert SourceConfig.of(**json.loads(json.dumps(config.to_json()))) == config


def test_a_dataset_made_before_is_made_again_appended_to_repaired_and_merged(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(60.0).reshape(10, 6))
    np.save(tmp_path / "y.npy", np.arange(30.0).reshape(5, 6))
    out = Output(tmp_path / "out", shard_size=4)
    convert([tmp_path / "x.npy"], out, SETTINGS)
    manifest = json.loads((tmp_path / "out" / "dataset_metadata.json").read_bytes())
    assert [list(source.pop("statistics")) for source in manifest["sources"]] == [["lfp"]]  # which it did not have
    (tmp_path / "before.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    assert sha256(tmp_path / "before.json") == MADE_BEFORE
    del manifest["config"]["decode_video"], manifest["config_hash"]  # as before there was such a setting
    (tmp_path / "out" / "dataset_metadata.json").write_text(json.dumps(manifest))
    (tmp_path / "out" / "shard_000001.tar").unlink()
    assert repair([tmp_path / "x.npy"], out, SETTINGS) == ["shard_000001.tar"]
    assert append([tmp_path / "x.npy", tmp_path / "y.npy"], out, SETTINGS).summary["total_samples"] == 15
    convert([tmp_path / "y.npy"], Output(tmp_path / "other", key_prefix="y_"), SETTINGS)
    assert merge([tmp_path / "out", tmp_path / "other"], tmp_path / "both")["total_samples"] == 20


def test_each_option_is_stated_once_and_has_its_own_name() -> None:
    names = [each.name for _, each in convert_options()]
    flags = [each.typed for _, each in convert_options()]
    assert len(set(names)) == len(names) > 30 and len(set(flags)) == len(flags)
    for _, each in convert_options():
        assert each.help.endswith(".") and (each.parse is bool) == isinstance(each.default, bool), each.name
        assert each.metavar or each.choices or each.parse is bool, each.name


def test_readme_has_the_table_of_options() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    [table] = re.findall(r"^\| `convert` option \|.*\n(?:\|.*\n)+", readme, re.M)
    assert table.strip() == option_table()


def test_the_class_and_the_type_checkers_know_the_same_options() -> None:
    stated = {each.name for each in SourceConfig.options()}
    assert set(get_type_hints(SourceOptions)) == stated
    parameters = inspect.signature(NWBToWebDatasetConverter).parameters
    every = stated | {each.name for config in (Output, Workers) for each in options_of(config)}
    assert every <= {*parameters, *get_type_hints(MoreOptions)}
    document = inspect.getdoc(NWBToWebDatasetConverter) or ""  # Python 3.13 strips the indentation of docstrings
    for config in (SourceConfig, WindowConfig, FilesConfig, Output, Workers):
        for each in options_of(config):
            assert f"\n    {each.name}: " in document
            if each.name in parameters:
                assert parameters[each.name].default == each.default


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"allow_missing": True}, "allow_missing=True: concerns only files and imagefolder"),
        ({"format": "files", "bin_size_ms": 20}, "bin_size_ms=20: concerns only nwb and arrays along time"),
        ({"format": "npz", "overlap": 0.0}, "overlap=0.0: concerns only nwb and arrays along time"),
        ({"format": "npz", "rate": 10.0, "spike_dtype": "uint8"}, "spike_dtype='uint8': concerns only nwb"),
        ({"format": "mnist", "keep_encoded": True}, "keep_encoded=True: concerns only imagefolder"),
    ],
)
def test_what_no_input_heeds_is_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        SourceConfig.of(**wrong)


def test_wrong_values_are_refused_when_they_are_made() -> None:
    for make, name in (
        (lambda: Workers(0), "workers=0"),
        (lambda: Workers(True), "workers=True"),
        (lambda: Task(2, 2), "task=2"),
        (lambda: Task(-1, 2), "task=-1"),
        (lambda: Task(0, 0), "tasks=0"),
        (lambda: Split({"a": 0.5, "b": 0.5}, "day"), "by='day'"),  # type: ignore[arg-type]
        (lambda: Split({"a": 0.5, "b": 0.6}), "shares="),
        (lambda: Output("x", key_prefix="a.b"), "key_prefix='a.b'"),
        (lambda: Output("x", shard_size=True), "shard_size"),
        (lambda: SourceConfig(windows=WindowConfig(modalities=("lfp",))), "modalities"),
    ):
        with pytest.raises(ValueError, match=f"^{name}"):
            make()
    with pytest.raises(TypeError, match="SourceConfig takes no argument bin_ms; did you mean bin_size_ms?"):
        SourceConfig.of(bin_ms=20)  # type: ignore[call-arg]
