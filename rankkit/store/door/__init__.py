"""The one door to HDF5: how a file is laid out is looked at, byte by byte, before the HDF5 library reads it."""
