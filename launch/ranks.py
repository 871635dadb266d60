"""A run without Ray: each process that `torchrun` starts is a rank of it; see `launch.rank_crew`.

torchrun --nproc-per-node 2 -m launch.ranks CONFIG [key=value ...] --out RUN
"""

from launch.errors import report_errors
from launch.surroundings import prepare_environment
from launch.terminal import begin_in_utf_8

if __name__ == "__main__":
    begin_in_utf_8()
    prepare_environment()
    from launch.rank_crew import app  # torch comes with it, and must find the environment settled

    report_errors(app)
