"""Image data sets: read from anywhere, held once as uint8, at one resolution."""

from ld3m.data.ilsvrc import ilsvrc_index as ilsvrc_index
from ld3m.data.images import Dataset as Dataset
from ld3m.data.images import ImageSet as ImageSet
from ld3m.data.sources import load as load
from ld3m.data.sources import would_read as would_read
