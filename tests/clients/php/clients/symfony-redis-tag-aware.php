<?php
// Symfony Cache, RedisTagAwareAdapter: a set of item ids per tag.
// Options: namespace (of the pool), option_prefix (phpredis's OPT_PREFIX, in front of each key).

use Symfony\Component\Cache\Adapter\RedisTagAwareAdapter;

require_once __DIR__ . '/symfony.inc';

return fn (string $url, array $options) => new SymfonyClient(
    fn (Redis|RedisCluster $redis) => new RedisTagAwareAdapter($redis, $options['namespace'] ?? ''),
    $url,
    $options
);
