<?php
// A PHP process that reads and writes tagged cache records with a real cache library, for tests.
//
//     php reader.php --client NAME --url redis://127.0.0.1:6379/0 [--options '{"namespace": "app"}']   this machine's PHP
//     ./sid DIR      --client NAME --url ...                                                           Debian unstable's
//
// NAME is a file in clients/, DIR is what install.sh made. One JSON object per line on stdin, one answer per line on
// stdout, in order; all else goes to stderr. The first line tells that it is ready; it ends with `quit` or the end of
// stdin, so it does not outlive the test that started it.
//
//     {"op": "set", "key": K, "value": V, "tags": [...], "timeout": N}   -> {"ok": true}; seconds, or the library's default
//     {"op": "get", "key": K, "tags": [...]}  -> {"ok": true, "value": V}; null is a miss; never computes, never stores
//     {"op": "begin", "key": K, "tags": [...], "timeout": N}   -> {"ok": true}; in the library's own get-or-compute the
//                                                                 reader has missed, and its computation now runs ...
//     {"op": "finish", "key": K, "value": V}      -> {"ok": true}; ... and returns V, and the library has stored it
//     {"op": "invalidate", "tags": [...]}         -> {"ok": true}; the library's own invalidation, to compare with
//     {"op": "quit"}                              -> {"ok": true}
//     anything that fails                         -> {"ok": false, "error": "..."}; the process goes on
//
// A file in clients/ returns a function of the URL and the options that returns an object with library(), set(), get(),
// compute() and invalidate(). Values are strings.

ini_set('display_errors', 'stderr');
ini_set('log_errors', '0'); // once is enough
error_reporting(E_ALL & ~E_DEPRECATED);

const TIMEOUT = 5.0; // seconds, to connect and to wait for an answer of Redis

/** The upstream version of a Debian package: 5.4.53 of 2:5.4.53+dfsg-0+deb12u1. */
function version(string $package): string
{
    $version = (string) shell_exec('dpkg-query -W -f \'${Version}\' ' . escapeshellarg($package));
    return preg_replace('/^\d+:|[-+].*$/', '', $version);
}

function say(array $answer): void
{
    fwrite(STDOUT, json_encode($answer, JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE | JSON_INVALID_UTF8_SUBSTITUTE) . "\n");
}

function answer(object $client, array &$computing, array $request): array
{
    $field = fn (string $name) => $request[$name] ?? throw new InvalidArgumentException("no $name in the request");
    $tags = $request['tags'] ?? [];
    $timeout = $request['timeout'] ?? null;
    switch ($field('op')) {
        case 'set':
            $client->set($field('key'), $field('value'), $tags, $timeout);
            return [];
        case 'get':
            return ['value' => $client->get($field('key'), $tags)];
        case 'begin':
            $key = $field('key');
            if (isset($computing[$key])) {
                throw new LogicException("$key is being computed already");
            }
            // The library's call runs in the fiber, up to its callback, which waits for `finish`.
            $fiber = new Fiber(fn () => $client->compute($key, fn () => Fiber::suspend(), $tags, $timeout));
            $fiber->start();
            if ($fiber->isTerminated()) {
                throw new LogicException("$key is a hit: nothing to compute");
            }
            $computing[$key] = $fiber;
            return [];
        case 'finish':
            $key = $field('key');
            $fiber = $computing[$key] ?? throw new LogicException("$key is not being computed");
            unset($computing[$key]);
            $fiber->resume($field('value'));
            return [];
        case 'invalidate':
            $client->invalidate($tags);
            return [];
        case 'quit':
            return [];
    }
    throw new InvalidArgumentException("no such op: {$request['op']}");
}

function main(): void
{
    $args = getopt('', ['client:', 'url:', 'options:']);
    $file = __DIR__ . '/clients/' . basename($args['client'] ?? '') . '.php';
    if (!isset($args['url']) || !is_file($file)) {
        fwrite(STDERR, "usage: reader.php --client NAME --url redis://HOST:PORT/DB [--options JSON]\n");
        exit(2);
    }
    $options = json_decode($args['options'] ?? '{}', true, 16, JSON_THROW_ON_ERROR);
    $client = (require $file)($args['url'], $options);
    $computing = [];
    say(['ready' => true, 'library' => $client->library()]);
    while (($line = fgets(STDIN)) !== false) {
        $request = null;
        try {
            $request = json_decode($line, true, 64, JSON_THROW_ON_ERROR);
            say(['ok' => true] + answer($client, $computing, $request));
        } catch (Throwable $error) { // whatever the library raises is an answer: a tag it cannot take, a lost server
            say(['ok' => false, 'error' => $error::class . ': ' . $error->getMessage()]);
            continue;
        }
        if ($request['op'] === 'quit') {
            break;
        }
    }
}

main();
