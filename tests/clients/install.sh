#!/usr/bin/env bash
# install.sh DIR: everything that reader.py needs, fetched into DIR.
#
#   DIR/venv                          Django, django-redis, redis, psycopg (requirements.txt)
#   DIR/cache-tagging-0.7.3           the two client libraries (sdists.txt), unpacked:
#   DIR/cache-dependencies-0.7.7.48   reader.py puts one of them on its path
#
# Needs python3 with venv (PYTHON names another interpreter), tar, sed and flock. A second run does nothing; any change
# of the inputs or of the interpreter starts over. Parallel runs wait for each other.
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

# The interpreter and the directory are part of the stamp: a venv holds absolute paths of both.
want=$({ cat "$here/install.sh" "$here/requirements.txt" "$here/sdists.txt"; echo "$dir"
         "$python" -c 'import sys; print(sys.version, sys.base_prefix)'; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$dir/.stamp" 2>/dev/null)" = "$want" ] && "$dir/venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

rm -rf "$dir/.stamp" "$dir/venv" "$dir/cache-tagging-0.7.3" "$dir/cache-dependencies-0.7.7.48" "$dir"/sdists.*
"$python" -m venv "$dir/venv"
pip() { "$dir/venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install --no-deps --only-binary :all: --require-hashes -r "$here/requirements.txt"

# The setup.py of both libraries takes the project's name from the directory it is in. The new resolver of pip unpacks
# into a directory with a random suffix and then refuses them ("inconsistent name"); the old one names the directory
# after the project. Where to fetch from is pip's own configuration; the hash is checked before setup.py runs.
sdists=$(mktemp -d "$dir/sdists.XXXXXX")
trap 'rm -rf "$sdists"' EXIT
pip download --use-deprecated=legacy-resolver --no-build-isolation --no-deps --no-binary :all: --require-hashes \
    -r "$here/sdists.txt" -d "$sdists"
for name in cache-tagging-0.7.3 cache-dependencies-0.7.7.48; do
    tar -xzf "$sdists/$name.tar.gz" -C "$dir" --no-same-owner
done

# replace FILE LINE PART BY: in the one line that matches LINE (a whole line, basic regular expression).
replace() {
    if [ "$(grep -c "^$2\$" "$1")" != 1 ]; then
        echo "install.sh: not exactly one line '$2' in $1" >&2
        exit 1
    fi
    sed -i "/^$2\$/s/$3/$4/" "$1"
}

# cache-tagging 0.7.3 is from the days of Python 2; three lines keep it from running on Python 3. Nothing of what it
# stores changes. (Names that Django dropped since are given back by shims.py, for both libraries.)
lib=$dir/cache-tagging-0.7.3/cache_tagging
# 1. `except A, B:` is a syntax error in Python 3.
replace "$lib/django_cache_tagging/__init__.py" ' *except ImportError, AttributeError:' \
    'ImportError, AttributeError' '(ImportError, AttributeError)'
# 2. md5 takes bytes: the secret of its template tags, computed at import.
replace "$lib/django_cache_tagging/__init__.py" ' *.nocache_{0}.\.format(settings\.SECRET_KEY)' \
    '$' ".encode('utf-8')"
# 3. md5 takes bytes: the new version of a tag, computed in set() when the tag is absent.
replace "$lib/tagging.py" '    ))\.hexdigest()' ')\.hexdigest' ".encode('utf-8')).hexdigest"

echo "$want" >"$dir/.stamp"
