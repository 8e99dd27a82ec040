"""Joins the processes of one training run, on one or several hosts.

JAX finds the other processes by itself under SLURM, Open MPI 4 and on Cloud TPU (GCE and GKE). This
module adds explicit flags and Open MPI 5; a process without any of these trains alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from osteojax.errors import UserError

SHUTDOWN_SECONDS = 60
"""How long a failing process waits for the others, which may be failing too, before it exits;
jax.distributed then ends the rest."""


@dataclasses.dataclass(frozen=True)
class Group:
    """The processes that train together.

    Attributes:
      coordinator: "host:port" of process 0; None where JAX gets it from the cluster.
      num_processes: of all hosts together; None likewise.
      process_id: of this process, from 0; None likewise.
      local_device: index of this process's only GPU among those of the host; None for all GPUs, or
        where JAX chooses.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several processes", "not needed under SLURM, Open MPI and on Cloud TPU"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--num-processes", type=int, metavar="N", help="of all hosts together")
    group.add_argument("--process-id", type=int, metavar="I", help="this one, 0 to N - 1")


def find_group(args: argparse.Namespace, environment: Mapping[str, str]) -> Group | None:
    """The group that the flags or the environment describe; None for a process that runs alone.

    Raises:
      UserError: where the flags contradict each other or are incomplete.
    """
    flags = Group(args.coordinator, args.num_processes, args.process_id)
    if flags != Group():
        return _checked(flags)
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return _open_mpi(environment)
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in environment:
        return Group()
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or (not hosts and _is_tpu_machine()):
        return Group()
    return None


def _checked(flags: Group) -> Group:
    coordinator, number, index = flags.coordinator, flags.num_processes, flags.process_id
    if coordinator is None or number is None or index is None:
        raise UserError("--coordinator, --num-processes and --process-id belong together.")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator {coordinator} is not HOST:PORT; host1:8476, for example.")
    if not 0 <= index < number:
        raise UserError(f"--process-id {index} is not in 0 to {number - 1} (--num-processes - 1).")
    return flags


def _open_mpi(environment: Mapping[str, str]) -> Group:
    if "OMPI_MCA_orte_hnp_uri" in environment:  # Open MPI 4: JAX reads the address from it
        return Group()
    number = int(environment["OMPI_COMM_WORLD_SIZE"])
    index = int(environment["OMPI_COMM_WORLD_RANK"])
    coordinator = environment.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None:
        # Version 5 does not say where process 0 runs.
        if environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") != str(number):
            raise UserError(
                "Open MPI 5 over several hosts: name a free port of the first host, "
                "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT osteojax train ..."
            )
        coordinator = "localhost:8476"
    return Group(coordinator, number, index, int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]))


def _is_tpu_machine() -> bool:
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def join(args: argparse.Namespace) -> bool:
    """Joins the group, if there is one. Call it before JAX uses a device.

    Returns:
      whether this is one of several processes.

    Raises:
      UserError: where the other processes cannot be reached.
    """
    group = find_group(args, os.environ)
    if group is None:
        return False
    # Imported here, so that a single process or a wrong command line does not wait for it.
    import jax

    try:
        jax.distributed.initialize(
            group.coordinator,
            group.num_processes,
            group.process_id,
            group.local_device,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        where = f" at {group.coordinator}" if group.coordinator else ""
        raise UserError(
            f"the processes did not find each other{where}: {str(error).splitlines()[0]}. Start "
            "all of them, and open the port of process 0 to the others."
        ) from error
    return jax.process_count() > 1


def leave(status: int) -> NoReturn:
    """Ends one of several processes after a failure.

    A normal exit would wait for threads that wait for the other processes.
    """
    import jax

    sys.stdout.flush()
    sys.stderr.flush()
    try:
        jax.distributed.shutdown()
    except RuntimeError as error:
        print(f"osteojax: could not stop with the other processes: {error}", file=sys.stderr)
    os._exit(status)
