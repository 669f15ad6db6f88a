"""What can go wrong with a model.

ModelError
├── BundleRefusedError   the bundle is not what was signed: nothing of it may be loaded
└── NotExportableError   the fitted model cannot be carried into the served form without changing its answers
"""


class ModelError(ValueError):
    """A model that may not be used; the message says why and what to do."""


class BundleRefusedError(ModelError):
    """A bundle that is unsigned, altered, incomplete or of an unknown format."""


class NotExportableError(ModelError):
    """A fitted model whose served form would answer differently."""
