#!/usr/bin/env bash
# Makes the pages of the API reference, from the docstrings. A warning of pdoc is an error. Argument: where to (docs_html).
#   NEUROFMX_VENV  where the environment is (.venv-docs)      PYTHON  what to make it with (python3)
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

venv=${NEUROFMX_VENV:-$PWD/.venv-docs}
[[ $venv == /* ]] || venv=$here/$venv
output=${1:-docs_html}
[[ $output == /* ]] || output=$here/$output
make_environment "$venv" docs
exec "$venv/bin/python" tools/docs.py "$output"
