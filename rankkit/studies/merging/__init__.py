"""Many files of one study into the one that a single run would have written."""
