#!/usr/bin/env bash
# Shows the whole road, from a recording to a resumed training run. Arguments go to `python -m neurofmx_wds demo`.
#   NEUROFMX_VENV  where the environment is (.venv)      PYTHON  what to make it with (python3)
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

venv=${NEUROFMX_VENV:-$PWD/.venv}
[[ $venv == /* ]] || venv=$here/$venv
make_environment "$venv" plot
cd "$here" # a relative --output is meant from where the user stands
exec "$venv/bin/python" -m neurofmx_wds demo "$@"
