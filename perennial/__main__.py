"""The command `perennial`, also as `python -m perennial`."""

from launch.cli import main

if __name__ == "__main__":
    main()
