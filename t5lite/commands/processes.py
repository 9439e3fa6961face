"""Several processes as one program: the flags by which they find each other."""

import argparse


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Declares what several processes need to find each other."""
    processes = parser.add_argument_group(
        "several processes",
        "run the same command on every host; TPU VMs, Kubernetes and SLURM need no such flags",
    )
    processes.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="host of process 0 and a free port there"
    )
    processes.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    processes.add_argument(
        "--process_id", type=int, metavar="I", help="index of this process, from 0"
    )
    processes.add_argument(
        "--coordinator_timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long to wait for the other processes (300)",
    )
