"""django-cacheops: caches the queries of the ORM, and knows by which conditions each of them was asked.

Options: those of orm.py and `insideout` (CACHEOPS_INSIDEOUT), `prefix` (what CACHEOPS_PREFIX returns), `timeout`
(default 600), `form`: `queryset` (default: what it does by itself) or `cached_as` (the decorator over the same query),
and `keep_fresh` (of cached_as, and so implies it). The own invalidation:

    {"op": "invalidate", "tags": ["second_model"]}                      invalidate_model()
    {"op": "invalidate", "table": "second_model", "rows": [{...}]}      invalidate_dict(), for each of the rows
"""

from .orm import Orm


class Client(Orm):
    distribution = "django-cacheops"
    applications = ["cacheops"]

    def __init__(self, url, options):
        super().__init__(url, options)
        self.keep_fresh = self.option("keep_fresh", False)
        form = self.option("form", "cached_as" if self.keep_fresh else "queryset")
        if form not in ("queryset", "cached_as") or (self.keep_fresh and form != "cached_as"):
            raise ValueError("keep_fresh is an option of cached_as; form is queryset or cached_as")
        self.decorate = form == "cached_as"

    def settings(self):
        prefix = self.option("prefix", "")
        return {
            "CACHEOPS_REDIS": self.url,
            "CACHEOPS": {"shop.*": {"ops": "all", "timeout": self.option("timeout", 600)}},
            "CACHEOPS_INSIDEOUT": self.option("insideout", False),
            "CACHEOPS_PREFIX": lambda query: prefix,
        }

    def fetch(self, queryset):
        if not self.decorate:
            return list(queryset)
        from cacheops import cached_as

        @cached_as(queryset, keep_fresh=self.keep_fresh)
        def rows():
            return self.uncached(queryset)

        return rows()

    def uncached(self, queryset):
        return list(queryset.all().nocache())

    def op_invalidate(self, request):
        from cacheops import invalidate_model
        from cacheops.invalidation import invalidate_dict

        for table in request.get("tags", []):
            invalidate_model(self.model(table))
        for row in request.get("rows", []):
            invalidate_dict(self.model(request["table"]), row)
