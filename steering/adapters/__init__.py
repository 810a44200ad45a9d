"""Steering in the training loops that people already have: one module a host, none of which is imported here.

``docs/loops.md`` shows the lines for each of them. A host is installed by the extra of its name:
``pip install 'model-steering[transformers]'``.
"""
