"""strings.py DSN: the one row of the table `kinds`, each column as str() of what psycopg reads, as a JSON object."""

import json
import sys

import psycopg

with psycopg.connect(sys.argv[1], options="-c TimeZone=UTC") as connection:
    cursor = connection.execute("SELECT * FROM kinds")
    names = [column.name for column in cursor.description]
    print(json.dumps(dict(zip(names, map(str, cursor.fetchone())))))
