"""The errors wiremap raises.

    WiremapError              something failed              (command line: exit 1)
    └── InputError            what was given cannot be used (command line: exit 2; also a ValueError)

Every message says what was expected, what came, where, and what to do next. What went on all the
same, but not as one may think, is a WiremapWarning (command line: a note on stderr).
"""


class WiremapError(Exception):
    """Base class of every error wiremap raises on purpose."""


class InputError(WiremapError, ValueError):
    """A model, file, option or name that cannot be used as it is."""


class WiremapWarning(UserWarning):
    """Something worth knowing that is no error."""
