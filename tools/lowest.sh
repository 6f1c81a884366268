#!/usr/bin/env bash
# Runs the core tests with the lowest versions of the dependencies that pyproject.toml allows (lowest.txt), in an
# environment that it makes when there is none. Arguments go to pytest.
#   NEUROFMX_LOWEST_VENV  where the environment is (.venv-lowest)      PYTHON  what to make it with (python3)
# numpy 1.26 runs on Python up to 3.12.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

venv=${NEUROFMX_LOWEST_VENV:-$PWD/.venv-lowest}
constraints+=(-c tools/lowest.txt)
make_environment "$venv" core-test
"$venv/bin/python" -m pip list --disable-pip-version-check 2>/dev/null |
    grep -iE '^(h5py|hdmf|isal|numpy|pynwb|torch|tqdm|webdataset) ' >&2 || true
exec "$venv/bin/python" -m pytest -p no:cacheprovider -k "not killed and not executor and not worker" \
    tests/test_{fields,pickles,index,writer,shards,readers,collate,order,convert,verify}.py tests/test_nwb_*.py "$@"
