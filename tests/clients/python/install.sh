#!/usr/bin/env bash
# install.sh DIR: the client libraries that reader.py drives, in DIR (one of its own: not that of the install.sh above).
#
#   DIR/venv                 requirements.txt
#   DIR/venv-fastapi-cache   requirements-fastapi-cache.txt
#
# A client NAME is run with DIR/venv-NAME if that is there, otherwise with DIR/venv. Prints `library version` for each,
# read from what is installed. Needs python3 with venv (PYTHON names another interpreter) and flock. A second run only
# prints; any change of the inputs or of the interpreter starts over. Parallel runs wait for each other.
set -euo pipefail

if [ $# -ne 1 ] || [ -z "$1" ]; then
    echo "usage: install.sh DIR" >&2
    exit 2
fi
python=${PYTHON:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)

exec 9>"$dir/.lock"
flock 9

# install VENV REQUIREMENTS LIBRARY...
install() {
    local venv=$dir/$1 requirements=$here/$2 want
    shift 2
    # The interpreter and the directory are part of the stamp: a venv holds absolute paths of both.
    want=$({ cat "$requirements"; echo "$venv"
             "$python" -c 'import sys; print(sys.version, sys.base_prefix)'; } | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$venv/.stamp" 2>/dev/null)" != "$want" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        rm -rf "$venv"
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip --disable-pip-version-check --quiet install \
            --no-deps --only-binary :all: --require-hashes -r "$requirements"
        echo "$want" >"$venv/.stamp"
    fi
    "$venv/bin/python" -c 'import sys; from importlib.metadata import version
for name in sys.argv[1:]:
    print(name, version(name))' "$@"
}

install venv requirements.txt cashews redis-tagged-cache django-cacheops django-cachalot
install venv-fastapi-cache requirements-fastapi-cache.txt fastapi-cache2
