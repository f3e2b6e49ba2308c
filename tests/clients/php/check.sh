#!/usr/bin/env bash
# check.sh DIR: does each client work, on this machine's PHP and in the tree DIR/sid? Run install.sh DIR first; as root.
# On a Redis of its own; a line `NAME SUITE LIBRARY VERSION ok` or `... FAILED why` per client and suite.
set -euo pipefail
dir=${1:?usage: check.sh DIR}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for program in redis-server redis-cli; do
    command -v "$program" >/dev/null || { echo "check.sh: no $program" >&2; exit 69; }
done

work=$(mktemp -d)
redis=
trap '[ -z "$redis" ] || kill "$redis"; rm -rf "$work"' EXIT
for _ in {1..20}; do
    port=$((20000 + RANDOM % 12000))
    redis-server --bind 127.0.0.1 --port "$port" --save '' --dir "$work" >"$work/redis.log" &
    redis=$!
    for _ in {1..50}; do
        kill -0 "$redis" 2>/dev/null || break
        # It is this one that answers, not another on the same port.
        if redis-cli -p "$port" info server 2>/dev/null | grep -q "^process_id:$redis[[:space:]]"; then break 2; fi
        sleep 0.1
    done
    kill "$redis" 2>/dev/null || true
    redis=
done
[ -n "$redis" ] || { echo "check.sh: redis-server does not start" >&2; cat "$work/redis.log" >&2; exit 1; }

trap '' PIPE # a reader that has ended is a failure of that reader

# expect REQUEST ANSWER; bash unsets `reader` when it ends
expect() {
    local answer
    { echo "$1" >&"${reader[1]-}"; } 2>/dev/null || { echo "$1: gone"; return 1; }
    read -r -t 20 -u "${reader[0]-}" answer 2>/dev/null || { echo "$1: no answer"; return 1; }
    if [ "$answer" != "$2" ]; then
        echo "$1: $answer"
        return 1
    fi
}

# The requests of a reader that is ready.
talk() {
    local ok='{"ok":true}' tags='"tags":["category.15","other"]'
    value() { echo "{\"ok\":true,\"value\":$1}"; }
    expect "{\"op\":\"get\",\"key\":\"k1\",$tags}" "$(value null)" &&
        # what is set is read, in quotes and other alphabets too
        expect "{\"op\":\"set\",\"key\":\"k1\",\"value\":\"'één' \\\"1\\\"\",$tags,\"timeout\":60}" "$ok" &&
        expect "{\"op\":\"get\",\"key\":\"k1\",$tags}" "$(value "\"'één' \\\"1\\\"\"")" &&
        expect '{"op":"set","key":"k2","value":"2","tags":["other.2"]}' "$ok" &&
        # the own invalidation: by the one tag, then by the other; records of other tags stay
        expect '{"op":"invalidate","tags":["other"]}' "$ok" &&
        expect "{\"op\":\"get\",\"key\":\"k1\",$tags}" "$(value null)" &&
        expect "{\"op\":\"set\",\"key\":\"k1\",\"value\":\"two\",$tags}" "$ok" &&
        expect "{\"op\":\"get\",\"key\":\"k1\",$tags}" "$(value '"two"')" &&
        expect '{"op":"invalidate","tags":["category.15","unknown"]}' "$ok" &&
        expect "{\"op\":\"get\",\"key\":\"k1\",$tags}" "$(value null)" &&
        expect '{"op":"get","key":"k2","tags":["other.2"]}' "$(value '"2"')" &&
        # get-or-compute in two steps; other requests between them
        expect "{\"op\":\"begin\",\"key\":\"k1\",$tags,\"timeout\":60}" "$ok" &&
        expect "{\"op\":\"get\",\"key\":\"k1\",$tags}" "$(value null)" &&
        expect "{\"op\":\"begin\",\"key\":\"k3\",$tags}" "$ok" &&
        expect '{"op":"finish","key":"k1","value":"three"}' "$ok" &&
        expect "{\"op\":\"get\",\"key\":\"k1\",$tags}" "$(value '"three"')" &&
        # the late writer: the library's own invalidation does not keep what was computed before it from being stored,
        expect '{"op":"invalidate","tags":["category.15"]}' "$ok" &&
        expect '{"op":"finish","key":"k3","value":"old"}' "$ok" &&
        expect "{\"op\":\"get\",\"key\":\"k3\",$tags}" "$(value '"old"')" &&
        # a second one removes it
        expect '{"op":"invalidate","tags":["category.15"]}' "$ok" &&
        expect "{\"op\":\"get\",\"key\":\"k3\",$tags}" "$(value null)" &&
        # a failure is an answer, and not the end
        expect '{"op":"finish","key":"k9","value":"x"}' \
            '{"ok":false,"error":"LogicException: k9 is not being computed"}' &&
        expect '{"op":"quit"}' "$ok"
}

# run CLIENT OPTIONS KEYS COMMAND...: prints why it failed; all keys must be like KEYS.
run() {
    local client=$1 options=$2 keys=$3 ready code=0 stray
    shift 3
    redis-cli -p "$port" flushall >/dev/null
    coproc reader { exec timeout 60 "$@" --client "$client" --url "redis://127.0.0.1:$port/2" --options "$options" 2>"$work/stderr"; }
    local pid=$!
    if ! read -r -t 20 -u "${reader[0]-}" ready 2>/dev/null; then
        sleep 0.2
        echo "does not start: $(head -n 1 "$work/stderr")"
        return 1
    fi
    library=$(sed -n 's/^{"ready":true,"library":"\(.*\)"}$/\1/p' <<<"$ready")
    talk || code=1
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    [ "$code" = 0 ] || return 1
    if [ -s "$work/stderr" ]; then echo "stderr: $(head -n 1 "$work/stderr")"; return 1; fi
    stray=$(redis-cli -p "$port" -n 2 --scan | grep -av "$keys" || true)
    if [ -n "$stray" ]; then echo "stray keys: ${stray//$'\n'/ }"; return 1; fi
}

failed=0
for client in symfony-redis-tag-aware symfony-tag-aware laravel; do
    for suite in host sid; do
        if [ "$suite" = host ]; then command=(php "$here/reader.php"); else command=("$here/sid" "$dir"); fi
        case $client in
            symfony*) options='{"namespace":"app1","option_prefix":"P_"}' keys='^{\?P_app1:' ;;
            laravel) options='{"prefix":"app1","option_prefix":"P_"}' keys='^P_app1' ;;
        esac
        library='?'
        why=ok
        run "$client" '{}' '' "${command[@]}" >"$work/why" && run "$client" "$options" "$keys" "${command[@]}" >"$work/why" ||
            { why="FAILED $(tr '\n' ' ' <"$work/why")"; failed=1; }
        echo "$client $suite $library $why"
    done
done
exit "$failed"
