"""The unconfigured application, configured: every record of the process in the form that ``FORM`` says."""

import os

from asgi_closecodes.logs import configure_logging

from .unconfigured import app

configure_logging(os.environ["FORM"], logger="")
__all__ = ["app"]
