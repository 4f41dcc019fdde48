"""Upload a proven export to the Hugging Face hub, or to another endpoint with its interface.

What is uploaded is decided before anything is sent: `Publication` holds the files that the export
wrote, after their proof, their digests and the card were checked. `upload` sends them in one
commit, so that no reader ever finds a part of them.
"""

from ctxext.publish.publication import Publication
from ctxext.publish.upload import DEFAULT_ENDPOINT, upload

__all__ = ["DEFAULT_ENDPOINT", "Publication", "upload"]
