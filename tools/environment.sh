# Sourced by demo.sh, test.sh and lowest.sh, in the repository's root.
#
# make_environment DIRECTORY EXTRA: sees to it that DIRECTORY is a virtual environment holding this checkout (editable) and
# what EXTRA asks for. Does nothing when that is so already. PYTHON names the interpreter to make it with,
# NEUROFMX_CONSTRAINTS a file to use instead of constraints.txt: with torch==2.4.0 in it, that torch is tested.
constraints=(-c "${NEUROFMX_CONSTRAINTS:-tools/constraints.txt}") # what pip may install

make_environment() {
    local directory=$1 extra=$2
    local stamp="$directory/.neurofmx-$extra" python=${PYTHON:-python3} wanted
    wanted="$PWD $(cat pyproject.toml tools/*.txt ${NEUROFMX_CONSTRAINTS:+"$NEUROFMX_CONSTRAINTS"} | cksum)"
    if [[ -x $directory/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return
    fi

    if [[ ! -x $directory/bin/python ]]; then
        command -v "$python" >/dev/null || fail "no interpreter '$python'; set PYTHON to a Python of version 3.10 or newer"
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
            fail "$("$python" --version) is too old: set PYTHON to a Python of version 3.10 or newer"
        if [[ -e $directory && ! -f $directory/pyvenv.cfg && -n $(ls -A "$directory") ]]; then
            fail "'$directory' is there and is no virtual environment; set NEUROFMX_VENV to another place"
        fi
        echo "Making $directory with $("$python" --version) (once)" >&2
        "$python" -m venv --clear "$directory" ||
            fail "'$python -m venv' failed: on Debian and Ubuntu it needs the package python3-venv"
    fi
    echo "Installing neurofmx-wds[$extra] in $directory (minutes, once)" >&2
    # torch first and pinned: left to the resolver it may bring a build of several gigabytes.
    pip_install "$directory" torch
    pip_install "$directory" -e ".[$extra]"
    echo "$wanted" >"$stamp"
}

pip_install() {
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check "${constraints[@]}" "${@:2}" ||
        fail "pip could not install ${*:2}; see its message above"
}

fail() {
    echo "error: $*" >&2
    exit 1
}
