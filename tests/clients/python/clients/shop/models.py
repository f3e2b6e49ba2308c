from django.conf import settings
from django.db import models

# Characters, not text: django-cacheops leaves a TextField out of its conditions.


class First(models.Model):
    id = models.BigIntegerField(primary_key=True)
    name = models.CharField(max_length=200, null=True)

    class Meta:
        managed = False
        db_table = settings.TABLES["First"]


class Second(models.Model):
    id = models.BigIntegerField(primary_key=True)
    category = models.ForeignKey(First, models.DO_NOTHING, null=True, db_constraint=False)
    type_id = models.BigIntegerField(null=True)
    name = models.CharField(max_length=200, null=True)
    status = models.CharField(max_length=200, null=True)

    class Meta:
        managed = False
        db_table = settings.TABLES["Second"]
