"""`dictlearn` and `python -m dictlearn`: Ctrl-C is answered while the command line is imported, too."""

from __future__ import annotations

from dictlearn import stopping


def main(verb: str | None = None) -> None:
    """Runs the command line and exits; see `dictlearn.cli.main`."""
    with stopping.noting_warnings():
        with stopping.at_once():
            from dictlearn import cli
        cli.main(verb)


if __name__ == "__main__":
    main()
