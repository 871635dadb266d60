"""A run without Ray: `torchrun -m perennial.ranks CONFIG --out RUN`, see `launch.ranks`."""

from launch.ranks import main

if __name__ == "__main__":
    main()
