"""What the two clients that cache the queries of Django's ORM have in common.

Options: `database`, a PostgreSQL URL (without it: SQLite in a file of this process; sqlite:///PATH names one), and
`tables`, the tables of the two models: {"First": "first_model", "Second": "second_model"}; they are made if this is
SQLite. A query of the URL goes to libpq: postgresql://.../db?options=-csearch_path%3Dshop. Instead of set and get:

    {"op": "query", "table": T, "filter": {"category_id": 15}}
        -> {"ok": true, "rows": 2, "hit": true, "value": [{"id": 1, ...}, ...]}; a hit asked the database nothing
    {"op": "begin", "key": K, "table": T, "filter": {...}}  -> {"ok": true}; missed, and has read its rows
    {"op": "finish", "key": K}  -> as `query`, of those rows; the library has stored them (key: only a name of the pair)
    {"op": "save", "table": T, "row": {...}} and {"op": "delete", "table": T, "row": {"id": 1}}  -> {"ok": true}
        through the ORM, which is how these libraries get to know of a change
"""

import atexit
import json
import os
import shutil
import tempfile
from urllib.parse import parse_qsl, unquote, urlsplit

import django
from django.conf import settings

from .base import Base

SQLITE = {
    "First": "CREATE TABLE IF NOT EXISTS {} (id bigint PRIMARY KEY, name text)",
    "Second": "CREATE TABLE IF NOT EXISTS {} "
    "(id bigint PRIMARY KEY, category_id bigint, type_id bigint, name text, status text)",
}


def database(url):
    if url is None:
        # A file: the late writer is another thread, and so another connection.
        directory = tempfile.mkdtemp(prefix="reader.")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        url = "sqlite:///" + os.path.join(directory, "db")
    at = urlsplit(url)
    if at.scheme == "sqlite":
        # WAL: a reader in the middle of its rows does not lock out who changes them.
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": unquote(at.path[1:]),
            "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"},
        }
    if at.scheme not in ("postgresql", "postgres"):
        raise ValueError(f"no such database: {at.scheme}")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(at.path[1:]),
        "USER": unquote(at.username or ""),
        "PASSWORD": unquote(at.password or ""),
        "HOST": unquote(at.hostname or ""),
        "PORT": str(at.port or ""),
        "OPTIONS": dict(parse_qsl(at.query)),
    }


class Orm(Base):
    applications = []

    def __init__(self, url, options):
        super().__init__(url, options)
        tables = {"First": "first_model", "Second": "second_model", **self.option("tables", {})}
        settings.configure(
            TABLES=tables,
            DATABASES={"default": database(self.option("database"))},
            INSTALLED_APPS=["clients.shop", *self.applications],
            SECRET_KEY="tests",
            USE_TZ=True,
            **self.settings(),
        )
        django.setup()
        from django.apps import apps
        from django.db import connection

        self.models = {model._meta.db_table: model for model in apps.get_app_config("shop").get_models()}
        connection.ensure_connection()
        if connection.vendor == "sqlite":
            with connection.cursor() as cursor:
                for name, statement in SQLITE.items():
                    cursor.execute(statement.format(connection.ops.quote_name(tables[name])))

    def settings(self):
        raise NotImplementedError

    def model(self, table):
        return self.models[table]

    def fetch(self, queryset):
        """Runs the query as the library does it by itself."""
        return list(queryset)

    def run(self, request, block=None):
        """The cached query, and whether it asked the database; `block` is called when the database has answered."""
        from django.db import connection

        asked = []

        def execute(execute, sql, params, many, context):
            answer = execute(sql, params, many, context)
            asked.append(sql)
            if block is not None:
                block()
            return answer

        queryset = self.model(request["table"]).objects.filter(**request.get("filter", {})).order_by("pk")
        with connection.execute_wrapper(execute):
            rows = self.fetch(queryset)
        value = [{f.attname: getattr(row, f.attname) for f in row._meta.concrete_fields} for row in rows]
        return {"rows": len(value), "hit": not asked, "value": json.loads(json.dumps(value, default=str))}

    def remember(self, request, compute):
        from django.db import connection

        try:
            return self.run(request, compute)
        finally:
            connection.close()  # of this thread

    def op_query(self, request):
        return self.run(request)

    def op_save(self, request):
        row = dict(request["row"])
        model = self.model(request["table"])
        # As an application does it: it has the object and saves it, so that the library sees the old row and the new.
        found = model.objects.filter(pk=row["id"])
        instance = next(iter(self.uncached(found)), None) or model()
        for name, value in row.items():
            setattr(instance, name, value)
        instance.save()

    def op_delete(self, request):
        for instance in self.uncached(self.model(request["table"]).objects.filter(pk=request["row"]["id"])):
            instance.delete()

    def uncached(self, queryset):
        raise NotImplementedError

    def op_set(self, request):
        raise ValueError("its records are the answers of queries: use query")

    op_get = op_set
