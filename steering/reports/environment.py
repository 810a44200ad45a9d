"""What something ran on, for its records."""

import os
import platform
from importlib.metadata import distributions, version
from typing import Any


def environment() -> dict[str, Any]:
    """Versions and hardware; no names of machines or people."""
    import torch  # which showing a finished report does not need

    return {
        "model-steering": version("model-steering"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": dict(sorted({(d.metadata["Name"] or "?").lower(): d.version for d in distributions()}.items())),
    }
