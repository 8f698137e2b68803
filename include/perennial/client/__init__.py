"""Data in one's hands: what a deployment has published, decided and learned, for notebooks and scripts. It only reads.

::

    from perennial import client

    p = client.open()
    p.features("flight_delay", "2013-06-01", "2013-06-08").pandas()

Begin with :mod:`perennial.client.reading`. What it gives is in :mod:`perennial.client.rows`.
"""

from perennial.client.reading import Client, open_deployment
from perennial.client.rows import Rows

#: As people write it: ``client.open()``.
open = open_deployment  # noqa: A001  # it is called by the name of its module

__all__ = ["Client", "Rows", "open", "open_deployment"]
