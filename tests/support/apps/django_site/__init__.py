"""A Django site whose databases have pools.

``SITE_DATABASES`` is its ``DATABASES`` as JSON.

Usage: ``python -m tests.support.apps.django_site COMMAND``
"""
