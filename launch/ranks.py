"""A run without Ray: each process that `torchrun` starts is a rank of it.

torchrun --nproc-per-node 2 -m perennial.ranks CONFIG [key=value ...] --out RUN
"""

from launch.commands.errors import report_errors
from launch.machine.surroundings import prepare_environment
from launch.terminal.console import begin_in_utf_8


def main() -> None:
    """Entry point."""
    begin_in_utf_8()
    prepare_environment()
    # torch comes with it, and must find the environment prepared
    from launch.commands.ranks import app

    report_errors(app)


if __name__ == "__main__":
    main()
