"""Models that somebody else made: opened, looked at, fed, and their attention measured."""
