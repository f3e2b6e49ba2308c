#!/usr/bin/env bash
# install.sh DIR: Node and the client libraries that reader.mjs drives (package.json), fetched into DIR.
#
#   DIR/node_modules/.bin/node        the Node to run reader.mjs with: some of the libraries need Node 22
#   DIR/node_modules/...              the libraries
#
# Prints "library version", a line each, as installed. Needs npm, node (18 or newer), sha256sum, tar and flock. A second
# run fetches nothing; any change of package.json or of this script starts over. Parallel runs wait for each other.
set -euo pipefail

if [ $# -ne 1 ] || [ -z "$1" ]; then
    echo "usage: install.sh DIR" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)

exec 9>"$dir/.lock"
flock 9

want=$(cat "$here/install.sh" "$here/package.json" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$dir/.stamp" 2>/dev/null)" != "$want" ] || ! "$dir/node_modules/.bin/node" -e '' 2>/dev/null; then
    rm -rf "$dir/.stamp" "$dir/node_modules"
    cp "$here/package.json" "$dir/package.json"
    # No peers: they contradict each other (Next.js 14 and 16, redis 4 and 6, the whole of Medusa), and all that the
    # clients load is in package.json. No optional packages: they are compilers and image libraries of Next.js.
    (cd "$dir" && npm install --no-package-lock --no-audit --no-fund --legacy-peer-deps --omit=optional \
        --engine-strict=false --loglevel=error >&2)
    case $("$dir/node_modules/.bin/node" --version) in
        v22.*) ;;
        *) echo "install.sh: $dir/node_modules/.bin/node is not Node 22" >&2; exit 1 ;;
    esac
    # Of Vendure only one class is driven, which needs nothing of its 40 dependencies (a whole server) but ioredis: the
    # package is unpacked, not installed.
    for name in $(sed -n '/"unpacked"/,/}/s/^ *"\(@[^"]*\)": "\(.*\)",*$/\1@\2/p' "$here/package.json"); do
        tarball=$(cd "$dir" && npm pack --loglevel=error "$name" | tail -n 1)
        mkdir -p "$dir/node_modules/${name%@*}"
        tar -xzf "$dir/$tarball" -C "$dir/node_modules/${name%@*}" --strip-components=1 --no-same-owner
        rm "$dir/$tarball"
    done
    echo "$want" >"$dir/.stamp"
fi

"$dir/node_modules/.bin/node" - "$dir" <<'EOF'
const { readFileSync } = require("node:fs");
const read = (path) => JSON.parse(readFileSync(`${process.argv[2]}/${path}package.json`, "utf8"));
const wanted = read("");
for (const folder of Object.keys({ ...wanted.dependencies, ...wanted.unpacked })) {
  const { name, version } = read(`node_modules/${folder}/`);
  console.log(name, version);
}
EOF
