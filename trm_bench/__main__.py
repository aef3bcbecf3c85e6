"""`python -m trm_bench`: the command line."""

from trm_bench.cli import main

if __name__ == "__main__":  # worker processes import the main module
    main()
