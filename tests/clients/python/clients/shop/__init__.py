"""The application of orm.py: its label, `shop`, is in the records of django-cacheops (pickled models)."""
