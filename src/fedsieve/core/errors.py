"""Errors that a user can put right, each one line with the numbers and the alternatives."""


class FedSieveError(Exception):
    """Base of all errors that a user can put right; the command line prints them and exits with code 2."""


class UnknownNameError(FedSieveError):
    """No component is registered under this name."""


class ParameterError(FedSieveError):
    """A parameter does not exist, has the wrong type, is out of range or has no effect."""


class BoundError(FedSieveError):
    """The number of malicious clients is above an aggregator's bound."""


class MissingDataError(FedSieveError):
    """A file is missing and could not be downloaded, or an aggregator or detector needs root data."""


class CorruptDataError(FedSieveError):
    """A file has a wrong checksum or format."""


class MissingPackageError(FedSieveError):
    """A package that comes with an extra is not installed."""


class StageError(FedSieveError):
    """A stage of a defense, or an attack, returned something of a wrong type or shape."""


class UnusableResultError(FedSieveError):
    """A stage of a defense returned values that can't be used in this round: the server leaves the model unchanged."""


class BusyError(FedSieveError):
    """Another process runs in this run directory."""


class StorageError(FedSieveError):
    """Results can't be written: a full or read-only disk, a folder that is gone, no file handles."""
