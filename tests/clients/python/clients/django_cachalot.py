"""django-cachalot: caches every query of the ORM; a tag is the name of a table.

Options: those of orm.py and `backend` (`django-redis`, the default, or `django`, Django's own), `key_prefix`,
`version`, `timeout` (CACHALOT_TIMEOUT; default none). {"op": "invalidate", "tags": ["second_model"]} is
cachalot.api.invalidate("second_model").
"""

from .orm import Orm

BACKENDS = {
    "django-redis": "django_redis.cache.RedisCache",
    "django": "django.core.cache.backends.redis.RedisCache",
}


class Client(Orm):
    distribution = "django-cachalot"
    applications = ["cachalot"]

    def settings(self):
        cache = {
            "BACKEND": BACKENDS[self.option("backend", "django-redis")],
            "LOCATION": self.url,
            "KEY_PREFIX": self.option("key_prefix", ""),
            "VERSION": self.option("version", 1),
        }
        return {
            "CACHES": {"default": cache},
            "CACHALOT_TIMEOUT": self.option("timeout"),
        }

    def uncached(self, queryset):
        from cachalot.api import cachalot_disabled

        with cachalot_disabled():
            return list(queryset)

    def invalidate(self, tags):
        from cachalot.api import invalidate

        invalidate(*tags)
