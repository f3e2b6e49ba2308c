#!/usr/bin/env bash
# install.sh DIR: builds the Go reader of docs/reading/ into DIR/reader. The others run as they are. Needs go (1.18 or later), no modules.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1/source/reading"
cp "$here/main.go" "$1/source/"
cp "$here/../../../docs/reading/reader.go" "$1/source/reading/"
printf 'module waltag.test/reading\n\ngo 1.18\n' >"$1/source/go.mod"
cd "$1/source"
go vet ./...
go build -o "$1/reader" .
go version | cut -d ' ' -f 1,3
