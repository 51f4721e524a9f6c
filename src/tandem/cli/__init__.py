"""The commands a person types. `main` is the entry point of `tandem`."""


def main() -> None:
    """Imports the commands only now, so that Ctrl-C ends them quietly from the beginning."""
    try:
        from tandem.cli.app import main as run_app

        run_app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


__all__ = ["main"]
