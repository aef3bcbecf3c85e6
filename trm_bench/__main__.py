"""`trm-bench` and `python -m trm_bench`: the command line."""

from trm_bench import signals


def main() -> None:
    """Runs the command line; signals are heard while its imports, which take seconds, run too."""
    with signals.ending():
        from trm_bench import cli

        cli.main()


if __name__ == "__main__":  # worker processes import the main module
    main()
