"""Several processes as one program: the flags by which they find each other."""

import argparse


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Declares what several processes need to find each other."""
    processes = parser.add_argument_group(
        "several processes",
        "the same command on every host; on TPU virtual machines, Kubernetes and SLURM without "
        "any of these",
    )
    processes.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="of process 0, the port a free one"
    )
    processes.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    processes.add_argument("--process_id", type=int, metavar="I", help="which this is, from 0")
    processes.add_argument(
        "--coordinator_timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="to wait for the others (300)",
    )
