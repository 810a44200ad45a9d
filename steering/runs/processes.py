"""Several processes as one run: joining them, and letting the first one act for all."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from steering.collect import meeting_place, rank, world_size
from steering.errors import RunError, UserError

PATIENCE = timedelta(hours=2)  # the first process may evaluate or export for a while


def started_with_others() -> bool:
    """Whether torchrun, or Slurm's srun, started this process as one of several."""
    _from_slurm()
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Meets the other processes, if there are any; gives this one's own device."""
    if not started_with_others():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except ValueError as error:  # a variable that is missing
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes cannot meet ({error}): start them with "
            "torchrun --nproc-per-node N -m steering run ..., or unset WORLD_SIZE"
        ) from None
    try:
        yield device
    finally:
        dist.destroy_process_group()


def by_first(action: Callable[[], Any]) -> Any:
    """What ``action`` gives in the first process, in all of them; its UserError or RunError as well.

    Args:
        action: gives something that JSON can hold.
    """
    if world_size() == 1:
        return action()
    answer: dict[str, Any] = {}
    if rank() == 0:
        try:
            answer = {"value": action()}
        except (UserError, RunError) as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        except OSError as error:
            message = f"cannot read or write {error.filename or 'a file'}: {error.strerror}"
            answer = {"error": "RunError", "message": message}
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if "error" in answer:
        raise (UserError if answer["error"] == "UserError" else RunError)(answer["message"])
    return answer["value"]


def _broadcast(words: bytes) -> bytes:
    """Bytes of the first process, in all of them."""
    device = meeting_place()
    length = torch.tensor(len(words), device=device)
    dist.broadcast(length, 0)
    content = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if rank() == 0:
        content = torch.frombuffer(bytearray(words), dtype=torch.uint8).to(device)
    dist.broadcast(content, 0)
    return bytes(content.cpu().tolist())


def _from_slurm() -> None:
    """Tells torch what srun says of this process."""
    if "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}
    os.environ |= {ours: os.environ[theirs] for ours, theirs in names.items()}
    address = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_ADDR", address)
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000))
