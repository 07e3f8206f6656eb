"""What the user has to mend, as opposed to what is broken in the program."""


class ConfigError(ValueError):
    """A setting or a data set that cannot work.

    The message names the config key or the file, what was found and what is accepted. The tools print
    it as their last line, without a traceback.
    """
