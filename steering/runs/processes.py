"""Several processes as one run: joining them, and letting the first one act for all."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from steering.distributed import all_gather_numbers, communication_device, rank, world_size
from steering.errors import RunError, UserError
from steering.heartbeat import watched

PATIENCE = timedelta(hours=2)  # the first process may evaluate or export for a while


def rank_and_world_size() -> tuple[int, int]:
    """This process's number, from 0, and how many there are, as torchrun or srun says; they need not have met."""
    variables = os.environ | _from_slurm()
    number, count = variables.get("RANK", ""), variables.get("WORLD_SIZE", "")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return int(number), int(count)
    return 0, 1


def device_named(name: str) -> torch.device:
    """The device of that name; ``auto`` takes a GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"no device is named {name!r}: use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise UserError(f"device {name!r} was asked for, but torch sees {seen} CUDA devices: use --device cpu")
    return device


def local_device(device: torch.device) -> torch.device:
    """The device of this process: of ``cuda`` without a number, another GPU for each process of a machine."""
    if device.type != "cuda" or device.index is not None:
        return device
    local = (os.environ | _from_slurm()).get("LOCAL_RANK", "")
    seen = max(1, torch.cuda.device_count())  # one alone where srun gives each task its own
    return torch.device("cuda", int(local or 0) % seen)


def launched_with_others() -> bool:
    """Whether torchrun or Slurm's srun started this process as one of several; sets torch's variables if srun did."""
    os.environ |= _from_slurm()
    return os.environ.get("WORLD_SIZE", "") not in ("", "0", "1")


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Meets the other processes, if there are any; gives this one's own device."""
    if not launched_with_others():
        yield device
        return
    if device.type == "cuda":
        device = local_device(torch.device("cuda"))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except ValueError as error:  # a variable that is missing
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes cannot meet ({error}): start them with "
            "torchrun --nproc-per-node N -m steering run ..., or unset WORLD_SIZE"
        ) from None
    with watched():
        yield device
    dist.destroy_process_group()  # not after an error: a process that is gone would be waited for


def on_rank_zero(action: Callable[[], Any]) -> Any:
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
        except UserError as error:
            answer = {"mistake": str(error)}
        except (RunError, OSError) as error:
            answer = {
                "trouble": str(error)
                if isinstance(error, RunError)
                else f"cannot read or write {error.filename or 'a file'}: {error.strerror}"
            }
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if "value" not in answer:
        raise UserError(answer["mistake"]) if "mistake" in answer else RunError(answer["trouble"])
    return answer["value"]


def _broadcast(message: bytes) -> bytes:
    """Bytes of the first process, in all of them."""
    length = all_gather_numbers([len(message)])[0][0]
    content = torch.tensor(list(message) if rank() == 0 else [0] * length, dtype=torch.uint8)
    content = content.to(communication_device())
    dist.broadcast(content, 0)
    return bytes(content.cpu().tolist())


def _from_slurm() -> dict[str, str]:
    """Torch's variables from those of srun; none without srun, or where torchrun has set them."""
    if "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return {}
    names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}
    port = str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000)
    meeting = {"MASTER_ADDR": os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"), "MASTER_PORT": port}
    variables = {name: os.environ[slurm] for name, slurm in names.items() if slurm in os.environ}
    return variables | {name: os.environ.get(name, value) for name, value in meeting.items()}
