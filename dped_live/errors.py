"""The errors a user can do something about. Everything else is a bug and keeps its traceback."""


class DpedError(Exception):
    """One line for the user: what is wrong, with which file or device, and what to do next."""


class WeightsError(DpedError):
    """Weights are missing, damaged, of the wrong kind or could not be fetched."""


class InputError(DpedError):
    """A picture or video cannot be read."""


class OutputError(DpedError):
    """A picture or video cannot be written."""


class BackendError(DpedError):
    """The chosen device, backend or precision cannot be used on this machine."""


class TrainingError(DpedError):
    """A network cannot be trained as asked, or its training has failed."""


class TooLargeError(BackendError):
    """A picture does not fit into the device's memory; a part of it may."""
