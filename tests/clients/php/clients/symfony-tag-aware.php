<?php
// Symfony Cache, TagAwareAdapter over RedisAdapter: a version key per tag. This is what a pool with `tags: true` is.
// Options: namespace (of the pool), option_prefix (phpredis's OPT_PREFIX, in front of each key).
//
// The adapter remembers tag versions for 150 ms in its process; each op has a new adapter, so that a get sees what is in
// Redis now. From `begin` to `finish` it is the same adapter, with this memory on, as in an application.

use Symfony\Component\Cache\Adapter\RedisAdapter;
use Symfony\Component\Cache\Adapter\TagAwareAdapter;

require_once __DIR__ . '/symfony.inc';

return fn (string $url, array $options) => new SymfonyClient(
    function (Redis|RedisCluster $redis) use ($options) {
        $items = new RedisAdapter($redis, $options['namespace'] ?? '');
        $items->setLogger(new Thrower());
        return new TagAwareAdapter($items);
    },
    $url,
    $options
);
