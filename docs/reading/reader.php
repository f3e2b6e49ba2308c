<?php
// A reader of waltag's `version` dialect over phpredis: see ../reading.md.

const TTL = 86400; // seconds: the cache's `ttl: 1d` in waltag's rules

// The record $name, or $compute() stored under $tags. $redis: without a serializer.
function get(Redis $redis, string $name, array $tags, callable $compute, int $life = 3600): mixed
{
    $versions = fn (array $tags) => $tags ? array_combine($tags, $redis->mGet($tags)) : [];

    $stored = $redis->get("record:$name");
    if ($stored !== false) {
        $record = json_decode($stored, true, flags: JSON_THROW_ON_ERROR);
        $now = $versions(array_keys($record['tags']));
        if (!in_array(false, $now, true) && $now === $record['tags']) {
            return $record['value'];
        }
    }

    foreach ($versions($tags) as $tag => $version) {
        if ($version === false) {
            $redis->set($tag, (string) random_int(0, PHP_INT_MAX), ['nx', 'ex' => TTL]);
        }
    }
    $before = $versions($tags); // from before the computation, never from after it
    $value = $compute();
    $record = json_encode(['tags' => (object) $before, 'value' => $value], JSON_THROW_ON_ERROR);
    $redis->set("record:$name", $record, ['ex' => min($life, TTL)]);
    return $value;
}
