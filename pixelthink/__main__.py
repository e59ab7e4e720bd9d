"""`python -m pixelthink fit|validate|test|predict --config …`."""

from pixelthink.cli.main import main

if __name__ == "__main__":
    main()
