"""Hosts take seconds to import: their tests, which are slow all, are collected where slow tests are wanted."""

HOSTS = ("test_transformers.py", "test_trl.py", "test_lightning.py", "test_accelerate.py")


def pytest_ignore_collect(collection_path, config):
    return True if config.option.markexpr == "not slow" and collection_path.name in HOSTS else None
