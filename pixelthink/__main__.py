"""`python -m pixelthink fit|validate|test|predict --config …`."""

from pixelthink.cli import main

if __name__ == "__main__":
    main()
