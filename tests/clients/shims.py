"""Names that the two libraries import and that Python and Django have dropped since.

Each is what the old release documented, as far as the cache core uses it. To be called before a library is imported
and after Django's settings are there. Nothing that touches the format of keys, tags or records is replaced.
"""

import collections
import collections.abc
import functools

import django.core.cache
import django.utils.encoding
import django.utils.functional


def _get_cache(alias):
    """Of 0.7.3, at import: the backend of an alias. Gone since Django 1.9; `caches` is its successor."""
    return django.core.cache.caches[alias]


def install():
    missing = (
        # Base class in cache-dependencies; lives in collections.abc, the old place went with Python 3.10.
        (collections, "Iterator", collections.abc.Iterator),
        # Of both, to bind the arguments of signal handlers; gone since Django 3.0.
        (django.utils.functional, "curry", functools.partial),
        # Of 0.7.3, which only imports it; on Python 3 it was never there under this name.
        (django.utils.encoding, "force_unicode", django.utils.encoding.force_str),
        # Of 0.7.3; cache-dependencies looks for `caches` itself.
        (django.core.cache, "get_cache", _get_cache),
    )
    for module, name, value in missing:
        if not hasattr(module, name):
            setattr(module, name, value)
