#!/usr/bin/env bash
# Run import-linter, ruff (rules and formatting), mypy and pytest, two files at a time, in an environment that is made
# when it does not exist. Arguments go to pytest (-n 0: one file at a time; -m slow: the long tests, with random examples).
#   NEUROFMX_VENV  where the environment is (.venv-test)      PYTHON  what to make it with (python3)
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

venv=${NEUROFMX_VENV:-$PWD/.venv-test}
[[ $venv == /* ]] || venv=$here/$venv
make_environment "$venv" test
imports=$("$venv/bin/python" -c "import importlinter.cli as cli; raise SystemExit(cli.lint_imports(no_cache=True))") ||
    { echo "$imports"; exit 1; }
"$venv/bin/python" -m ruff check --quiet .
"$venv/bin/python" -m ruff format --check --quiet .
"$venv/bin/python" -m mypy --no-error-summary
exec "$venv/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
