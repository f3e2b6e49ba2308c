<?php
// Laravel, the redis store with tags: from 10 on a sorted set of entries per tag, before that a version key per tag.
// Options: prefix (of the cache store, `cache.prefix`), option_prefix (of the connection, `database.redis.options.prefix`).
// An entry belongs to its key and the list of its tags, in this order: `get` takes the same tags as `set`.

use Illuminate\Cache\RedisStore;
use Illuminate\Cache\Repository;
use Illuminate\Redis\RedisManager;

require_once 'Illuminate/Redis/autoload.php';
require_once 'Illuminate/Cache/autoload.php';

class LaravelClient
{
    private readonly Repository $cache;

    public function __construct(string $url, array $options)
    {
        $redis = new RedisManager(null, 'phpredis', [
            'options' => ['prefix' => $options['option_prefix'] ?? ''],
            'default' => ['url' => $url, 'timeout' => TIMEOUT, 'read_timeout' => TIMEOUT],
        ]);
        $this->cache = new Repository(new RedisStore($redis, $options['prefix'] ?? ''));
    }

    public function library(): string
    {
        return 'laravel/framework ' . version('php-illuminate-cache');
    }

    public function set(string $key, string $value, array $tags, ?int $timeout): void
    {
        if (!$this->cache->tags($tags)->put($key, $value, $timeout)) {
            throw new RuntimeException('put() returned false');
        }
    }

    public function get(string $key, array $tags): ?string
    {
        return $this->cache->tags($tags)->get($key);
    }

    public function compute(string $key, Closure $callback, array $tags, ?int $timeout): string
    {
        return $this->cache->tags($tags)->remember($key, $timeout, $callback);
    }

    public function invalidate(array $tags): void
    {
        $this->cache->tags($tags)->flush();
    }
}

return fn (string $url, array $options) => new LaravelClient($url, $options);
