<?php
// docs/reading/reader.php as a program: the protocol is that of ../reader.py.

require __DIR__ . '/../../../docs/reading/reader.php';

final class Miss extends Exception
{
}

$at = parse_url($argv[1]);
$redis = new Redis();
$redis->connect($at['host'], $at['port'] ?? 6379);
$redis->select((int) ltrim($at['path'] ?? '', '/'));
$late = [];

$answer = function (array $request) use ($redis, &$late): array {
    $key = $request['key'] ?? '';
    $tags = $request['tags'] ?? [];
    switch ($request['op']) {
        case 'set':
            $redis->del("record:$key");
            get($redis, $key, $tags, fn () => $request['value'], $request['timeout'] ?? 600);
            return [];
        case 'get':
            try {
                return ['value' => get($redis, $key, [], fn () => throw new Miss())];
            } catch (Miss) {
                return ['value' => null];
            }
        case 'begin':
            // One connection serves both: while a computation runs, this reader sends nothing.
            $fiber = new Fiber(fn () => get($redis, $key, $tags, fn () => Fiber::suspend()));
            $fiber->start();
            if ($fiber->isTerminated()) {
                throw new RuntimeException('a hit: nothing is computed');
            }
            $late[$key] = $fiber;
            return [];
        case 'finish':
            $late[$key]->resume($request['value']);
            unset($late[$key]);
            return [];
        case 'quit':
            return [];
    }
    throw new ValueError("no such op: {$request['op']}");
};

echo json_encode(['ready' => true, 'library' => 'phpredis ' . phpversion('redis')]), "\n";
while (($line = fgets(STDIN)) !== false) {
    $request = null;
    try {
        $request = json_decode($line, true, flags: JSON_THROW_ON_ERROR);
        $said = ['ok' => true, ...$answer($request)];
    } catch (Throwable $error) {
        $said = ['ok' => false, 'error' => get_class($error) . ': ' . $error->getMessage()];
    }
    echo json_encode($said), "\n";
    if (($request['op'] ?? null) === 'quit') {
        break;
    }
}
