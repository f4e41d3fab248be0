"""The errors a caller may want to catch. Each message says what was expected, what came and what to do."""


class Ld3mError(Exception):
    """Base of every error that ld3m raises on purpose; the command line prints it and exits with status 2."""


class InputError(Ld3mError, ValueError):
    """An argument is outside of what a function accepts."""


class ConfigError(Ld3mError, ValueError):
    """Settings contradict each other, name something unknown, or differ from those of the run that is resumed."""


class DataError(Ld3mError, ValueError):
    """A data set cannot be read, or holds too little for what was asked."""


class CheckpointError(Ld3mError, RuntimeError):
    """A file of weights or states is missing, damaged, unsafe, or does not fit the model it is meant for."""


class NumericsError(Ld3mError, ArithmeticError):
    """A value became NaN or infinite; the last good state is kept."""


class MemoryBudgetError(Ld3mError, RuntimeError):
    """A device has not enough memory for the smallest plan; the last good state is kept."""


class BackendError(Ld3mError, RuntimeError):
    """A kernel backend that was asked for by name cannot take these inputs."""


class ProcessError(Ld3mError, RuntimeError):
    """Another process of the run has ended, or does not answer; what was kept before it is whole."""
